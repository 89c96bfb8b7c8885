"""The commands that examine and find feedback: contexts, diagnose, predict, design, critic-eval."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from flows.commands.terminal import (
    ExperimentArgument,
    JsonOption,
    OverridesArgument,
    WorkspaceOption,
    notes,
    print_json,
    print_table,
    print_tables,
    served,
)
from flows.settling import settled
from sdcore.config import CRITICS, ENGINES, OBJECTIVES, SOURCES, WEIGHTINGS, load_experiment
from sdcore.contexts import CONTEXTS
from sdcore.grading.graders import GRADERS
from sdcore.registry import Registry

app = typer.Typer()


@app.command()
def contexts(as_json: JsonOption = False) -> None:
    """List the registered contexts, what each one tests, and the result predicted for it.

    Example: sdcore contexts
    """
    rows = [
        {
            "context": context.name,
            "needs": ", ".join(sorted(context.needs)),
            "tests": context.about,
            "predicted": context.predicted,
        }
        for context in CONTEXTS.entries().values()
    ]
    print_json(rows) if as_json else print_table(pl.DataFrame(rows))


def _lister(registry: Registry[Any]) -> Callable[..., None]:
    """Return the command that lists a registry, built-in and installed entries alike."""

    def entries(as_json: JsonOption = False) -> None:
        rows = [
            {registry.kind: entry.name, "about": entry.about}
            for entry in registry.entries().values()
        ]
        print_json(rows) if as_json else print_table(pl.DataFrame(rows))

    entries.__doc__ = (
        f"List the {registry.kind}s that an experiment can name.\n\n"
        f"Your own is named by its import path, my_module:my_{registry.kind}.\n\n"
        f"Example: sdcore {registry.kind}s"
    )
    return entries


for _registry in (OBJECTIVES, WEIGHTINGS, ENGINES, CRITICS, SOURCES, GRADERS):
    app.command(f"{_registry.kind}s")(_lister(_registry))


@app.command()
def diagnose(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check before any training what can be gained, and which context points at the errors.

    Example: sdcore diagnose quickstart diagnose.problems=64
    """
    settings = settled(load_experiment(experiment, overrides or []), workspace)
    with served(workspace) as ready:
        from flows.diagnose import diagnose as flow

        ready()
        diagnosis = flow(settings, workspace)
    from sdcore.reports.preflight import as_dict, printable

    if as_json:
        print_json(as_dict(diagnosis))
    else:
        print_tables(printable(settings, diagnosis))
    page = workspace / "reports" / f"{settings.experiment_id}-diagnosis.html"
    notes.print(f"Report: {page}", soft_wrap=True)


@app.command()
def predict(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Compare the preflight's measures with the gains of a finished run: did it predict them?

    Example: sdcore predict predict
    """
    settings = settled(load_experiment(experiment, overrides or []), workspace)
    with served(workspace) as ready:
        from flows.predict import predict as flow

        ready()
        found = flow(settings, workspace)
    from sdcore.reports.prediction import as_dict, printable

    if as_json:
        print_json(as_dict(found))
    else:
        print_tables(printable(found))
    figure = workspace / "reports" / f"{settings.experiment_id}-predict.png"
    notes.print(f"Figure: {figure}", soft_wrap=True)


@app.command()
def design(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Find the feedback that trains the model best: preflight, short runs, confirmation.

    It first prints the most tokens that it can sample; `design.max_tokens` limits them. The same
    command again continues where it stopped. The winner's file is written beside the page.

    Example: sdcore design quickstart design.max_tokens=5000000
    """
    settings = settled(load_experiment(experiment, overrides or []), workspace)
    with served(workspace) as ready:
        from flows.design import design as flow

        ready()
        outcome = flow(settings, workspace)
    from sdcore.reports.design import as_dict, printable

    if as_json:
        print_json(as_dict(outcome))
    else:
        print_tables(printable(outcome))
    notes.print(f"Report: {workspace / 'reports' / outcome.page_name}", soft_wrap=True)
    if outcome.file is not None:
        path = workspace / "reports" / outcome.file_name
        notes.print(f"The winner's file: sdcore run {path}", soft_wrap=True)


@app.command("critic-eval")
def critic_eval(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    solutions: Annotated[
        int, typer.Option(min=2, help="number of solutions to judge, at most")
    ] = 200,
    processbench: Annotated[
        Path | None,
        typer.Option(help="ProcessBench's file: a JSON array, or JSONL"),
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Measure a critic on solutions whose first wrong step is known.

    Without --processbench the solutions are made from the experiment's problems.

    Example: sdcore critic-eval gsm8k-critic problems.path=train.jsonl --solutions 50
    """
    settings = settled(load_experiment(experiment, overrides or []), workspace)
    with served(workspace) as ready:
        from flows.critic_eval import critic_eval as flow

        ready()
        scores = flow(settings, workspace, solutions, processbench)
    if as_json:
        print_json(scores)
        return
    print_table(
        pl.DataFrame([scores]).transpose(
            include_header=True, header_name="score", column_names=["value"]
        )
    )
