"""A language model's answers are judged rightly: a corpus made by hand."""

import json
from pathlib import Path

import pytest

from sdcore.alignment import Submission
from sdcore.critics import judge
from sdcore.grading import grade
from sdcore.traces import parse_trace

LINES = (Path(__file__).parent / "data" / "critiques.jsonl").read_text("utf-8").splitlines()
CORPUS = [json.loads(line) for line in LINES]


def submission(row: dict) -> Submission:
    correct = grade(parse_trace(row["trace"]).answer, row["answer"]).correct
    return Submission(row["question"], row["trace"], correct, row["answer"])


@pytest.mark.parametrize("row", CORPUS, ids=[row["name"] for row in CORPUS])
def test_corpus(row):
    found = judge(row["says"], submission(row))
    assert found.valid == row["valid"], found.invalid_reason
    assert found.raw == row["says"]
    if row["valid"]:
        assert (found.case, found.first_wrong_step) == (row["case"], row["first_wrong_step"])
        assert found.corrected == row["corrected"]
        assert found.repaired == row["repaired"] and found.invalid_reason is None
    else:
        assert row["reason"] in found.invalid_reason and found.corrected is None
