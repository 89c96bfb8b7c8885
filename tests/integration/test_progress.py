"""What is said of work in progress."""

from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from tasks.run import progress


def test_the_summary_names_what_there_is_and_nothing_else():
    counts = Counter(done=10, cached=4, tokens=3000, critic_tokens=1200, cost=0.25)
    # 3000 tokens in 2 s
    assert progress.summary(counts, 2.0) == (
        "4 cached · 1,500 tokens/s · critic 1,200 tokens · cost 0.25"
    )
    assert progress.summary(Counter(done=3), 1.0) == ""


def test_long_work_outside_a_terminal_says_where_it_is_in_a_line(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE", -1.0)  # a minute is over each time
    panel = progress.Panel()
    with panel.bar("rounds of grpo/seed-0", total=3) as advance:
        advance(1)
        with panel.bar("samples [of] a round", total=8) as sampled:
            sampled(6, cached=2)
    assert capfd.readouterr().err.splitlines() == [
        "rounds of grpo/seed-0: 1 of 3",
        "rounds of grpo/seed-0: 1 of 3 › samples [of] a round: 6 of 8 · 2 cached",
    ]


def test_a_short_bar_outside_a_terminal_and_a_run_says_nothing(capfd):
    panel = progress.Panel()
    with panel.bar("work", total=2) as advance:
        advance(1, tokens=5)
        advance(1, failed=1)
    assert capfd.readouterr() == ("", "")


def test_a_bar_moves_along_with_the_step_that_is_at_work():
    panel = progress.Panel()
    around = lambda: next(each.completed for each in panel._progress.tasks)  # noqa: E731
    with panel.bar("conditions", total=2) as advance:
        for done in (0, 1):
            with panel.bar("rounds", total=4, part=True) as step:
                step(1)
                with panel.bar("samples of a round", total=8) as sampled:
                    sampled(6)
                assert around() == done + 0.25
                step(2)
                assert around() == done + 0.75
            advance(1)
            assert around() == done + 1


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("gone"),
        PrefectHTTPStatusError(
            "500", request=httpx.Request("POST", "http://x"), response=httpx.Response(500)
        ),
    ],
)
def test_work_goes_on_where_prefect_cannot_draw_it(error, monkeypatch, capfd):
    asked = []

    def failing(*_, **__):
        asked.append(1)
        raise error

    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setattr(progress.TaskRunContext, "get", lambda: True)
    monkeypatch.setattr(progress, "get_run_logger", lambda: SimpleNamespace(info=lambda text: 0))
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", failing)
    with progress.Panel().bar("samples", total=3) as advance:
        for _ in range(3):
            advance(1)
    assert len(asked) == 1
    assert capfd.readouterr().err.count("no more progress of samples in Prefect") == 1


def test_a_note_is_a_line(capfd):
    progress.note("grpo/seed-0 [bold]done[/]")
    assert capfd.readouterr().err == "grpo/seed-0 [bold]done[/]\n"


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("quickstart", "comparison"), "quickstart-comparison"),
        (("GSM8K_v1.2", "x"), "gsm8k-v1-2-x"),
    ],
)
def test_keys_are_what_prefect_allows(parts, key):
    assert progress.artifact_key(*parts) == key
