"""`sdcore design` in this process: without a Prefect server, and without the preflight's page."""

import pytest
from prefect import Task

import flows.compare_contexts
import flows.design
import flows.diagnose
import tasks.design
import tasks.diagnose
import tasks.evaluate


def without_server_and_pages(patch: pytest.MonkeyPatch, said: list[str]) -> None:
    """Run stages as plain functions, publish nothing, and put what is noted into a list."""
    for module in (flows.design, flows.compare_contexts, flows.diagnose):
        for name, value in [*vars(module).items()]:
            if isinstance(value, Task):
                patch.setattr(module, name, value.fn)
    patch.setattr(flows.compare_contexts, "streams", lambda round_: False)  # it submits a task
    for module in (tasks.design.artifacts, tasks.diagnose.artifacts):
        for name in ("publish_design", "publish_diagnosis"):
            patch.setattr(module, name, lambda *arguments: None)
    for module in (tasks.design, tasks.evaluate):
        patch.setattr(module, "note", said.append)
    patch.setattr(tasks.diagnose.page_of, "render_diagnosis", lambda *arguments: "")
    patch.setattr(tasks.diagnose.page_of, "examples", lambda *arguments: [])
