"""Does a context give this model a signal, and does it lie where the error is? With a verdict.

All functions take the token rows of frozen rollouts, the same under every context: columns
context, problem_id, rollout_id, position, token, start, region, advantage, kl, student_logprob,
teacher_logprob, and of the rollout correct, text and the valid critique's corrected trace. The
paper's claims are about these (arXiv 2606.11173). Intervals are bootstraps over problems.
"""

from collections.abc import Mapping

import polars as pl

from sdcore.analysis.signal_stats import (
    auc_difference,
    error_auc,
    flawless,
    region_advantages,
    token_means,
    with_error,
)
from sdcore.config import EvaluationConfig
from sdcore.store.sql_views import OBJECTION

MEASURES = {
    "auc": "AUC of −advantage as a detector of the first wrong step's tokens; 0.5 is no signal",
    "error_auc": "the same for the error: the token where the trace leaves the corrected one, "
    "against the step tokens before it",
    "before": "mean advantage before the first wrong step, nats per token",
    "at": "mean advantage at the first wrong step",
    "after": "mean advantage after it",
    "error": "mean advantage of the error",
    "error_student": "mean probability of the error without the context",
    "error_teacher": "mean probability of the error with it",
    "copied": "copy rate: share of errors that the context makes likelier",
    "correct": "mean advantage on correct rollouts",
    "negative_share": f"diffusion: share of their tokens with an advantage below {OBJECTION}",
    "kl": "mean KL of a token, teacher to student",
    "first_kl": "mean KL of the first token: large where the prompts ask for another beginning",
}

_BY = ("context",)
_COLUMNS = ("context", "measure", "value", "low", "high", "tokens", "rollouts")
_TOKEN = ["rollout_id", "position"]
_ADVANTAGE, _OTHER = pl.col("advantage"), pl.col("other")
_ERROR = {
    "error": _ADVANTAGE,
    "error_student": pl.col("student_logprob").exp(),
    "error_teacher": pl.col("teacher_logprob").exp(),
    "copied": _ADVANTAGE > 0,
}


