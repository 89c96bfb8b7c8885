"""Stage 4: optimizer steps on the round's rollouts, then a checkpoint."""

import shutil
from typing import Any

import polars as pl
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.models.policies import weights_digest
from sdcore.schedule import Stage, checkpoint_rounds, signal_rounds
from sdcore.store.schema import TABLES
from sdcore.system.stopwatch import STOPWATCH
from sdcore.training.objectives import group_signals, objective_of
from sdcore.training.results import require_agreement
from sdcore.training.token_signals import signal_frame
from sdcore.training.trainer import Example, Trainer, Update
from tasks.maintenance.rerun import supersede
from tasks.run import live
from tasks.run.lineage import (
    Lineage,
    Reference,
    policy_row,
    remember_policy,
    round_contexts,
    round_critiques,
    round_rollouts,
)
from tasks.run.progress import note

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="distill {lineage.label} round {round_}")
def distill(lineage: Lineage, round_: int) -> Reference:
    """Train on the round's rollouts; store the checkpoint, if due, then the rows that speak of it.

    Where no rollout has a context, because the critic failed at all of them, the policy stays.

    Raises:
        TrainingError: the loss or gradient is not finite, or the sampler's log-probs are not the
            policy's.
    """
    with STOPWATCH.measure("compute"):
        rollouts = _with_contexts(lineage, round_)
    with live.training(lineage, round_) as trainer:
        with STOPWATCH.measure("compute"):
            updates = _trained(lineage, trainer, _examples(lineage, rollouts))
            for first in updates[:1]:
                require_agreement(first, getattr(torch, lineage.experiment.model.dtype))
        if not updates:
            note(f"{lineage.label} round {round_}: nothing to train on, the policy stays as it is")
        with STOPWATCH.measure("storage"):
            if saves := _saves(lineage, round_):
                trainer.save(lineage.checkpoint(round_ + 1))
            policy = _policy(lineage, round_, trainer.digest())
        _make_way(lineage, round_, policy["policy_id"])
    frames = {
        "policies": TABLES["policies"].frame([policy]),
        "updates": _updates(lineage, round_, policy["policy_id"], rollouts, updates),
    }
    if updates and round_ in signal_rounds(lineage.experiment):
        with STOPWATCH.measure("compute"):
            frames["token_signals"] = _token_signals(lineage, round_, rollouts, updates)
    lineage.store.append_soon(**frames)
    remember_policy(lineage, policy)
    if saves:
        _prune(lineage, round_)
    return Reference("policies", policy["policy_id"], 1)


def finished_rounds(lineage: Lineage) -> int:
    """Rounds that this lineage has behind it: their policies are stored, the last's weights too.

    Where the weights after a stored round are not there, or are others, because not every round
    has a checkpoint and only scored ones are kept, the round is trained again on its stored
    rollouts and gives the same policy.
    """
    total = lineage.experiment.training.rounds
    for round_, policy_id in sorted(lineage.stored.policies.items(), reverse=True):
        folder = lineage.checkpoint(round_)
        if round_ == total or (
            folder.exists() and _policy_id(lineage, round_, weights_digest(folder)) == policy_id
        ):
            return round_
    return 0


def _trained(lineage: Lineage, trainer: Trainer, examples: list[Example]) -> list[Update]:
    """The round's steps, each on its share of the rollouts; fewer where those are fewer."""
    steps = min(lineage.experiment.training.steps_per_round, len(examples))
    objective = objective_of(lineage.settings, lineage.experiment.sampling.temperature)
    if steps > 1 and objective.remembers:
        examples = trainer.remember(examples)
    return [trainer.step(examples[start::steps]) for start in range(steps)]


def _with_contexts(lineage: Lineage, round_: int) -> pl.DataFrame:
    """The round's rollouts that train: with their context for distillation, all for GRPO."""
    rollouts = round_rollouts(lineage, round_)
    if not objective_of(lineage.settings).prompted:
        return rollouts.with_columns(context=pl.lit(None), teacher_prompt_ids=pl.lit(None))
    contexts = round_contexts(lineage, round_).select("rollout_id", "context", "teacher_prompt_ids")
    return rollouts.join(contexts, on="rollout_id", maintain_order="left")


