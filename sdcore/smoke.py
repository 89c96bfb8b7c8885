"""Smoke runs: an experiment through all its stages once, to see that its file starts.

Models are tiny and random, sizes are small, a scripted critic answers in place of a language model,
and generated rows stand in for problems that are not on this machine. All else is as in the file.
No number of such a run means anything.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from sdcore.config import AUTO, SOURCES, Experiment, ProblemsConfig, PromptsConfig
from sdcore.config.base import NAME_LENGTH
from sdcore.config.problems import OPTIONAL
from sdcore.critics.llm import LIVENESS_PROMPT
from sdcore.critics.validation import Submission
from sdcore.grading.equations import NUMBER
from sdcore.models.folders import SMOKE, at_hand
from sdcore.models.prompts import student_messages
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.problems.splits import load_problems
from sdcore.testing import Behaviour, chat_endpoint, say, submitted
from sdcore.traces import parse_trace, render_trace

MOST = {
    "problems.train": 4,
    "problems.validation": 2,
    "problems.test": 2,
    "problems.band.samples": 2,
    "sampling.max_new_tokens": 32,
    "sampling.batch_size": 16,
    "warmup.traces": 8,
    "warmup.steps": 2,
    "warmup.batch_size": 4,
    "training.rounds": 1,
    "training.questions_per_round": 4,
    "training.steps_per_round": 2,
    "training.warmup_steps": 0,
    "training.lora.rank": 4,
    "evaluation.every": 1,
    "evaluation.samples": 2,
    "evaluation.validation_samples": 1,
    "evaluation.resamples": 200,
    "conditions.group_size": 2,
}
"""The one rule of sizes: none is larger than here. One seed, and two trials of each sweep."""
NOT_GIVEN = "not-given"
ROWS = 100  # that stand in for a source's own


@contextmanager
def smoke_run(experiment: Experiment, root: Path) -> Iterator[Experiment]:
    """Give the smoke run of an experiment, whose critic answers while the block runs.

    Its name ends in `-smoke`, and its description says what stands in for what.

    Args:
        experiment: as its file says.
        root: the workspace, which takes the rows that stand in for problems.
    """
    problems, stand_in = _problems(experiment.problems, root / "smoke" / experiment.name)
    name = experiment.model.name
    said = [f"a tiny random {name}"]
    if at_hand(name) is None:
        said[0] += ", with a tokenizer of the same form, since its own is not on this machine"
    if experiment.critic is not None and not experiment.has_exact_critic:
        said.append("a scripted critic")
    said += [stand_in] if stand_in else []
    tree = _small(experiment.model_dump())
    for trials in experiment.families.values():
        for trial in trials[2:]:
            del tree["conditions"][trial], tree["trials"][trial]
    tree["problems"] |= {field: getattr(problems, field) for field in _PLACE}
    tree |= {
        "name": f"{experiment.name[: NAME_LENGTH - len('-smoke')]}-smoke",
        "description": f"Smoke run, in which no number means anything: {'; '.join(said)}.",
        "seeds": experiment.seeds[:1],
        "model": tree["model"] | {"name": SMOKE + name.removeprefix(SMOKE)},
    }
    if experiment.engine.kind in (AUTO, "vllm"):
        tree["engine"] |= {"kind": "transformers", "urls": ()}
    if tree["problems"]["band"]:
        tree["problems"]["band"] |= {"format_rate": 0.0}  # a random model keeps no format
    references = cache(lambda: _references(made.problems))
    with chat_endpoint(lambda body: _answered(body, references)) as (url, _):
        for asked in _models(tree["critic"]):
            asked |= {"base_url": url, "api_key_env": None, "api_key_block": None}
        made = Experiment.model_validate(tree)
        yield made


def placeholders(file: Mapping[str, Any]) -> list[str]:
    """Return overrides for what a file leaves to the command line: where its problems are.

    Args:
        file: its settings as they are written.
    """
    problems = file.get("problems")
    if not isinstance(problems, Mapping) or problems.get("source") not in SOURCES:
        return []  # validation says what is wrong
    needs = SOURCES[problems["source"]].needs
    return [f"problems.{name}={NOT_GIVEN}" for name in needs if name not in problems]


def _small(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings with no number above `MOST`, whose keys leave out the names of conditions."""
    small: dict[str, Any] = {}
    for name, value in tree.items():
        most = MOST.get(f"{path}{name}")
        if isinstance(value, Mapping):
            small[name] = _small(value, path if path == "conditions." else f"{path}{name}.")
        else:
            small[name] = value if value is None or most is None else min(value, most)
    return small


