"""The preflight's findings, read from the stored signals of its frozen rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sdcore.analysis import localisation, power, teacher_ability, viability
from sdcore.analysis.power import Detectable, Variance
from sdcore.analysis.verdicts import Verdict, judge
from sdcore.config import Experiment
from sdcore.contexts import NULL
from sdcore.errors import DataError
from sdcore.store.database import Store

PURPOSE = "diagnose"  # of its rollouts, and the condition that its rows are stored under
PAPER = ("reference", "step_aligned", "full_quote", "omission", "shuffled")
CONTROLS = ("other_reference", "wrong_hint")
BASELINE = "step_aligned"

_PLANNED = """
    WITH planned AS (
        FROM rollouts WHERE experiment_id = $id AND purpose = $purpose
            AND problem_id IN (SELECT unnest($problems)) AND sample_index < $rollouts
    )
"""
_ROLLOUTS = "SELECT problem_id, sample_index, correct, well_formed FROM planned ORDER BY ALL"
_TOKENS = """
    SELECT s.context, s.rollout_id, r.problem_id, s.position, s.token, s.start,
           s.region, s.advantage, s.kl, s.student_logprob, s.teacher_logprob, r.correct,
           r.text, c.corrected
    FROM token_signals s JOIN planned r USING (rollout_id)
    LEFT JOIN critiques c ON c.rollout_id = s.rollout_id AND c.valid
    ORDER BY s.context, s.rollout_id, s.position
"""
_LENGTHS = """
    SELECT c.context, count(*) AS rollouts,
           avg(len(c.teacher_prompt_ids)) - avg(len(r.prompt_ids)) AS context_tokens,
           avg(len(r.response_ids)) AS response_tokens,
           max(len(c.teacher_prompt_ids) + len(r.response_ids)) AS longest,
           avg((r.finish_reason = 'length')::INT) AS truncated
    FROM contexts c JOIN planned r USING (rollout_id) GROUP BY c.context
