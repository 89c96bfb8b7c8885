"""The teacher's ability: does the context in its prompt make the model right more often?

A student that learns from its teacher can hardly become better than it, however well the context
points at errors. So the model samples with each context in its prompt, from the question and after
the student's own first wrong step, on the problems of the preflight. The context `none` is the
student's own prompt: its samples are the baseline, drawn afresh, so that choosing rollouts (a
context may need a correct sibling, say) does not bias it. Each problem counts the same, and
intervals are over problems.

A condition that learns from some tokens only would at best become its teacher there and stay itself
elsewhere. So for every region mask a *mixed policy* continues the same wrong rollouts: the teacher
writes the tokens that the mask has, the student the others. Its accuracy minus the student's is the
gain to expect at most from a context and a mask, as far as one error per rollout goes: a student
that has learnt the mask would repair a second error too. A rollout whose first steps are right is
easier to finish than a new one, so the student, going on by itself at the same places, is the
control: what it gains is not the context's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from sdcore.analysis.intervals import Array, bootstrap, grid_mean
from sdcore.analysis.metrics import SHARE
from sdcore.analysis.reactions import REACTIONS
from sdcore.config import EvaluationConfig, RegionWeights, WeightingSettings
from sdcore.contexts import NULL
from sdcore.store.database import Store

QUESTION, STEP, ERROR = "question", "step", "error"
"""Start of a sample with the context in its prompt: the question, or in a wrong rollout before
or after its first wrong step."""

BACK = {"after_question": QUESTION, "after_step": STEP}
"""Starts of the student, and of the sample that it continues: after as many steps as the rollout
has up to its first wrong one."""

OWN_PROMPT = "none with own prompt"
"""The preflight's name for a teacher without a context whose prompt is not the student's."""

GAIN = "gain"


@dataclass(frozen=True)
class Mask:
    """Tokens of wrong rollouts to learn from, which the teacher writes in the mixed policy."""

    start: str  # of the mixed policy's samples
    label: str
    regions: tuple[bool, bool, bool, bool]  # before, at and after the first wrong step, answer


MASKS = {
    "all": Mask(QUESTION, "all tokens", (True, True, True, True)),
    "until_error": Mask("after_question", "tokens until the error", (True, True, False, False)),
    "error": Mask("after_step", "the error's step", (False, True, False, False)),
    "from_error": Mask(STEP, "the error's step and all after it", (False, True, True, True)),
    "after": Mask(ERROR, "tokens after the error", (False, False, True, True)),
}

MEASURES = {
    "teacher": "share of right answers with the context in the prompt",
    "student": "share of right answers without it, on the same problems",
    GAIN: "their paired difference: what the student can gain at most from this teacher",
    "helped": "share of right answers with the contexts of wrong rollouts",
    "continued": "share of right answers where a wrong rollout is continued after its first wrong "
    "step",
    "repeats": "share of these continuations that go on with the wrong value",
    "repairs": "share that go on with the corrected value instead, which does not follow from what "
    "stands before",
    "ignores": "share that go on with neither",
    "kl_after": "share of the KL of wrong rollouts that lies after the first wrong step",
} | {
    f"{name}_{mask}": f"{text}: {each.label}"
    for mask, each in MASKS.items()
    for name, text in {
        "right": "share of right answers where the teacher writes these tokens of wrong rollouts",
        "gain": "this share minus the student's on the same problems",
        "added": "this share minus the student's where it goes on at the same places by itself",
    }.items()
}  # fmt: skip

COLUMNS = ("context", "measure", "value", "low", "high", "tokens", "rollouts")

_ASKED = """
    SELECT c.context, c.teacher_prompt_ids, q.first_wrong_step, q.corrected, r.*
    FROM contexts c JOIN rollouts r USING (rollout_id)
    LEFT JOIN critiques q ON q.rollout_id = r.rollout_id AND q.valid AND NOT r.correct
    WHERE r.experiment_id = $id AND r.purpose = $purpose AND r.sample_index < $rollouts
        AND r.problem_id IN (SELECT unnest($problems)) AND c.context IN (SELECT unnest($contexts))
    ORDER BY c.context, r.problem_id, r.sample_index
"""
_SAMPLES = """
    SELECT t.context, t.start, t.problem_id, t.rollout_id, t.sample_index, t.correct, t.reaction,
           len(t.response_ids) AS tokens, r.correct AS was_right
    FROM teacher_samples t JOIN rollouts r USING (rollout_id)
    WHERE t.experiment_id = $id AND t.rollout_id IN (SELECT unnest($rollouts))
