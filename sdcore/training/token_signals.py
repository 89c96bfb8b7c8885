"""The table `token_signals`: the teacher's signal at each response token, joined to its step."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace, token_offsets, token_regions
from sdcore.training.trainer import TokenSignals

UNJUDGED = "unjudged"


def signal_frame(
    tokenizer: Any,
    rollouts: Sequence[Mapping[str, Any]],
    signals: Sequence[TokenSignals],
    constants: Mapping[str, object],
) -> pl.DataFrame:
    """Rows of `token_signals` for rollouts and their signals, in the same order.

    A rollout needs: rollout_id, context, policy_id, round, response_ids, text, correct, judged and
    first_wrong_step, which counts where it is judged: a critique that was refused keeps its claims.
    Steps of a wrong rollout that no critic has judged get the region 'unjudged'.
    """
    frames = [
        _tokens(tokenizer, rollout, each) for rollout, each in zip(rollouts, signals, strict=True)
    ]
    frame = pl.concat(frames).with_columns(pl.lit(v).alias(k) for k, v in constants.items())
    return frame.select(pl.col(name).cast(t) for name, t in TABLES["token_signals"].dtypes.items())


def _tokens(tokenizer: Any, rollout: Mapping[str, Any], signals: TokenSignals) -> pl.DataFrame:
    ids = rollout["response_ids"]
    offsets = token_offsets(tokenizer, ids)
    wrong_step = rollout["first_wrong_step"] if rollout["judged"] else None
    labels = token_regions(parse_trace(rollout["text"]), offsets, wrong_step)
    unjudged = not rollout["correct"] and not rollout["judged"]
    return pl.DataFrame(
        {
            "position": range(len(ids)),
            "token_id": ids,
            "token": [rollout["text"][start:end] for start, end in offsets],
            "start": [start for start, _ in offsets],
            "student_logprob": signals.student_logprob,
            "teacher_logprob": signals.teacher_logprob,
            "advantage": signals.advantage,
            "kl": signals.kl,
            "entropy": signals.entropy,
            "weight": signals.weight,
            "step": [step for step, _ in labels],
            "region": [UNJUDGED if unjudged and r == "before" else r for _, r in labels],
        },
        schema_overrides={"step": pl.Int64, "weight": pl.Float64},
    ).with_columns(pl.lit(rollout[name]).alias(name) for name in _COPIED)


_COPIED = ("rollout_id", "context", "policy_id", "round")