def _examples(lineage: Lineage, rollouts: pl.DataFrame) -> list[Example]:
    advantages, _ = _group_signals(lineage, rollouts)
    return [
        Example(
            rollout_id=row["rollout_id"],
            prompt_ids=row["prompt_ids"],
            response_ids=row["response_ids"],
            teacher_prompt_ids=row["teacher_prompt_ids"],
            advantage=advantage,
            sampled_logprobs=row["logprobs"],
        )
        for row, advantage in zip(rollouts.iter_rows(named=True), advantages, strict=True)
    ]


def _group_signals(lineage: Lineage, rollouts: pl.DataFrame) -> tuple[list[float | None], int]:
    """Advantages in row order, and groups without a signal; a group's rows are neighbours."""
    return group_signals(objective_of(lineage.settings), rollouts["reward"].to_list())


def _saves(lineage: Lineage, round_: int) -> bool:
    due = (round_ + 1) % lineage.experiment.training.save_every == 0
    return due or _scored(lineage, round_) or live.samples_from_disk(lineage)


def _scored(lineage: Lineage, round_: int) -> bool:
    return round_ + 1 in checkpoint_rounds(lineage.experiment, lineage.settings)


def _policy(lineage: Lineage, round_: int, digest: str) -> Row:
    training = lineage.experiment.training
    folder = lineage.checkpoint(round_ + 1)
    return lineage.columns | {
        "policy_id": _policy_id(lineage, round_ + 1, digest),
        "parent_id": policy_row(lineage, round_)["policy_id"],
        "step": (round_ + 1) * training.steps_per_round,
        "round": round_ + 1,
        "kind": "full" if training.lora is None else "lora",
        "path": str(folder.relative_to(lineage.root)) if _scored(lineage, round_) else None,
        "sha256": digest,
    }


def _policy_id(lineage: Lineage, round_: int, digest: str) -> str:
    return lineage.key(round_, digest)


def _make_way(lineage: Lineage, round_: int, policy_id: str) -> None:
    """Set aside what a round trained before has led to, where it gives other weights this time.

    On one kind of processor, with the same libraries, it gives the same; many GPU kernels do not.
    """
    if lineage.stored.policies.get(round_ + 1, policy_id) != policy_id:
        note(f"{lineage.label} round {round_}: other weights than before; what came of those is "
             "set aside")  # fmt: skip
        supersede(lineage, Stage.distill, round_)
        lineage.forget()


def _updates(
    lineage: Lineage, round_: int, policy_id: str, rollouts: pl.DataFrame, updates: list[Update]
) -> pl.DataFrame:
    _, silent = _group_signals(lineage, rollouts)
    first = round_ * lineage.experiment.training.steps_per_round + 1
    rows = [
        lineage.columns
        | {
            "update_id": lineage.key("update", step),
            "policy_id": policy_id,
            "round": round_,
            "step": step,
            "accuracy": rollouts["correct"].mean(),
            "mean_reward": rollouts["reward"].mean(),
            "zero_variance_groups": silent,
        }
        | update.columns
        for step, update in enumerate(updates, first)
    ]
    return TABLES["updates"].frame(rows)


def _token_signals(
    lineage: Lineage, round_: int, rollouts: pl.DataFrame, updates: list[Update]
) -> pl.DataFrame:
    """Signals of the round's rollouts as the first optimizer step that used them saw them."""
    critiques = round_critiques(lineage, round_)
    judged = critiques.select("rollout_id", "first_wrong_step", judged="valid")
    rows = rollouts.join(judged, on="rollout_id", how="left", maintain_order="left").with_columns(
        pl.col("judged").fill_null(False),
        pl.col("context").fill_null(lineage.settings.objective),
    )
    steps = len(updates)
    parts = [rows[start::steps].to_dicts() for start in range(steps)]
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    return pl.concat(
        signal_frame(tokenizer, part, update.signals, lineage.columns)
        for part, update in zip(parts, updates, strict=True)
    )


def _prune(lineage: Lineage, round_: int) -> None:
    """Drop the checkpoints before this round, except those that are scored."""
    kept = checkpoint_rounds(lineage.experiment, lineage.settings)
    stale = [
        folder
        for folder in lineage.folder.glob("round-*")
        if (number := int(folder.name.removeprefix("round-"))) <= round_ and number not in kept
    ]
    if stale:
        lineage.store.flush()  # what leads from there to the new one must not be lost
    for folder in stale:
        shutil.rmtree(folder)
