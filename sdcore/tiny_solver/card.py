"""Measures of a tiny solver, and its model card."""

from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sdcore.config import SamplingConfig
from sdcore.critics.oracle import critique
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.jinja_sandbox import render
from sdcore.problems.arithmetic import Problem, read_step, reference_solution
from sdcore.tiny_solver.corpus import Fact, fact
from sdcore.tiny_solver.tokenizer import PROMPTS, hinted_prompt
from sdcore.traces import parse_trace, response_text

if TYPE_CHECKING:
    from sdcore.tiny_solver.build import Recipe

TEMPLATE = Path(__file__).with_name("card.md")


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    samples: int,
    missing: Set[Fact],
) -> dict[str, float]:
    """Sample problems at temperature 1, without a hint and with two kinds of it; shares in 0-1.

    `avg_error` is the standard error of `avg` over problems.
    The aligned hint is the oracle's correction of the solver's own trace for the same problem.
    """
    repeated = [problem for problem in problems for _ in range(samples)]
    plain = _traces(model, tokenizer, repeated, [None] * len(repeated))
    corrections = [
        critique(problem.question, str(problem.answer), trace).corrected
        for problem, trace in zip(repeated, plain)
    ]
    references = [reference_solution(problem) for problem in repeated]
    greedy = _traces(model, tokenizer, problems, [None] * len(problems), temperature=0)
    right_PN = np.reshape(_right(repeated, plain), (len(problems), samples))
    return {
        "avg": float(right_PN.mean()),
        "avg_error": float(right_PN.mean(axis=1).std(ddof=1) / len(problems) ** 0.5),
        "never": float((~right_PN.any(axis=1)).mean()),
        "greedy": fmean(_right(problems, greedy)),
        "reference": fmean(_right(repeated, _traces(model, tokenizer, repeated, references))),
        "aligned": fmean(_right(repeated, _traces(model, tokenizer, repeated, corrections))),
        "format": fmean(parse_trace(trace).well_formed for trace in plain),
        "length": fmean(len(tokenizer.encode(trace)) for trace in plain),
        "taught": _step_accuracy(plain, missing, taught=True),
        "untaught": _step_accuracy(plain, missing, taught=False),
    }


def write_card(folder: Path, recipe: "Recipe", measures: dict[str, float]) -> None:
    """Write the model card, README.md, beside the weights."""
    template = TEMPLATE.read_text("utf-8")
    card = render(template, recipe=asdict(recipe), measures=measures, prompts=PROMPTS.model_dump())
    (folder / "README.md").write_text(card, "utf-8")


def _traces(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    hints: Sequence[str | None],
    temperature: float = 1.0,
) -> list[str]:
    engine = TransformersEngine(model, end_ids=[tokenizer.eos_token_id])
    requests = [
        Request(hinted_prompt(tokenizer, problem.question, hint), seed)
        for seed, (problem, hint) in enumerate(zip(problems, hints))
    ]
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=64)
    completions = engine.generate(requests, sampling)
    return [response_text(tokenizer, c.token_ids) for c in completions]


def _right(problems: Sequence[Problem], traces: Sequence[str]) -> list[bool]:
    return [
        parse_trace(trace).answer == str(problem.answer) for problem, trace in zip(problems, traces)
    ]


def _step_accuracy(traces: Sequence[str], missing: Set[Fact], *, taught: bool) -> float:
    """Share of right sums among the steps whose digit fact was taught, or was not."""
    steps = [read_step(step.text) for trace in traces for step in parse_trace(trace).steps]
    judged = [
        step.result == step.move.result
        for step in steps
        if step and (fact(step.move) not in missing) == taught
    ]
    return fmean(judged) if judged else 0.0
