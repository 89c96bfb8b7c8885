"""The command `plan`: what an experiment takes, before anything is spent; its line before `run`."""

from dataclasses import asdict
from typing import Annotated

import polars as pl
import typer

from flows.commands.terminal import (
    ExperimentArgument,
    JsonOption,
    OverridesArgument,
    notes,
    print_json,
    print_table,
)
from sdcore.config import AUTO, Experiment, load_experiment
from sdcore.errors import SdcoreError
from sdcore.planning.estimate import Cost, Plan, duration
from sdcore.planning.estimate import plan as plan_of
from sdcore.planning.machines import GIB, Machine, named
from sdcore.planning.placement import described, placements

app = typer.Typer()
LONG = 3600.0  # seconds; a run that takes longer is announced
TIGHT = (
    "Memory: it fits only if the allocator leaves few holes. Lower training.tokens_per_microbatch, "
    'or set it to "auto", which counts with them.'
)


@app.command()
def plan(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    machine: Annotated[
        str | None,
        typer.Option(help="a GPU and how many, such as h100x8, h200x1, a100x4; or cpu for stated "
                     "speeds of this machine's cores; absent: this machine, measured"),
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="mean tokens of a response, where you know them")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="as in `sdcore run --workers`, each on such a machine alone"),
    ] = 1,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Plan an experiment: time, memory, disk and the critic's price, from its settings alone.

    No weights are loaded and nothing is downloaded.

    Example: sdcore plan paper --machine h100x8
    """
    settings = sampled_on(load_experiment(experiment, overrides or []), machine)
    with notes.status("planning"):
        chosen = None if machine is None else named(machine)
        planned = planned_on(settings, chosen, response_tokens)
    if as_json:
        print_json(as_dict(planned, workers))
        return
    print_table(_table(planned), title=settings.name)
    for line in _lines(planned, workers):
        notes.print(line, soft_wrap=True, highlight=False, markup=False)


def sampled_on(settings: Experiment, machine: str | None) -> Experiment:
    """Return the experiment with the engine of a new run on a named machine, or here; say which.

    An environment with vLLM is taken to be on a named machine.

    Raises:
        ConfigError: there is no such machine.
    """
    if settings.engine.kind != AUTO:
        return settings
    from flows.settling import chosen_here
    from sdcore.engines.choosing import choice

    if machine is None:
        chosen = chosen_here(settings)
    else:
        meant = named(machine)
        chosen = choice(settings.model, None, None, gpus=meant.count if meant.gpu else 0)
    notes.print(str(chosen), soft_wrap=True, highlight=False, markup=False)
    return settings.sampled_by(chosen.kind)


def planned_on(
    settings: Experiment, machine: Machine | None = None, response: float | None = None
) -> Plan:
    """Return the plan of an experiment for a machine, or for this one, which is measured.

    Raises:
        ModelError: the model's shape is not known.
        ConfigError: the GPU of this machine is not known.
    """
    from sdcore.models.folders import at_hand
    from sdcore.planning import machines
    from sdcore.planning.lengths import lengths_of
    from sdcore.planning.shapes import shape_of

    folder = at_hand(settings.model.name)
    shape = shape_of(settings.model.name, folder)
    if machine is None:
        model = settings.model
        machine = machines.present(shape.width, shape.inner, model.device, model.dtype)
    return plan_of(settings, shape, machine, lengths_of(settings, folder, response))


def announce(settings: Experiment) -> None:
    """Say in one line what a run takes that takes more than an hour, or that may not fit."""
    from sdcore.models.folders import SMOKE
    from sdcore.planning import machines

    if settings.model.name.startswith(SMOKE):
        return
    try:
        planned = planned_on(settings, machines.unmeasured(settings.model.device))
    except SdcoreError as error:
        notes.print(f"No estimate of time and memory: {error.what}", soft_wrap=True, markup=False)
        return
    if planned.misfits:
        more = " (`sdcore plan` shows all)" if len(planned.misfits) > 1 else ""
        notes.print(f"May not fit: {planned.misfits[0]}{more}", soft_wrap=True, markup=False)
    elif planned.tight:
        notes.print(TIGHT, soft_wrap=True, markup=False)
    if planned.whole.seconds > LONG:
        price = f", {planned.whole.price:,.2f} for the critic" if planned.whole.price else ""
        notes.print(
            f"Takes about {duration(planned.whole.seconds)} with one worker on "
            f"{planned.machine.name}{price}, less what is stored already; bound by "
            f"{planned.bound}. `sdcore plan` shows the stages.",
            soft_wrap=True,
            markup=False,
        )


def as_dict(planned: Plan, workers: int) -> dict[str, object]:
    """Return a plan as JSON has it: seconds, bytes, and shares of 1.

    `seconds` and `use` are those of one worker; `together` has those of all.
    """
    return {
        "experiment": planned.experiment.name,
        "engine": planned.experiment.engine.kind,
        "machine": asdict(planned.machine),
        "parameters": planned.shape.parameters,
        "lengths": asdict(planned.lengths),
        "stages": {name: asdict(cost) for name, cost in planned.stages.items()},
        "seconds": planned.whole.seconds,
        "device_seconds": planned.device_seconds,
        "use": planned.use,
        "price": planned.whole.price,
        "memory": asdict(planned.memory) | {"total": planned.memory.total},
        "holes": planned.holes,
        "tokens_per_microbatch": planned.tokens_per_microbatch,
        "checkpoints_kept": planned.kept,
        "fits": not planned.misfits,
        "misfits": list(planned.misfits),
        "bound": planned.bound,
        "second_worker": planned.second_worker,
        "together": {
            "workers": workers,
            "seconds": planned.seconds_with(workers),
            "use": planned.use_with(workers),
        },
    }


def _table(planned: Plan) -> pl.DataFrame:
    stages = {name: cost for name, cost in planned.stages.items() if cost.seconds}
    return pl.DataFrame(
        [_row(planned, name, cost) for name, cost in stages.items()]
        + [_row(planned, "all", planned.whole)]
    )


def _row(planned: Plan, name: str, cost: Cost) -> dict[str, object]:
    count = planned.machine.count
    # What a stage does beside another one keeps devices busy, and adds no time: more than 100 %.
    row: dict[str, object] = {
        "stage": name,
        "tokens": amount(cost.tokens),
        "FLOPs": amount(cost.flops),
        "time": duration(cost.seconds),
        "device-hours": f"{count * cost.seconds / 3600:.3g}",
        "use": f"{min(1, cost.busy / (count * cost.seconds)):.0%}" if cost.seconds else "",
        "written": f"{amount(cost.written)}B",
    }
    critic = planned.experiment.critic
    if critic and critic.models:
        row["critic's tokens"] = amount(cost.critic_in + cost.critic_out)
        row["price"] = f"{cost.price:,.2f}"
    return row


def _lines(planned: Plan, workers: int) -> list[str]:
    memory, machine, gib = planned.memory, planned.machine, GIB
    parts = ", ".join(f"{name} {size / gib:.1f}" for name, size in asdict(memory).items())
    most = f"The allocator's holes may add up to {planned.holes / gib:.1f} GiB. "
    holes = most if planned.holes else ""
    return [
        f"Model: {planned.shape.parameters:,} parameters. Machine: {machine.name} "
        f"({machine.source}).",
        f"Lengths: {planned.lengths.basis}; prompts of {planned.lengths.prompt:.0f} tokens, the "
        f"teacher's of {planned.lengths.shown:.0f}.",
        f"Memory of the fullest device: {memory.total / gib:.1f} of {machine.memory / gib:.0f} GiB "
        f"({parts}), with micro-batches of at most {planned.tokens_per_microbatch:,} tokens. "
        f"{holes}Checkpoints that stay: {amount(planned.kept)}B.",
        *_sampler(planned),
        f"Bound by {planned.bound}.",
        f"One more worker would bring {planned.second_worker}."
        if workers == 1
        else f"With {workers} workers: {duration(planned.seconds_with(workers))}, devices used "
        f"{planned.use_with(workers):.0%} of the time.",
        *(f"Does not fit: {line}" for line in planned.misfits),
        *([] if planned.misfits else [TIGHT if planned.tight else "It fits."]),
    ]


def _sampler(planned: Plan) -> list[str]:
    """The GPUs, and what a vLLM server of the run's own takes of one."""
    machine, experiment, serving = planned.machine, planned.experiment, planned.serving
    lines = []
    if machine.gpu:
        gpus = [str(number) for number in range(machine.count)]
        placed = placements(experiment, gpus, ranks=machine.count)
        launched = " with torchrun, which this plan is for" if machine.count > 1 else ""
        lines.append(f"GPUs{launched}: {described(placed, gpus)}.")
        if machine.count > 1:
            alone = described(placements(experiment, gpus), gpus)
            lines.append(f"GPUs without torchrun: {alone}; --workers shares them out.")
    if serving is not None:
        lines.append(
            f"vLLM on each of its devices: {serving.total / GIB:.1f} GiB, of which "
            f"{serving.cache / GIB:.1f} for keys and values; sequences of up to "
            f"{serving.context_length:,} tokens."
        )
    return lines


def amount(number: float) -> str:
    """Return a number in three digits with its unit of a thousand, such as `1.23 G`."""
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if abs(number) < 999.5 or unit == " E":
            return f"{number:.3g}{unit}" if unit else f"{number:.0f}"
        number /= 1000
    raise AssertionError("the last unit returns")
