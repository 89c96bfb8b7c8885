import pytest

from sdcore.reports.heatmaps import examples, level, lines
from sdcore.store.database import Store
from tests.helpers.example import EXPERIMENT, TRACE, fill, rollout, signals


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [(0.0, ""), (-0.09, ""), (-0.1, "n1"), (0.3, "p2"), (-0.5, "n3"), (-1.99, "n4"), (7.0, "p5")],
)
def test_levels_grow_with_the_advantage(advantage, expected):
    assert level(advantage) == expected


def test_a_trace_is_cut_into_its_steps():
    row = rollout("reference", 0, "train", 0, "train0", 0, correct=False)
    cut = lines(signals(row, "reference"), TRACE)
    assert ["".join(token.text for token in line.tokens) for line in cut] == [
        "<step_1>12+30=42</step_1>",
        "<step_2>42-5=38</step_2>",
        "<answer>38</answer>",
    ]
    assert [line.region for line in cut] == ["before", "at", "answer"]
    # Step 2: five tokens at -0.6 and two tags at 0 make -3 / 7.
    assert cut[1].mean == "−0.43"


def test_a_token_across_two_steps_stays_in_the_first():
    tokens = [
        {"token": text, "start": start, "region": "before", "advantage": 0.0,
         "student_logprob": 0.0, "teacher_logprob": None, "kl": None, "weight": None}
        for start, text in ((0, "<step_1>a</step_1"), (17, "><"), (19, "step_2>b</step_2>"))
    ]  # fmt: skip
    cut = lines(tokens, "<step_1>a</step_1><step_2>b</step_2>")
    assert [len(line.tokens) for line in cut] == [2, 1]


def test_the_same_wrong_trace_is_shown_under_every_condition(store):
    first, second = examples(
        store, EXPERIMENT.experiment_id, list(EXPERIMENT.conditions), correct=False, count=5
    )
    assert (first.seed, second.seed) == (0, 1)
    assert first.wrong_step == 2 and first.answer == "38" and first.reference == "37"
    assert [heatmap.name for heatmap in first.maps] == ["grpo", "reference", "step_aligned"]
    assert first.maps[0].context is None
    assert first.maps[1].context.startswith("42 - 5 = 37")
    worst = first.maps[2].lines[1].tokens[3]
    assert (worst.text, worst.level) == ("5", "n5")
    assert worst.title == "advantage −2.30, log p −0.10, with the context −2.40, KL 0.30, weight 1"


def test_correct_traces_have_no_wrong_step(store):
    (example, _) = examples(store, EXPERIMENT.experiment_id, ["reference"], correct=True, count=5)
    assert example.wrong_step is None
    assert {line.region for line in example.maps[0].lines} == {"before", "answer"}


def test_a_character_of_several_tokens_is_shown_once_with_their_sum():
    """√ as three tokens: log-probs and KL add up, and the line's mean stays that of tokens."""
    tokens = [
        {"token": text, "start": start, "region": "at", "advantage": advantage,
         "student_logprob": -0.5, "teacher_logprob": -0.5 + advantage, "kl": 0.1,
         "weight": weight}
        for text, start, advantage, weight in (
            ("√", 8, -0.2, 0.25), ("√", 8, -0.4, 0.25), ("√", 8, 0.0, 0.25), ("9", 9, 1.0, 0.0)
        )
    ]  # fmt: skip
    text = "<step_1>√9</step_1><step_2>3</step_2>"
    later = [tokens[3] | {"token": "3", "start": 27}]
    first, second = lines(tokens + later, text)
    assert [(token.text, token.level) for token in first.tokens] == [("√", "n3"), ("9", "p4")]
    assert first.tokens[0].title == (
        "advantage −0.60, log p −1.50, with the context −2.10, KL 0.30, weight 0.25"
    )
    assert [(token.text, token.unused) for token in first.tokens] == [("√", False), ("9", True)]
    assert first.tokens[1].title.endswith("weight 0")
    assert first.mean == "+0.10"
    assert [token.text for token in second.tokens] == ["3"]