def _models(critic: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The settings of language models in a section: its own, and those of the models of a cascade.

    A change of one of them changes the section.
    """
    sections = [critic, *critic.values()] if critic else []
    return [each for each in sections if isinstance(each, dict) and "base_url" in each]


_PLACE = ("source", "path", "query", "name", "subset", "part", "options", "answer_pattern")


def _problems(config: ProblemsConfig, place: Path) -> tuple[ProblemsConfig, str | None]:
    """The settings of problems that are on this machine, and what stands in for the file's own."""
    needs = SOURCES[config.source].needs
    here = (
        (config.path is not None and config.path.exists())
        if "path" in needs
        else (config.source != "dataset" or Path(config.name or "").is_dir())
    )
    if here:
        return config, None
    place.mkdir(parents=True, exist_ok=True)
    frame, changed = _rows(config), dict[str, Any](path=None, query=None)
    if config.source == "dataset":
        (place / "data").mkdir(exist_ok=True)
        frame.write_parquet(place / "data" / f"{config.part}-00000-of-00001.parquet")
        changed |= {"name": str(place), "subset": None}
    elif config.source == "csv":
        changed["path"] = place / "rows.csv"
        frame.write_csv(changed["path"])
    elif config.source == "parquet":
        changed["path"] = place / "rows.parquet"
        frame.write_parquet(changed["path"])
    else:
        changed |= {"source": "jsonl", "path": place / "rows.jsonl"}
        changed |= OPTIONAL
        frame.write_ndjson(changed["path"])
    if config.answer_pattern:
        changed["answer_pattern"] = r"####\s*(.+)$"
    own = str(config.name if config.source == "dataset" else config.path)
    why = "no file is given" if own == NOT_GIVEN else f"{own} is not on this machine"
    return config.model_copy(update=changed), f"generated problems, since {why}"


def _rows(config: ProblemsConfig) -> pl.DataFrame:
    """Generated problems in the columns of a source; with an answer pattern in GSM8K's form."""
    rows = []
    for problem in generate_problems(ROWS, seed=1, holdout=True):
        solution, answer = reference_solution(problem), str(problem.answer)
        if config.answer_pattern:
            answer = f"{solution}\n#### {answer}"
        rows.append(
            {
                config.template: problem.question,
                config.question: problem.question,
                config.solution: solution,
                config.answer: answer,
            }
        )
    return pl.DataFrame(rows)


def _answered(body: dict[str, Any], references: Callable[[], Mapping[str, str]]) -> Behaviour:
    """Answer as a critic that is always right: a critique, or a solution of its own."""
    asked, text = submitted(body), body["messages"][0]["content"]
    if asked is not None:
        return say(_critique(asked))
    if text == LIVENESS_PROMPT:
        return say("A")
    answer = references().get(text, "")
    return say(render_trace([f"it is {answer}"], answer))


def _critique(asked: Submission) -> str:
    """A right trace as it is, or one step that comes to the answer in place of a wrong one."""
    if asked.correct:
        return _claims("A", None, asked.trace)
    case, wrong = ("D", 1) if parse_trace(asked.trace).steps else ("C", None)
    answer = asked.reference or ""
    given = (number for number in NUMBER.findall(asked.question) if number not in (answer, "1"))
    known = next(given, "0")  # validation refuses steps that use nothing of the question
    return _claims(case, wrong, render_trace([f"{answer} + {known} - {known} = {answer}"], answer))


def _claims(case: str, wrong: int | None, corrected: str) -> str:
    return json.dumps({"case": case, "first_wrong_step": wrong, "corrected": corrected})


def _references(problems: ProblemsConfig) -> dict[str, str]:
    """The right answers, by the message that asks a critic for a solution."""
    rows = load_problems(problems).problems.select("question", "reference").iter_rows()
    plain = PromptsConfig()
    return {student_messages(plain, question)[0]["content"]: answer for question, answer in rows}
