import pytest
import torch

from sdcore.tiny_solver.tokenizer import build_tokenizer
from sdcore.training.results import TokenSignals
from sdcore.training.token_signals import UNJUDGED, signal_frame

TOKENIZER = build_tokenizer()
TEXT = "<step_1>1+1=2</step_1><step_2>2+3=6</step_2><step_3>6+1=7</step_3><answer>7</answer>"
RUN = {"experiment_id": "e", "condition": "c", "seed": 0}


@pytest.mark.parametrize(
    ("judged", "correct", "expected"),
    [
        (True, False, {1: "before", 2: "at", 3: "after"}),
        # refused, though it keeps the claim that the second step is wrong
        (False, False, dict.fromkeys((1, 2, 3), UNJUDGED)),
        (False, True, dict.fromkeys((1, 2, 3), "before")),
    ],
)
def test_the_claim_of_a_refused_critique_names_no_regions(judged, correct, expected):
    ids = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"]
    rollout = {
        "rollout_id": "r", "context": "own", "policy_id": "p", "round": 0, "response_ids": ids,
        "text": TEXT, "correct": correct, "judged": judged, "first_wrong_step": 2,
    }  # fmt: skip
    zeros = torch.zeros(len(ids))
    frame = signal_frame(TOKENIZER, [rollout], [TokenSignals(zeros, zeros, zeros)], RUN)
    steps = frame.drop_nulls("step").select("step", "region").unique().iter_rows()
    assert dict(steps) == expected