"""


@dataclass(frozen=True)
class Diagnosis:
    """All findings: one row a context and measure, or a context."""

    contexts: tuple[str, ...]
    measures: pl.DataFrame  # see those of localisation, teacher_ability and viability
    baseline: str | None  # what the differences are to; None where there are no two contexts
    differences: pl.DataFrame  # see localisation.differences
    lengths: pl.DataFrame  # context, rollouts, context_tokens, response_tokens, longest, truncated
    verdicts: tuple[Verdict, ...]
    rollouts: int
    accuracy: float
    well_formed: float
    null_kl: float  # the largest of any token without a context
    variance: Variance | None  # of correctness; None with one rollout a problem
    detectable: Detectable | None  # in the test as planned; None also for a test of one problem


def contexts_of(experiment: Experiment) -> tuple[str, ...]:
    """The contexts to look at, the null check first.

    By default those that need a critique are left out where there is no critic.
    """
    named, known = experiment.diagnose.contexts, experiment.known_contexts
    names = dict.fromkeys(
        [NULL, *(named or (*PAPER, *CONTROLS, *experiment.contexts, *experiment.distilled))]
    )
    if named or experiment.judge:
        return tuple(names)
    return tuple(name for name in names if not known[name].quotes_critique)


def taught_with(experiment: Experiment) -> tuple[str, ...]:
    """Return what the teacher is measured with: the contexts, and its own prompt without one."""
    own = (teacher_ability.OWN_PROMPT,) if experiment.prompts.teacher_differs else ()
    return contexts_of(experiment) + own


def measured_as(experiment: Experiment, context: str) -> str:
    """Return the name that the preflight's measures have for a condition's context.

    A teacher without a context has none of its own, unless its prompt is not the student's.
    """
    own = context == NULL and experiment.prompts.teacher_differs
    return teacher_ability.OWN_PROMPT if own else context


def purpose_with(prompt: str | None) -> str:
    """Return the purpose of the preflight with another prompt of the critic: `diagnose/NAME`.

    No condition of a file has such a name. Its rollouts are copies of the preflight's.
    """
    return PURPOSE if prompt is None else f"{PURPOSE}/{prompt}"


def diagnose(
    store: Store, experiment: Experiment, problem_ids: Sequence[str], purpose: str = PURPOSE
) -> Diagnosis:
    """Judge every context by the stored signals of the rollouts of these problems.

    Args:
        store: the workspace's tables.
        experiment: whose preflight it is.
        problem_ids: the problems that it looks at.
        purpose: see `purpose_with`.

    Raises:
        DataError: none are stored.
    """
    names, settings = taught_with(experiment), experiment.evaluation
    without = measured_as(experiment, NULL)
    parameters = _frozen(experiment, problem_ids, purpose)
    tokens, rollouts, lengths = (
        store.query(_PLANNED + sql, parameters) for sql in (_TOKENS, _ROLLOUTS, _LENGTHS)
    )
    tokens, lengths = (
        frame.with_columns(pl.col("context").replace(NULL, without)) for frame in (tokens, lengths)
    )
    tokens = tokens.filter(pl.col("context").is_in(names))
    if not len(tokens):
        raise DataError(
            "no rollout has been scored under any context",
            got=experiment.experiment_id,
            fix="`sdcore diagnose FILE` does it",
        )
    tokens = localisation.with_errors(tokens)
    scored = [name for name in names if name in tokens["context"] and name != NULL]
    baseline = BASELINE if BASELINE in scored else scored[0] if scored else None
    planned = teacher_samples(store, experiment, problem_ids, purpose)
    ability = teacher_ability.measures(store, planned, tokens, settings)
    points = branch_points(store, experiment, problem_ids, purpose)
    branches = viability.measures(store, points, settings)
    measures = pl.concat([localisation.measures(tokens, settings), ability, branches])
    compared = tokens.filter(pl.col("context") != NULL)
    spread = _variance(rollouts)
    return Diagnosis(
        contexts=names,
        measures=measures,
        baseline=baseline,
        differences=localisation.differences(compared, baseline or "", settings),
        lengths=lengths.filter(pl.col("context").is_in(names)),
        verdicts=tuple(judge(n, measures.filter(context=n)) for n in names if n != NULL),
        rollouts=len(rollouts),
        accuracy=rollouts.select(pl.col("correct").mean()).item(),
        well_formed=rollouts.select(pl.col("well_formed").mean()).item(),
        null_kl=tokens.filter(context=without).select(pl.col("kl").abs().max()).item(),
        variance=spread,
        detectable=_detectable(experiment, spread),
    )


def teacher_samples(
    store: Store, experiment: Experiment, problem_ids: Sequence[str], purpose: str = PURPOSE
) -> pl.DataFrame:
    """Return the samples to have of the teacher on these problems: see `teacher_ability.asked`."""
    frozen = _frozen(experiment, problem_ids, purpose) | {"contexts": list(contexts_of(experiment))}
    return teacher_ability.asked(
        store,
        frozen,
        experiment.diagnose.teacher_samples,
        own_prompt=experiment.prompts.teacher_differs,
    )


def branch_points(
    store: Store, experiment: Experiment, problem_ids: Sequence[str], purpose: str = PURPOSE
) -> pl.DataFrame:
    """Return the tokens of these problems' rollouts to branch at: see `viability.asked`."""
    frozen = _frozen(experiment, problem_ids, purpose) | {"contexts": list(contexts_of(experiment))}
    return viability.asked(store, frozen, experiment.diagnose.branches)


def _frozen(experiment: Experiment, problem_ids: Sequence[str], purpose: str) -> dict[str, object]:
    """Which rollouts are looked at, as parameters of a query."""
    return {
        "id": experiment.experiment_id,
        "purpose": purpose,
        "problems": list(problem_ids),
        "rollouts": experiment.diagnose.rollouts,
    }


def _variance(rollouts: pl.DataFrame) -> Variance | None:
    samples = rollouts["sample_index"].n_unique()
    return power.variance(rollouts["correct"].to_numpy().reshape(-1, samples))


def _detectable(experiment: Experiment, spread: Variance | None) -> Detectable | None:
    if spread is None or experiment.problems.test < 2:  # one problem has no interval
        return None
    settings = experiment.evaluation
    return power.detectable(
        spread,
        problems=experiment.problems.test,
        samples=settings.samples,
        seeds=len(experiment.seeds),
        confidence=settings.confidence,
    )
