"""The flow that makes `builtin:tiny-solver` from scratch."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from sdcore.tiny_solver.build import Recipe, build
from tasks.run.progress import Panel


@flow(flow_run_name="build tiny-solver in {folder.name}")
def build_tiny_solver(folder: Path) -> dict[str, float]:
    """Pre-train the model into `folder`, with tokenizer and model card; return its measures."""
    return pretrain(folder)


@task(cache_policy=NO_CACHE)
def pretrain(folder: Path) -> dict[str, float]:
    """The one stage: minutes on two cores."""
    recipe = Recipe()
    with Panel().bar("pre-training steps", total=recipe.steps) as advance:
        return build(folder, recipe, lambda step, losses: advance(1))
