"""Positions of a condition's loss: measured on the preflight's frozen rollouts."""

from collections.abc import Mapping, Sequence

import torch

from sdcore.analysis.preflight import PURPOSE
from sdcore.config import Condition
from sdcore.rollouts import judged
from sdcore.traces import Region
from sdcore.training.batches import Example
from sdcore.training.results import TokenSignals
from sdcore.training.weightings import Weigher, regions_of
from tasks.diagnose import frozen_problems, frozen_rollouts
from tasks.run.condition_run import ConditionRun
from tasks.run.critiques import Handed, criticise, open_critic

_SIGNALS = """
    SELECT context, rollout_id, list(advantage ORDER BY position) AS advantages,
           list(kl ORDER BY position) AS divergences
    FROM token_signals
    WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed
    GROUP BY ALL
"""


def loss_up_to_error(
    base: ConditionRun, conditions: Mapping[str, Condition], purpose: str = PURPOSE
) -> dict[str, float | None]:
    """Return the share of each condition's weighted KL that lies up to the first wrong step's end.

    It is that of the wrong rollouts whose first wrong step is known; None where there are none.

    Args:
        base: of an experiment whose preflight is stored.
        conditions: those to measure, by name; their contexts are among the preflight's.
        purpose: of the preflight, see `preflight.purpose_with`.
    """
    run = ConditionRun(base.session, base.experiment, purpose, base.seed)
    if run.experiment.judge is None:
        return dict.fromkeys(conditions, None)
    examples = _wrong_examples(run)
    signals: dict[str, list[tuple[Example, TokenSignals]]] = {}
    for row in run.store.query(_SIGNALS, run.columns).iter_rows(named=True):
        if row["rollout_id"] in examples:
            advantage, kl = (torch.tensor(row[name]) for name in ("advantages", "divergences"))
            each = TokenSignals(advantage * 0, advantage * 0, advantage, kl=kl)
            signals.setdefault(row["context"], []).append((examples[row["rollout_id"]], each))
    return {
        name: _share(condition, signals.get(condition.teacher_context or "", []))
        for name, condition in conditions.items()
    }


def _wrong_examples(run: ConditionRun) -> dict[str, Example]:
    """The wrong frozen rollouts whose first wrong step is known, with the regions of tokens."""
    problems, rollouts = frozen_problems(run), frozen_rollouts(run)
    handed = Handed.of(judged(rollouts, problems, {}), run.experiment.grader)
    with open_critic(run) as critic:
        critiques = criticise(run, critic, handed)
    wrong = [each for each in judged(rollouts, problems, critiques) if not each.rollout.correct]
    regions = {each.rollout.rollout_id: regions_of(run.tokenizer, each) for each in wrong}
    return {
        rollout.rollout_id: Example(
            rollout.rollout_id, rollout.prompt_ids, rollout.response_ids, correct=False,
            regions=regions[rollout.rollout_id],
        )
        for rollout in (each.rollout for each in wrong)
        if regions[rollout.rollout_id] is not None
    }  # fmt: skip


def _share(condition: Condition, signals: Sequence[tuple[Example, TokenSignals]]) -> float | None:
    weigher, near, whole = Weigher.of(condition.tokens), 0.0, 0.0
    for example, each in signals:
        assert each.kl is not None and example.regions is not None
        losses_T = (weigher.weights(example, each) * each.kl).double()
        near_T = torch.tensor(example.regions) <= Region.AT
        near, whole = near + float(losses_T[near_T].sum()), whole + float(losses_T.sum())
    return near / whole if whole > 0 else None
