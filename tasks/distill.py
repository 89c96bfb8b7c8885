"""Stage 4: optimizer steps on the round's rollouts, then the round's commit and its checkpoint."""

import shutil
from collections.abc import Sequence

import polars as pl
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.health import last_good
from sdcore.config import OBJECTIVES
from sdcore.schedule import checkpoint_rounds, signal_rounds
from sdcore.store.schema import TABLES
from sdcore.training.checkpoints import has_state
from sdcore.training.objectives import group_signals, objective_of
from sdcore.training.results import require_agreement
from sdcore.training.token_signals import signal_frame
from sdcore.training.trainer import Example, Trainer, Update
from sdcore.training.weightings import Region, regions_of
from tasks.health import health_of
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.live import samples_from_disk
from tasks.run.progress import note
from tasks.run.rounds import Round


@task(cache_policy=NO_CACHE, task_run_name="distill {round_.label}")
def distill(round_: Round) -> int:
    """Train on the round's rollouts; commit the round, then write its checkpoint, if one is due.

    The policy stays where nothing is to be learned: no rollout has a context, because the critic
    failed at all of them, or every token has weight 0. A single step is left out likewise.

    Returns:
        How many optimizer steps were taken.

    Raises:
        TrainingError: the loss or gradient is not finite, or the sampler's log-probs are not the
            policy's.
    """
    run = round_.run
    on_policy = round_.sampler == round_.policy
    held = _sampled_share(round_) if on_policy else None
    with run.session.models.training(run, round_.number) as trainer:
        with run.session.clock.measure("compute"):
            drift = trainer.drift(_probes(run)) if len(run.probes) else None
            rows, steps = train(round_, trainer)
            digest = trainer.digest()
        updates = [step for step in steps if step is not None]
        for first in updates[: int(on_policy)]:
            require_agreement(first, getattr(torch, run.experiment.model.dtype))
        if not updates:
            note(f"{round_.label}: nothing to train on, the policy stays as it is")
        policy = _policy_after(round_, digest)
        frames = {"updates": _updates(round_, policy, rows, steps, held, drift)}
        if updates and round_.number in signal_rounds(run.experiment):
            frames["token_signals"] = _token_signals(round_, rows, steps)
        round_.commit(policy, frames)
        if _saves(run, policy.round):
            with run.session.clock.measure("storage"):
                folder = run.checkpoint(policy.round)
                trainer.save(folder, resumable=_due(run, policy.round))
    if _saves(run, policy.round):
        _prune(run, policy.round)
    run.session.send()
    return len(updates)


def train(round_: Round, trainer: Trainer) -> tuple[pl.DataFrame, list[Update | None]]:
    """Take the round's steps, each on its share of the rollouts; fewer where those are fewer.

    Args:
        round_: with its rollouts and contexts, as `align` leaves it.
        trainer: holds the round's policy; every call with the same gives the same weights.

    Returns:
        The rollouts that train, with their contexts, and the steps. None stands for a step that was
        not taken, because all weights of its tokens are 0.
    """
    run, rows = round_.run, _with_contexts(round_)
    examples = _examples(round_, rows)
    steps = min(run.experiment.training.steps_per_round, len(examples))
    objective = objective_of(run.settings, run.experiment.sampling.temperature)
    if steps > 1 and objective.remembers:
        examples = trainer.remember(examples)
    taken = []
    for start in range(steps):
        run.session.interrupts.stop_if_asked()
        with OBJECTIVES.running(run.settings.objective):
            taken.append(trainer.step(examples[start::steps]))
    return rows, taken


def _sampled_share(round_: Round) -> float | None:
    sampler = round_.run.session.models.engine(round_.run, round_.number, round_.policy.policy_id)
    return sampler.update_share


def _probes(run: ConditionRun) -> list[Example]:
    """Rollouts of the base, whose log-probs show how far the weights are from it."""
    return [
        Example(
            row["rollout_id"], row["prompt_ids"], row["response_ids"],
            sampled_logprobs=row["logprobs"],
        )
        for row in run.probes.iter_rows(named=True)
    ]  # fmt: skip


def _with_contexts(round_: Round) -> pl.DataFrame:
    """The rollouts that train: with their context for distillation, all of them for GRPO."""
    rollouts = round_.frames["rollouts"]
    if not objective_of(round_.run.settings).prompted:
        return rollouts.with_columns(context=pl.lit(None), teacher_prompt_ids=pl.lit(None))
    contexts = round_.frames["contexts"].select("rollout_id", "context", "teacher_prompt_ids")
    return rollouts.join(contexts, on="rollout_id", maintain_order="left")


