"""Which failures of a stage are tried again."""

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from sdcore.errors import EngineError, StoreBusyError, TrainingError
from tasks.run.retries import RETRIES

RUN = TaskRun(name="sample grpo/seed-0 round 3", task_key="sample", dynamic_key="0")


def tried_again(error):
    return RETRIES["retry_condition_fn"](None, RUN, Failed(data=error))


@pytest.mark.parametrize("error", [EngineError("the server is gone"), StoreBusyError("busy")])
def test_what_may_pass_is_tried_again_and_said(error, capfd):
    assert tried_again(error)
    assert f"{RUN.name} failed and is tried again: {error}" in capfd.readouterr().err


@pytest.mark.parametrize("error", [TrainingError("the loss is not finite"), KeyError("row")])
def test_what_will_not_pass_fails_at_once(error, capfd):
    assert not tried_again(error)
    assert capfd.readouterr().err == ""