"""


def asked(
    store: Store, parameters: Mapping[str, object], samples: int, *, own_prompt: bool = False
) -> pl.DataFrame:
    """Return the samples to have: `samples` per problem, context and start, in a fixed order.

    The contexts of a problem's rollouts take turns. All starts but the question need a wrong
    rollout whose first wrong step is known; those of `BACK` continue the samples of the same index.

    Args:
        store: the workspace's tables.
        parameters: id and purpose of the rollouts, problems, rollouts (per problem), contexts.
        samples: per problem, context and start.
        own_prompt: the teacher's prompt is not the student's without a context either. Then it is
            asked with that one too, as `OWN_PROMPT`.

    Returns:
        Columns start, turn (the sample's index), context, teacher_prompt_ids, first_wrong_step,
        corrected, and those of the rollout.
    """
    rows = store.query(_ASKED, dict(parameters))
    if own_prompt:
        own = rows.filter(context=NULL).with_columns(context=pl.lit(OWN_PROMPT))
        rows = pl.concat([rows, own])
    known = pl.col("first_wrong_step").is_not_null()
    wrong = rows.filter(known)
    starts = {
        start: frame.with_columns(start=pl.lit(start)).pipe(_in_turn, samples)
        for start, frame in {QUESTION: rows, STEP: wrong, ERROR: wrong}.items()
    }
    back = [
        starts[source].filter(known).with_columns(start=pl.lit(start))
        for start, source in BACK.items()
    ]
    return pl.concat([*starts.values(), *back])


def _in_turn(rows: pl.DataFrame, samples: int) -> pl.DataFrame:
    """Give sample i of a problem and context to rollout i mod R of its R rollouts."""
    group = ("context", "problem_id")
    place, size = pl.int_range(pl.len()).over(group), pl.len().over(group)
    return (
        rows.with_columns(place=place, size=size)
        .join(pl.DataFrame({"turn": range(samples)}, schema={"turn": pl.Int64}), how="cross")
        .filter(pl.col("turn") % pl.col("size") == pl.col("place"))
        .drop("place", "size")
        .sort("context", "problem_id", "turn")
    )


def measures(
    store: Store, planned: pl.DataFrame, tokens: pl.DataFrame, settings: EvaluationConfig
) -> pl.DataFrame:
    """Every one of `MEASURES` that has data, for each context.

    Args:
        store: the workspace's tables.
        planned: what `asked` returns; stored samples that are not in it do not count.
        tokens: token rows of the same rollouts, see `localisation`.
        settings: of the intervals.

    Returns:
        Columns context, measure, value, low, high, tokens, rollouts: the last two are those
        sampled or, for `kl_after`, scored.
    """
    ids = {"id": _only(planned, "experiment_id"), "rollouts": planned["rollout_id"].to_list()}
    keys = ["context", "start", "rollout_id", "sample_index"]
    wanted = planned.select(*keys[:3], "first_wrong_step", sample_index="turn")
    stored = store.query(_SAMPLES, ids).join(wanted, on=keys)
    parts = [
        *_of_samples(stored, settings),
        *_of_masks(stored, settings),
        *_kl_after(tokens, settings),
    ]
    text, real, count = pl.String(), pl.Float64(), pl.Int64()
    schema = dict(zip(COLUMNS, (text, text, real, real, real, count, count), strict=True))
    frame = pl.DataFrame(parts, schema=schema, orient="row")
    return frame.sort("context", pl.col("measure").cast(pl.Enum(list(MEASURES))))


def _only(frame: pl.DataFrame, column: str) -> str:
    return str(frame[column][0]) if len(frame) else ""


Row = tuple[str, str, float, float, float, int, int]


def _of_samples(samples: pl.DataFrame, settings: EvaluationConfig) -> Iterator[Row]:
    from_question, continued = (samples.filter(start=start) for start in (QUESTION, ERROR))
    student = _by_problem(from_question.filter(context=NULL), pl.col("correct"))
    for (context,), own in from_question.group_by("context", maintain_order=True):
        accuracy = _by_problem(own, pl.col("correct"))
        pairs = accuracy.join(student, on="problem_id", suffix="_student")
        wrong = own.filter(~pl.col("was_right"))
        yield _row(context, "teacher", own, accuracy["value"], settings)
        if context != NULL and len(pairs):
            gain = pairs["value"] - pairs["value_student"]
            yield _row(context, "student", own, pairs["value_student"], settings)
            yield _row(context, GAIN, own, gain, settings, limits=(-1.0, 1.0))
            if len(wrong):
                helped = _by_problem(wrong, pl.col("correct"))["value"]
                yield _row(context, "helped", wrong, helped, settings)
    for (context,), own in continued.group_by("context", maintain_order=True):
        accuracy = _by_problem(own, pl.col("correct"))
        yield _row(context, "continued", own, accuracy["value"], settings)
        judged = own.filter(pl.col("reaction").is_not_null())
        for reaction in REACTIONS if len(judged) else ():
            share = _by_problem(judged, pl.col("reaction") == reaction)
            yield _row(context, reaction, judged, share["value"], settings)


def _of_masks(samples: pl.DataFrame, settings: EvaluationConfig) -> Iterator[Row]:
    """Accuracy of the mixed policies on wrong rollouts, minus the student's and its control's."""
    right, limits = pl.col("correct"), (-1.0, 1.0)
    student = _by_problem(samples.filter(start=QUESTION, context=NULL), right)
    known = samples.filter(pl.col("first_wrong_step").is_not_null())
    for mask, each in MASKS.items():
        mixed = known.filter(start=each.start)
        control = _by_problem(mixed.filter(context=NULL), right)
        for (context,), own in mixed.group_by("context", maintain_order=True):
            accuracy = _by_problem(own, right)
            yield _row(context, f"right_{mask}", own, accuracy["value"], settings)
            others = {"gain": student} | ({"added": control} if context != NULL else {})
            for name, other in others.items():
                pairs = accuracy.join(other, on="problem_id", suffix="_other")
                if len(pairs):
                    gain = pairs["value"] - pairs["value_other"]
                    yield _row(context, f"{name}_{mask}", own, gain, settings, limits=limits)


def mask_of(tokens: WeightingSettings) -> str | None:
    """Return which of `MASKS` a weighting learns from; None for weightings without regions.

    A region counts where its weight is above 0; weights by position, |advantage| or relevance, and
    other combinations of regions, have no such bound.
    """
    if tokens.kind in ("all", "until_error", "error"):
        return tokens.kind
    if not isinstance(tokens, RegionWeights):
        return None
    taught = (tokens.before > 0, tokens.at > 0, tokens.after > 0, tokens.answer > 0)
    return next((name for name, mask in MASKS.items() if mask.regions == taught), None)


def _by_problem(samples: pl.DataFrame, of: pl.Expr) -> pl.DataFrame:
    """Mean of each problem's samples: columns problem_id, value."""
    return samples.group_by("problem_id").agg(value=of.cast(pl.Float64).mean()).sort("problem_id")


def _row(
    context: object,
    measure: str,
    samples: pl.DataFrame,
    values: pl.Series,
    settings: EvaluationConfig,
    limits: tuple[float, float] = SHARE,
) -> Row:
    mean = grid_mean(values.to_numpy()[:, None], settings.confidence, fixed=True, limits=limits)
    counts = int(samples["tokens"].sum()), len(samples)
    return (str(context), measure, mean.value, mean.low, mean.high, *counts)


def _kl_after(tokens: pl.DataFrame, settings: EvaluationConfig) -> Iterator[Row]:
    """Share of KL after the first wrong step's last token, tags and answer included."""
    last = pl.col("position").filter(pl.col("region") == "at").max()
    wrong = tokens.filter(~pl.col("correct"), pl.col("context") != NULL).with_columns(
        last=last.over("context", "rollout_id")
    )
    after = pl.col("kl").filter(pl.col("position") > pl.col("last")).sum()
    known = wrong.filter(pl.col("last").is_not_null())
    for (context,), own in known.group_by("context", maintain_order=True):
        sums = own.group_by("problem_id").agg(after=after, whole=pl.col("kl").sum())
        after_N1, whole_N1 = (
            sums.sort("problem_id").select(name).to_numpy() for name in ("after", "whole")
        )

        if whole_N1.sum() > 0:
            ratio = partial(_ratio, after_N1, whole_N1)
            ((value, low, high),) = bootstrap(
                ratio, [len(sums)], settings.confidence, settings.resamples
            )
            counts = len(own), own["rollout_id"].n_unique()
            yield (str(context), "kl_after", float(value), float(low), float(high), *counts)


def _ratio(part_N1: Array, whole_N1: Array, n_RN: Array) -> Array:
    """Ratio of two sums over problems, of which each was drawn `n_RN` times: [R, 1]."""
    whole_R1 = n_RN @ whole_N1
    return np.asarray((n_RN @ part_N1) / np.where(whole_R1 > 0, whole_R1, np.nan))