def with_errors(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the token rows with the column `error`: the first token the critic would not write.

    That is the token, within the first wrong step, where the trace leaves the corrected trace. The
    other tokens of a wrong step are often right, so this is the sharper place to look.
    """
    wrong = tokens.filter(~pl.col("correct"), region="at").unique("rollout_id")
    leaves = {
        row["rollout_id"]: _leaf(row["text"], row["corrected"])
        for row in wrong.iter_rows(named=True)
        if row["corrected"] is not None
    }
    character, byte = (
        pl.col("rollout_id").replace_strict(
            {name: leaf[part] for name, leaf in leaves.items()}, default=None, return_dtype=pl.Int64
        )
        for part in (0, 1)
    )
    end = pl.col("start") + pl.col("token").str.len_chars()
    holds = ((pl.col("start") <= character) & (character < end)).fill_null(False)
    # A byte-level tokenizer may split the character: √ is E2 88 9A. Of the tokens that share it,
    # the one that holds the first byte to differ; one byte each is assumed but for the last.
    place = holds.cum_sum().over(*_BY, "rollout_id", order_by="position") - 1
    count = holds.sum().over(*_BY, "rollout_id")
    here = holds & (place == pl.min_horizontal(byte, count - 1))
    return tokens.with_columns(error=(here & (pl.col("region") == "at")).fill_null(False))


def measures(tokens: pl.DataFrame, settings: EvaluationConfig) -> pl.DataFrame:
    """Every one of `MEASURES` that has data, for each context, in that order.

    Columns: context, measure, value, low, high, tokens, rollouts.
    """
    common = _BY, settings
    regions = region_advantages(tokens, *common).rename({"region": "measure", "mean": "value"})
    aucs = {"auc": tokens, "error_auc": _up_to_errors(tokens)}
    correct = {"correct": _ADVANTAGE, "negative_share": _ADVANTAGE < OBJECTION}
    parts = [
        regions,
        *(
            error_auc(part, *common).select(pl.lit(name).alias("measure"), "*", value="auc")
            for name, part in aucs.items()
        ),
        _means(tokens.filter("error"), settings, _ERROR),
        _means(flawless(tokens), settings, correct),
        _means(tokens, settings, {"kl": pl.col("kl")}),
        _means(tokens.filter(position=0), settings, {"first_kl": pl.col("kl")}),
    ]
    frame = pl.concat([part.select(_COLUMNS) for part in parts])
    return frame.sort("context", pl.col("measure").cast(pl.Enum(list(MEASURES))))


def differences(tokens: pl.DataFrame, baseline: str, settings: EvaluationConfig) -> pl.DataFrame:
    """The baseline's measures minus those of each other context, on the rollouts that both have.

    Columns: context (the other), measure (auc, error_auc, before, at, error, negative_share),
    value, low, high, tokens, rollouts.
    """
    mine = tokens.filter(context=baseline).drop("context")
    theirs = tokens.filter(pl.col("context") != baseline).select(
        "context", *_TOKEN, other="advantage"
    )
    pairs = mine.join(theirs, on=_TOKEN, maintain_order="left").sort(*_BY, *_TOKEN)
    wrong, gap = with_error(pairs), _ADVANTAGE - _OTHER
    objects = (_ADVANTAGE < OBJECTION).cast(pl.Int64) - (_OTHER < OBJECTION).cast(pl.Int64)
    parts = [
        _auc_differences("auc", wrong, settings),
        _auc_differences("error_auc", with_error(_up_to_errors(pairs)), settings),
        _means(wrong.filter(region="before"), settings, {"before": gap}),
        _means(wrong.filter(region="at"), settings, {"at": gap}),
        _means(pairs.filter("error"), settings, {"error": gap}),
        _means(flawless(pairs), settings, {"negative_share": objects}),
    ]
    frame = pl.concat([part.select(_COLUMNS) for part in parts])
    return frame.sort("context", pl.col("measure").cast(pl.Enum(list(MEASURES))))


def _means(
    tokens: pl.DataFrame, settings: EvaluationConfig, of: Mapping[str, pl.Expr]
) -> pl.DataFrame:
    return token_means(tokens, _BY, settings, of)


def _up_to_errors(tokens: pl.DataFrame) -> pl.DataFrame:
    """Step tokens up to each rollout's error, as if that were the wrong step."""
    last = pl.col("position").filter("error").first().over(*_BY, "rollout_id")
    steps = tokens.filter(pl.col("region").is_in(["before", "at"]), pl.col("position") <= last)
    region = pl.when("error").then(pl.lit("at")).otherwise(pl.lit("before"))
    return steps.with_columns(region=region)


def _leaf(text: str, corrected: str) -> tuple[int, int]:
    """Return where the text leaves the corrected one: the character, and the byte within it."""
    pairs = enumerate(zip(text, corrected, strict=False))
    shared = min(len(text), len(corrected))
    character = next((i for i, (one, other) in pairs if one != other), shared)
    one, other = (whole[character : character + 1].encode() for whole in (text, corrected))
    byte = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return character, byte


def _auc_differences(name: str, wrong: pl.DataFrame, settings: EvaluationConfig) -> pl.DataFrame:
    rows = []
    for (context,), mine in wrong.group_by(*_BY, maintain_order=True):
        if (mine["region"] == "at").all():  # there is nothing to tell the error from
            continue
        theirs = mine.with_columns(advantage="other")
        value, low, high = auc_difference(mine, theirs, settings)
        counts = len(mine), mine["rollout_id"].n_unique()
        rows.append(dict(zip(_COLUMNS, (context, name, value, low, high, *counts), strict=True)))
    schema = _means(wrong.clear(), settings, {}).select(_COLUMNS).schema
    return pl.DataFrame(rows, schema=schema)
