"""Stage 1½, where an experiment asks for it: a short supervised stage makes the base policy."""

from pathlib import Path

import polars as pl
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import WarmupConfig
from sdcore.errors import ModelError
from sdcore.models import policies, weight_files
from sdcore.models.adapters import base_weights, merged_weights
from sdcore.models.prompts import end_of_turn
from sdcore.schedule import round_questions
from sdcore.store.schema import TABLES
from sdcore.training import warmup
from sdcore.training.trainer import Example, Trainer, Update
from tasks.run.checkpoints import damaged_checkpoints
from tasks.run.condition_run import RAW, ConditionRun, StoredPolicy
from tasks.run.progress import note

KEPT = 0.9  # share of the update; where the base keeps less, a note says so


@task(cache_policy=NO_CACHE, task_run_name="warm up {base.experiment.name}")
def warm_up(base: ConditionRun) -> StoredPolicy:
    """Train the named model on well-formed traces and store it as the base, unless it is there.

    An interrupted stage starts over: it draws no random numbers but seeded ones, so that the
    weights come out the same. So does one whose weights on disk are missing or damaged.

    Raises:
        ModelError: they do not come out the same.
    """
    settings = base.experiment.warmup
    assert settings is not None, "the experiment has no warm-up"
    lost = damaged_checkpoints(base)
    if lost:
        note(
            "the warmed-up base is missing or damaged "
            f"({lost[0].reason.what}); training it again on its traces"
        )
    if lost or not len(base.store.rows("policies", round=0, **base.columns)):
        named = base.session.models.folder(base.experiment.model.name)
        trainer = base.session.models.new_trainer(base, settings, named, settings.steps)
        steps = _trained(base, settings, trainer)
        trained = merged_weights(trainer.model)
        with base.session.clock.measure("storage"):
            warmup.save_base(trainer.model, trained, named, base.checkpoint(0))
        _note_rounding(base, trainer.model, trained, named)
        policy = _policy(base, settings)
        if lost:
            _require_same(base.policy(0), policy, base.checkpoint(0))
        base.store.append_missing(
            policies=StoredPolicy.to_frame([policy]),
            updates=_updates(base, policy.policy_id, steps),
        )
    return base.policy(0)


def _require_same(stored: StoredPolicy, retrained: StoredPolicy, folder: Path) -> None:
    if retrained.sha256 != stored.sha256:
        raise ModelError(
            "the warmed-up base was retrained to different weights, and the whole run is made of "
            "the old ones",
            got=retrained.sha256,
            expected=stored.sha256,
            where=str(folder),
            fix="restore that folder from a copy, or start another run: give the experiment "
            "another name",
        )
    note(f"the warmed-up base was retrained to the same weights, sha256 {stored.sha256[:12]}")


def _note_rounding(
    base: ConditionRun, policy: policies.Policy, trained: dict[str, torch.Tensor], named: Path
) -> None:
    """Say so where the base, read in the model's type, is not the policy that was trained."""
    model = base.experiment.model
    if model.dtype == "float32":
        return
    adapted = base.experiment.training.lora is not None
    on_cpu = model.model_copy(update={"device": "cpu"})
    before = base_weights(policy if adapted else policies.load_policy(named, on_cpu))
    share = warmup.kept_share(before, trained, getattr(torch, model.dtype))
    if share is not None and share < KEPT:
        note(
            f"warm-up: rounded to {model.dtype}, the base keeps {share:.0%} of what was learned; "
            "with model.dtype = 'float32' it keeps all"
        )


Step = tuple[Update, float]  # an optimizer step, and the share of its traces that are right


def _trained(base: ConditionRun, settings: WarmupConfig, trainer: Trainer) -> list[Step]:
    examples = _examples(base, settings)
    size, steps = min(settings.batch_size, len(examples)), list[Step]()
    with base.session.panel.bar("warm-up steps", total=settings.steps) as advance:
        for step in range(settings.steps):
            names = round_questions(list(examples), size, step, base.seed)
            chosen = [examples[name] for name in names]
            right = sum(each.token_weights is None for each in chosen) / size  # nothing is masked
            with base.session.clock.measure("compute"):
                update = trainer.step(chosen)
            steps += [(update, right)] if update else []
            advance(1)
            base.session.interrupts.stop_if_asked()
    first, last = steps[0][0].loss, steps[-1][0].loss
    note(f"warm-up: loss {first:.2f} at first, {last:.2f} at last")
    return steps


def _examples(base: ConditionRun, settings: WarmupConfig) -> dict[str, Example]:
    """Return the training examples, by name."""
    experiment, models, train = base.experiment, base.session.models, base.candidates("train")
    found = warmup.traces(experiment.problems, train, settings.traces)
    chosen = warmup.lessons(found, settings.hinted, base.seed)
    end_id = end_of_turn(base.tokenizer, policies.end_ids(models.folder(experiment.model.name)))
    made = warmup.examples(experiment.prompts, base.tokenizer, end_id, chosen)
    return {example.rollout_id: example for example in made}


def _policy(base: ConditionRun, settings: WarmupConfig) -> StoredPolicy:
    folder = base.checkpoint(0)
    digest = weight_files.folder_digest(folder)
    return StoredPolicy(
        **base.columns,  # type: ignore[arg-type]
        policy_id=base.key(0, digest),
        parent_id=base.policy(RAW).policy_id,
        step=0,
        round=0,
        kind="full",
        path=str(folder.relative_to(base.root)),
        sha256=digest,
        hinted=settings.hinted,
    )


def _updates(base: ConditionRun, policy_id: str, steps: list[Step]) -> pl.DataFrame:
    rows = [
        base.columns
        | {
            "update_id": base.key("update", step),
            "policy_id": policy_id,
            "round": RAW,
            "step": step,
            "accuracy": right,
            "mean_reward": right,
            "zero_variance_groups": 0,
            "sampled_update_share": None,
            "base_drift": None,
        }
        | update.columns
        for step, (update, right) in enumerate(steps, 1 - len(steps))
    ]
    return TABLES["updates"].frame(rows)
