"""A small hand-made store: GRPO and two contexts, two seeds, three test problems."""

import json
from datetime import datetime
from itertools import accumulate

import polars as pl

from sdcore.analysis.comparison import comparisons
from sdcore.analysis.scoring import score
from sdcore.config import Experiment
from sdcore.store.schema import TABLES, content_key

EXPERIMENT = Experiment.model_validate(
    {
        "name": "small",
        "description": "A <b>small</b> & hand-made run",
        "seeds": (0, 1),
        "model": {"name": "builtin:tiny-solver"},
        "problems": {"source": "arithmetic", "train": 2, "validation": 2, "test": 3},
        "training": {"rounds": 4, "questions_per_round": 2},
        "evaluation": {"every": 2, "samples": 2, "validation_samples": 2, "resamples": 200},
        "conditions": {
            "grpo": {"objective": "grpo", "learning_rate": 1e-3, "group_size": 2},
            "reference": {"objective": "distill", "context": "reference", "learning_rate": 1e-3},
            "step_aligned": {
                "objective": "distill", "context": "step_aligned", "learning_rate": 1e-3,
            },
        },
    }
)  # fmt: skip
TOKENS = (
    ("<step_1>", "tag"), ("12", "before"), ("+", "before"), ("30", "before"), ("=", "before"),
    ("42", "before"), ("</step_1>", "tag"), ("<step_2>", "tag"), ("42", "at"), ("-", "at"),
    ("5", "at"), ("=", "at"), ("38", "at"), ("</step_2>", "tag"), ("<answer>", "tag"),
    ("38", "answer"), ("</answer>", "tag"),
)  # fmt: skip
TRACE = "".join(text for text, _ in TOKENS)
ADVANTAGES = {
    "grpo": {},  # its advantage is the same for every token, -0.7 below
    "none": {"before": 0.0},
    "reference": {"before": -0.2, "at": -0.6, "answer": -1.2},
    "step_aligned": {"before": 0.15, "at": -2.3, "answer": -0.6},
}


def lineage(condition, seed):
    return {"experiment_id": EXPERIMENT.experiment_id, "condition": condition, "seed": seed}


def rollout(condition, seed, purpose, round_, problem, index, *, correct):
    run = lineage(condition, seed)
    key = content_key(*run.values(), purpose, round_, problem, index)
    text = TRACE.replace("38", "37") if correct else TRACE
    return run | {
        "rollout_id": key, "policy_id": f"{condition}/{seed}/{round_}", "problem_id": problem,
        "purpose": purpose, "round": round_, "sample_index": index,
        "sampling_seed": int(key[:12], 16),
        "prompt_ids": [1], "response_ids": [2, 3], "text": text, "logprobs": [-0.1, -0.2],
        "finish_reason": "stop", "answer": "37" if correct else "38", "correct": correct,
        "reward": float(correct), "grade_details": None,
        "grade_reason": None if correct else "differs", "well_formed": True,
    }  # fmt: skip


def _tokens(correct):
    """Text, region and start of each token."""
    starts = accumulate((len(text) for text, _ in TOKENS), initial=0)
    tokens = [(text, region, start) for (text, region), start in zip(TOKENS, starts)]
    if not correct:
        return tokens
    return [(t.replace("38", "37"), r.replace("at", "before"), s) for t, r, s in tokens]


def signals(row, context):
    known = ADVANTAGES[context]
    return [
        lineage(row["condition"], row["seed"])
        | {
            "rollout_id": row["rollout_id"], "context": context, "policy_id": row["policy_id"],
            "round": row["round"], "position": position, "token_id": position, "token": token,
            "start": start, "student_logprob": -0.1,
            "teacher_logprob": -0.1 + known.get(region, 0.0),
            "advantage": known.get(region, 0.0) if known else -0.7,
            "kl": 0.0 if context == "none" else 0.3, "entropy": 0.2,
            "weight": None if context == "none" else 1.0,
            "step": 2 if region == "at" else None, "region": region,
        }
        for position, (token, region, start) in enumerate(_tokens(row["correct"]))
    ]  # fmt: skip


