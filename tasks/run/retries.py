"""Retry policy of stages: two retries for errors that may be transient, each logged."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun

from sdcore.errors import EngineError
from tasks.run.progress import note

PASSING = (EngineError, ConnectionError, TimeoutError)  # a server that dies or is busy; the tables


def _may_pass(task: object, run: TaskRun, state: State[Any]) -> bool:
    again = isinstance(state.data, PASSING)
    if again:
        note(f"{run.name} failed and is tried again: {state.data}")
    return again


# For @task(**RETRIES): stages that sample or ask a critic; rows that they have stored are kept.
RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [2, 15],
    "retry_condition_fn": _may_pass,
}
