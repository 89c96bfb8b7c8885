"""ProcessBench's published files, from the command line to the printed figures."""

import json

import pytest

from tests.helpers import critic_server
from tests.helpers.paths import DATA
from tests.helpers.runs import sdcore

pytestmark = pytest.mark.usefixtures("prefect")


def test_processbench_is_scored_on_claims_and_the_critic_is_told_no_verdict(tmp_path):
    """Step 1 is always blamed: right about 2 of 3 wrong solutions, about no right one."""

    def answer(body):
        return critic_server.critique("D", 1, "<step_1>1 + 1 = 2</step_1><answer>2</answer>")

    file = DATA / "processbench.json"
    with critic_server.serve(answer) as (url, asked):
        scores = json.loads(
            sdcore(
                "critic-eval", "gsm8k-critic", f"critic.base_url={url}", "critic.model=m",
                f"problems.path={DATA / 'worked_solutions.jsonl'}", "--processbench", file,
                "--workspace", tmp_path, "--json",
            ).stdout
        )  # fmt: skip
    assert (scores["wrong_solutions"], scores["right_solutions"]) == (3, 3)
    assert scores["error_accuracy"] == pytest.approx(2 / 3)
    assert (scores["correct_accuracy"], scores["f1"], scores["false_alarms"]) == (0, 0, 1)
    prompts = [request["messages"][0]["content"] for request in asked]
    assert len(prompts) >= 6
    assert not any("its answer is" in text or "final answer is" in text for text in prompts)
