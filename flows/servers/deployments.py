"""Serve the deployments of prefect.yaml from this process, without a work pool."""

from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Schedule

from flows.servers.standing import DEPLOYMENTS


def deployments(file: Path = DEPLOYMENTS) -> list[RunnerDeployment]:
    """Return the deployments of the file; its work pools are for workers and left out."""
    return [
        _deployment(**entry) for entry in yaml.safe_load(file.read_text("utf-8"))["deployments"]
    ]


def _deployment(
    *,
    schedules: list[dict[str, Any]],
    concurrency_limit: dict[str, Any],
    work_pool: object,
    **entry: Any,
) -> RunnerDeployment:
    return RunnerDeployment.from_entrypoint(
        schedules=[Schedule(**schedule) for schedule in schedules],
        concurrency_limit=ConcurrencyLimitConfig(**concurrency_limit),
        **entry,
    )


if __name__ == "__main__":
    serve(*deployments(), pause_on_shutdown=False, print_starting_message=False)