def _examples(round_: Round, rows: pl.DataFrame) -> list[Example]:
    advantages, _ = _group_signals(round_)
    regions = _regions(round_)
    return [
        Example(
            rollout_id=row["rollout_id"],
            prompt_ids=row["prompt_ids"],
            response_ids=row["response_ids"],
            teacher_prompt_ids=row["teacher_prompt_ids"],
            advantage=advantages[row["rollout_id"]],
            sampled_logprobs=row["logprobs"],
            correct=row["correct"],
            regions=regions.get(row["rollout_id"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def _regions(round_: Round) -> dict[str, Sequence[Region] | None]:
    """Return the regions of response tokens by rollout id; None where the weighting needs none."""
    run = round_.run
    if "regions" not in run.settings.weighting.needs:
        return {}
    return {each.rollout.rollout_id: regions_of(run.tokenizer, each) for each in round_.judged()}


def _group_signals(round_: Round) -> tuple[dict[str, float | None], int]:
    """Advantages by rollout id, and groups without a signal; rollouts left out count in theirs."""
    rewards = [rollout.reward for rollout in round_.rollouts]
    settings = round_.run.settings
    with OBJECTIVES.running(settings.objective):
        advantages, silent = group_signals(objective_of(settings), rewards)
    ids = [rollout.rollout_id for rollout in round_.rollouts]
    return dict(zip(ids, advantages, strict=True)), silent


def _saves(run: ConditionRun, round_: int) -> bool:
    return _due(run, round_) or samples_from_disk(run)


def _due(run: ConditionRun, round_: int) -> bool:
    """Return whether a whole checkpoint is due; else a sampler needs the weights at most."""
    due = round_ % run.experiment.training.save_every == 0
    due |= bool(run.experiment.health.stop_when)  # any of them may turn out to be the last good one
    due |= run.session.outbox is not None  # another node may have to go on from it
    return due or _scored(run, round_)


def _scored(run: ConditionRun, round_: int) -> bool:
    return round_ in checkpoint_rounds(run.experiment, run.settings)


def _policy_after(round_: Round, digest: str) -> StoredPolicy:
    run, training, number = round_.run, round_.run.experiment.training, round_.number + 1
    path = str(run.checkpoint(number).relative_to(run.root)) if _scored(run, number) else None
    return StoredPolicy(
        **run.columns,  # type: ignore[arg-type]
        policy_id=run.key(number, digest),
        parent_id=round_.policy.policy_id,
        step=number * training.steps_per_round,
        round=number,
        kind="full" if training.lora is None else "lora",
        path=path,
        sha256=digest,
    )


def _updates(
    round_: Round,
    policy: StoredPolicy,
    rows: pl.DataFrame,
    steps: Sequence[Update | None],
    held: float | None,
    drift: float | None,
) -> pl.DataFrame:
    run, (_, silent) = round_.run, _group_signals(round_)
    first = policy.step - run.experiment.training.steps_per_round + 1
    made = [
        run.columns
        | {
            "update_id": run.key("update", step),
            "policy_id": policy.policy_id,
            "round": policy.round - 1,
            "step": step,
            "accuracy": rows["correct"].mean(),
            "mean_reward": rows["reward"].mean(),
            "zero_variance_groups": silent,
            "sampled_update_share": held,
            "base_drift": drift,
        }
        | update.columns
        for step, update in enumerate(steps, first)
        if update is not None
    ]
    return TABLES["updates"].frame(made)


def _token_signals(
    round_: Round, rows: pl.DataFrame, steps: Sequence[Update | None]
) -> pl.DataFrame:
    """Signals of the round's rollouts as the optimizer step that used them saw them."""
    run, critiques = round_.run, round_.critiques
    known = [critiques.get(rollout_id) for rollout_id in rows["rollout_id"]]
    rows = rows.with_columns(
        pl.Series("first_wrong_step", [c and c.first_wrong_step for c in known], pl.Int64),
        pl.Series("judged", [c is not None and c.valid for c in known], pl.Boolean),
        pl.col("context").fill_null(run.settings.objective),
    )
    parts = [rows[start :: len(steps)].to_dicts() for start in range(len(steps))]
    tokenizer = run.tokenizer
    return pl.concat(
        signal_frame(tokenizer, part, update.signals, run.columns)
        for part, update in zip(parts, steps, strict=True)
        if update is not None
    )


def _prune(run: ConditionRun, last: int) -> None:
    """Drop the checkpoints before the last one, except those that are scored or may yet be.

    The last one that training can go on from is kept too, and the one that a lagging sampler takes.
    """
    whole = [number for number in range(last + 1) if has_state(run.checkpoint(number))]
    lag = run.experiment.training.lag
    kept = {last, last - lag, *whole[-1:], *checkpoint_rounds(run.experiment, run.settings)}
    if run.experiment.health.stop_when:
        kept.add(last_good(health_of(run), run.experiment.health, lag))
    for number, folder in run.checkpoints().items():
        if number < last and number not in kept:
            shutil.rmtree(folder)