def critique(row, step, *, valid=True, raw=None):
    """That took one attempt and 30 tokens at 0.25."""
    numbers = dict.fromkeys(TABLES["critiques"].dtypes)
    run = ("experiment_id", "condition", "seed", "rollout_id")
    return numbers | {name: row[name] for name in run} | {
        "critique_id": row["rollout_id"], "critic": "oracle", "writer": "oracle",
        "verdict": "D" if valid else None,
        "first_wrong_step": step, "valid": valid, "attempts": 1, "prompt_tokens": 50, "tokens": 30,
        "cost": 0.25, "raw": raw,
    }  # fmt: skip


def scored(condition, seed, round_, quality):
    """Three test problems with two samples each; `quality` is how many of the six are right."""
    return [
        rollout(condition, seed, "test", round_, f"test{i % 3}", i // 3, correct=i < quality)
        for i in range(6)
    ]


def score_rows(rows, split):
    frame = TABLES["rollouts"].frame(rows)
    first = rows[0]
    found = score(frame, k=2, settings=EXPERIMENT.evaluation)
    row = lineage(first["condition"], first["seed"]) | {
        "score_id": content_key(first["policy_id"], split), "policy_id": first["policy_id"],
        "round": first["round"], "split": split, "sampled_tokens": 100 * first["round"],
        "seconds": 1.0,
    }  # fmt: skip
    return row | found.columns, found.problem_rows(row)


def problem(name, split, position, question="12 + 30 - 5 = ?"):
    return {
        "experiment_id": EXPERIMENT.experiment_id, "problem_id": name, "question": question,
        "solution": "12 + 30 is 42, less 5 is 37", "reference": "37", "split": split,
        "position": position, "source": "test",
    }  # fmt: skip


def run_row():
    return {
        "experiment_id": EXPERIMENT.experiment_id, "name": "small",
        "fingerprint": EXPERIMENT.fingerprint, "config": EXPERIMENT.model_dump_json(),
        "code_version": "0.1+abc", "libraries": json.dumps({"torch": "2.13.0"}),
        "created_at": datetime(2026, 1, 2, 3, 4),
    }  # fmt: skip


def policy(condition, seed, round_):
    return lineage(condition, seed) | {
        "policy_id": f"{condition}/{seed}/{round_}", "parent_id": None, "step": 3 * round_,
        "round": round_, "kind": "full", "path": None, "sha256": "0", "hinted": None,
    }  # fmt: skip


def update(condition, seed, round_, **changes):
    """All numbers are 1, and no rollout is weightless, unless told otherwise."""
    numbers = dict.fromkeys(TABLES["updates"].dtypes, 1) | {"weightless": 0}
    return numbers | lineage(condition, seed) | {
        "update_id": f"{condition}/{seed}/{round_}", "policy_id": "p", "round": round_,
        "step": round_ + 1, "seconds": 1.5,
    } | changes  # fmt: skip


def fill(store, idle=()):
    """Base 2 of 6 right; reference 3, step_aligned 4 and 5, GRPO 3 then 2.

    The pairs of condition and seed in `idle` have no updates.
    """
    qualities = {"grpo": (3, 2), "reference": (3, 3), "step_aligned": (4, 5)}
    tests = [scored("base", 0, 0, 2)] + [
        scored(name, seed, round_, quality)
        for name, pair in qualities.items()
        for seed in EXPERIMENT.seeds
        for round_, quality in zip((2, 4), pair)
    ]
    train = [
        rollout(name, seed, "train", round_, "train0", index, correct=index == 1)
        for name in qualities
        for seed in EXPERIMENT.seeds
        for round_ in (0, 3)
        for index in (0, 1)
    ]
    runs = [(name, seed) for name in qualities for seed in EXPERIMENT.seeds]
    scores = [score_rows(rows, split) for rows in tests for split in ("validation", "test")]
    contexts = {"grpo": "grpo", "reference": "reference", "step_aligned": "step_aligned"}
    tokens = [token for row in train for token in signals(row, contexts[row["condition"]])]
    seen = [
        lineage(row["condition"], row["seed"])
        | {
            "context_id": row["rollout_id"], "rollout_id": row["rollout_id"],
            "context": row["condition"], "text": "42 - 5 = 37 <script>alert(1)</script>",
            "critique_id": None, "teacher_prompt_ids": [1, 2],
        }
        for row in train
        if row["condition"] != "grpo"
    ]  # fmt: skip
    store.append_missing(
        experiments=TABLES["experiments"].frame([run_row()]),
        problems=TABLES["problems"].frame(
            [problem(f"test{i}", "test", i) for i in range(3)] + [problem("train0", "train", 0)]
        ),
        rollouts=TABLES["rollouts"].frame([row for rows in tests for row in rows] + train),
        contexts=TABLES["contexts"].frame(seen),
        token_signals=TABLES["token_signals"].frame(tokens),
        scores=TABLES["scores"].frame([row for row, _ in scores]),
        problem_scores=pl.concat(problems for _, problems in scores),
        policies=TABLES["policies"].frame(
            [policy("base", 0, 0)]
            + [policy(*run, round_) for run in runs for round_ in range(1, 5)]
        ),
        updates=TABLES["updates"].frame(
            [update(*run, round_) for run in runs if run not in idle for round_ in range(4)]
        ),
    )
    means, by_seed = comparisons(store, EXPERIMENT.experiment_id)
    store.append_missing(comparisons=means, seed_differences=by_seed)
    return store


RIGHT = {"none": 1, "reference": 3, "step_aligned": 4}


def teacher_sample(row, context, start, turn):
    """Right where the turn is below RIGHT, from the question; from the error it repeats it."""
    correct = start == "question" and turn < RIGHT[context]
    copied = ("rollout_id", "problem_id", "policy_id")
    return lineage("diagnose", 0) | {name: row[name] for name in copied} | {
        "teacher_sample_id": f"{row['rollout_id']} {context} {start} {turn}",
        "context": context, "start": start, "sample_index": turn, "sampling_seed": turn,
        "prompt_ids": [1], "prefix_tokens": 0, "response_ids": [2, 3], "text": TRACE,
        "finish_reason": "stop", "answer": "38", "reward": float(correct), "correct": correct,
        "well_formed": True, "reaction": None if start == "question" else "repeats",
    }  # fmt: skip


def fill_diagnosis(store):
    """A preflight of three contexts: two problems, a wrong and a right rollout of each.

    Four samples with each context: see `teacher_sample`.
    """
    store.append_missing(
        problems=TABLES["problems"].frame([problem("train1", "train", 1, "<script>alert(2)")])
    )
    rows = [
        rollout("diagnose", 0, "diagnose", 0, name, index, correct=index == 1)
        for name in ("train0", "train1")
        for index in (0, 1)
    ]
    pairs = [(row, name) for row in rows for name in ("none", "reference", "step_aligned")]
    contexts = [
        lineage("diagnose", 0)
        | {
            "context_id": row["rollout_id"] + name, "rollout_id": row["rollout_id"],
            "context": name, "text": None if name == "none" else "</pre><script>alert(3)",
            "critique_id": None, "teacher_prompt_ids": [1] if name == "none" else [1, 2, 3],
        }
        for row, name in pairs
    ]  # fmt: skip
    critiques = [
        lineage("diagnose", 0)
        | {
            "critique_id": row["rollout_id"], "rollout_id": row["rollout_id"], "critic": "oracle",
            "writer": "oracle",
            "verdict": "A" if row["correct"] else "D",
            "first_wrong_step": None if row["correct"] else 2,
            "corrected": TRACE.replace("38", "37"), "valid": True, "invalid_reason": None,
            "content_id": None, "repaired": None, "prefix_tokens": 0, "raw": None,
            "attempts": 1, "prompt_tokens": 0, "tokens": 0, "cost": 0.0,
        }
        for row in rows
    ]  # fmt: skip
    tokens = [token for row, name in pairs for token in signals(row, name)]
    taught = [
        teacher_sample(row, name, start, turn)
        for row, name in pairs
        for start in ("question", "error")
        for turn in range(4)
        if (not row["correct"] if start == "error" else turn % 2 == row["sample_index"])
    ]
    store.append_missing(
        teacher_samples=TABLES["teacher_samples"].frame(taught),
        rollouts=TABLES["rollouts"].frame(rows),
        critiques=TABLES["critiques"].frame(critiques),
        contexts=TABLES["contexts"].frame(contexts),
        token_signals=TABLES["token_signals"].frame(tokens),
    )
    return store
