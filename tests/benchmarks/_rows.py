"""Made-up rows for the tables: batches of rollouts, their critiques and their tokens."""

import numpy as np
import polars as pl

from sdcore.store.schema import TABLES

ROLLOUTS, LENGTH, PROBLEMS, VOCABULARY = 10_000, 100, 1_000, 5_000
CONDITIONS, SEEDS = ("grpo", "reference", "step_aligned"), 3
RUN = {"experiment_id": "benchmark-00000000"}
_REGIONS = pl.Series(["before", "at", "after", "tag", "answer"])
_TOKENS = pl.Series([f"token{i}" for i in range(VOCABULARY)])


def filled(table: str, rows: int, **columns: object) -> pl.DataFrame:
    """A frame of the table: arrays as they are, other values repeated, the rest null or zero."""

    def series(name: str, dtype: pl.DataType) -> pl.Series:
        value = columns.get(name, 0 if dtype.is_numeric() else None)
        if isinstance(value, pl.Series | np.ndarray):
            return pl.Series(name, value, dtype=dtype)
        return pl.Series(name, [value], dtype=dtype).new_from_index(0, rows)

    return pl.DataFrame([series(*column) for column in TABLES[table].dtypes.items()])


def problems() -> pl.DataFrame:
    ids = pl.Series([f"p{i}" for i in range(PROBLEMS)])
    text = {"question": "What is 1 + 1?", "reference": "2", "source": "made up", "split": "test"}
    return filled("problems", PROBLEMS, problem_id=ids, **RUN, **text)


def lineage(batch: int) -> dict[str, object]:
    seed, condition = divmod(batch % (len(CONDITIONS) * SEEDS), len(CONDITIONS))
    return RUN | {"condition": CONDITIONS[condition], "seed": seed}


def round_of(batch: int) -> int:
    return batch // (len(CONDITIONS) * SEEDS)


def rollout_ids(batch: int) -> pl.Series:
    return pl.Series([f"r{batch:04}{i:06}{batch:022}" for i in range(ROLLOUTS)])


def policies(batch: int) -> pl.DataFrame:
    return filled(
        "policies", 1, **lineage(batch), policy_id=f"policy{batch}", round=round_of(batch),
        kind="lora", sha256="0" * 64,
    )  # fmt: skip


def scores(batch: int) -> pl.DataFrame:
    splits = pl.Series(["validation", "test"])
    return filled(
        "scores", 2, **lineage(batch), score_id=f"{batch}" + splits, policy_id=f"policy{batch}",
        round=round_of(batch), split=splits, avg_at_k=0.3 + 0.01 * round_of(batch),
    )  # fmt: skip


def rollouts(batch: int) -> pl.DataFrame:
    """Half of them train, half test; four of five are wrong."""
    index = np.arange(ROLLOUTS)
    return filled(
        "rollouts", ROLLOUTS, **lineage(batch), rollout_id=rollout_ids(batch),
        policy_id=f"policy{batch}", problem_id=pl.Series([f"p{i % PROBLEMS}" for i in index]),
        purpose=pl.Series(["train", "test"]).gather(index % 2), round=round_of(batch),
        sample_index=index // PROBLEMS, text="<step_1>1 + 1 = 2</step_1><answer>2</answer>",
        prompt_ids=list(range(80)), response_ids=list(range(LENGTH)), logprobs=[-0.1] * LENGTH,
        finish_reason="stop", answer=pl.Series([f"{i % 7}" for i in index]),
        correct=index % 5 == 0, well_formed=True,
    )  # fmt: skip


def critiques(batch: int) -> pl.DataFrame:
    index = np.arange(ROLLOUTS)
    ids = rollout_ids(batch)
    return filled(
        "critiques", ROLLOUTS, **lineage(batch), critique_id="c" + ids, rollout_id=ids,
        critic="oracle", writer="oracle", verdict="D", first_wrong_step=index % 4 + 1,
        corrected="made up", valid=True, tokens=120,
    )  # fmt: skip


def token_signals(batch: int) -> pl.DataFrame:
    rows = ROLLOUTS * LENGTH
    drawn = np.random.default_rng(batch)
    position = np.tile(np.arange(LENGTH), ROLLOUTS)
    token = drawn.zipf(1.5, rows) % VOCABULARY
    condition = lineage(batch)["condition"]
    numbers = {name: drawn.normal(size=rows) for name in ("student_logprob", "teacher_logprob",
               "advantage", "kl", "entropy")}  # fmt: skip
    return filled(
        "token_signals", rows, **lineage(batch), **numbers, context=condition,
        rollout_id=rollout_ids(batch).gather(np.repeat(np.arange(ROLLOUTS), LENGTH)),
        policy_id=f"policy{batch}", round=round_of(batch), position=position, token_id=token,
        token=_TOKENS.gather(token), step=position // 25 + 1,
        region=_REGIONS.gather(drawn.integers(len(_REGIONS), size=rows)),
    )  # fmt: skip
