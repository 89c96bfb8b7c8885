"""The benchmarks compare like with like: on small inputs every path gives the same loss."""

import json
import random
import sys
import warnings

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.paths import DATA, ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for name in (
        "_losses",
        "_rows",
        "growth",
        "_measure",
        "_steps",
        "mfu",
        "validation",
        "word_oracle",
    ):
        sys.modules.pop(name, None)


def test_validation_runs_on_a_small_file_in_gsm8ks_form(capsys):
    import validation

    validation.main(DATA / "worked_solutions.jsonl")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["name"] == "validation" and figures["critiques"] == 3
    assert figures["true_steps"] == figures["planted"] == 9
    assert figures["refused"] == figures["flagged"] == figures["flagged_latex"] == 0
    assert figures["noticed"] == 1 and figures["noticed_latex"] > 0.6


def test_the_oracle_is_measured_on_word_problems(capsys):
    import word_oracle

    word_oracle.main(60)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["holds"] and figures["headline"] == figures["right_passed"] == 1
    assert figures["faults"] > 200 and figures["corrected_right"] == 1
    assert set(figures["share"]) == {"slip", "operand", "distractor", "operation"}


@pytest.mark.night
def test_growth_is_measured_on_rows_that_the_tables_take(tmp_path):
    import growth

    made = growth.rollouts(10_000, tmp_path)
    reading = {"read a round", "resume", "summary", "report", "view"}
    assert made.keys() == reading | {"append", "export"}
    assert len(pl.read_parquet(tmp_path / "exported/data/rollouts/grpo/seed-0.parquet")) == 10_000
    assert growth.problems(300, tmp_path)["prepare"] > 0


def test_a_planted_result_differs_and_keeps_its_decimal_places():
    import validation

    rng = random.Random(0)
    for text in ("7", "0", "19.90", "1,200", "1{,}200", ".5"):
        plain = text.replace("{,}", "").replace(",", "")
        for _ in range(50):
            changed = validation.slip(text, rng)
            assert float(changed) != float(plain)
            assert len(changed.partition(".")[2]) == len(plain.partition(".")[2])


@pytest.mark.parametrize("trained", [False, True])
def test_loss_paths_agree(trained, monkeypatch):
    import _losses

    monkeypatch.setattr(_losses, "HIDDEN", 8)
    monkeypatch.setattr(_losses, "VOCABULARY", 50)
    found = {
        name: path(_losses.inputs(20, trained=trained))() for name, path in _losses.PATHS.items()
    }
    assert found["sdcore"] == pytest.approx(found["trl"], rel=1e-5)


def small():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_step_paths_agree_where_the_two_averages_do():
    import _steps

    examples = _steps.rollouts((6, 6, 6))  # of equal length: mean of means is the mean
    ours, theirs = _steps.ours(examples, build=small), _steps.trl([examples], small)
    for _ in range(3):
        assert ours() == pytest.approx(theirs(), rel=1e-4)


def test_peak_counts_what_is_alive_at_a_time():
    from _measure import peak_bytes

    def work():
        for _ in range(3):
            torch.empty(1000).fill_(1.0)  # freed each time
        held = [torch.empty(500) for _ in range(4)]
        del held

    assert peak_bytes(work) == pytest.approx(4 * 2000, rel=0.1)


def test_model_flops_by_hand(monkeypatch):
    import _steps
    import mfu

    monkeypatch.setattr(_steps, "smollm2", small)
    head = 49152 * 16
    # q, k, v, o: 4 * 16 * 16; three matrices of the MLP: 3 * 16 * 16; three norms: 3 * 16
    body = 7 * 256 + 48
    student, teacher = 10 + 2 * _steps.PROMPT, 10 + 2 * _steps.TEACHER_PROMPT
    expected = body * (6 * student + 2 * teacher) + head * 8 * 10
    assert mfu.model_flops((4, 6)) == expected
