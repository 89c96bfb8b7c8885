"""The preflight's teacher: the base policy samples with each context in its prompt.

Beside it the mixed policies of `teacher_ability`: the student goes on after the teacher's steps.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import preflight
from sdcore.analysis.reactions import reaction
from sdcore.analysis.teacher_ability import BACK, ERROR, QUESTION
from sdcore.config import SamplingConfig
from sdcore.contexts import NULL
from sdcore.engines import Completion, Request
from sdcore.errors import ConfigError
from sdcore.rollouts import Problem
from sdcore.schedule import sampling_seed
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace, token_offsets
from tasks.diagnose import frozen_problems
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.progress import Advance, note
from tasks.run.retries import RETRIES
from tasks.sample import Answered, graded

_NOTHING = Completion((), (), "stop")


@dataclass(frozen=True, slots=True)
class Asked:
    """A sample to have: what it continues, and why.

    Attributes:
        row: of `preflight.teacher_samples`.
        prefix_ids: the trace's tokens that it continues; none from the question.
        whole: there is nothing to sample, since the trace to continue is complete.
    """

    sample_id: str
    row: Mapping[str, Any]
    problem: Problem
    seed: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    whole: bool = False


@task(cache_policy=NO_CACHE, task_run_name="sample with contexts {run.label}", **RETRIES)
def sample_teacher(run: ConditionRun) -> int:
    """Sample with each context in the prompt; then let the student go on from where it helped.

    The samples with a context start from the question, and before and after the first wrong step.
    Samples are drawn and stored in batches that depend on the list alone, so that a stage that goes
    on gets the same tokens.

    Returns:
        How many samples there are.
    """
    problems = frozen_problems(run)
    ids = problems["problem_id"].to_list()
    planned = preflight.teacher_samples(run.store, run.experiment, ids, run.condition)
    known = {problem.problem_id: problem for problem in Problem.from_frame(problems)}
    rows = planned.partition_by("start", as_dict=True)
    taught = {
        (start, row["context"], row["rollout_id"], row["turn"]): _taught(run, row, known)
        for (start,), frame in rows.items()
        if start not in BACK
        for row in frame.iter_rows(named=True)
    }
    _sample_all(run, "teacher samples", list(taught.values()), _sampled(run).keys())
    texts = _sampled(run)
    handed = []
    for start, source in BACK.items():
        for row in rows.get((start,), planned.clear()).iter_rows(named=True):
            sample = taught[source, row["context"], row["rollout_id"], row["turn"]]
            handed.append(_handed_back(run, row, sample, *texts[sample.sample_id]))
    _sample_all(run, "samples after the teacher's", handed, texts.keys())
    return len(planned)


def _taught(run: ConditionRun, row: Mapping[str, Any], problems: Mapping[str, Problem]) -> Asked:
    """A sample with the context in the prompt."""
    shown = row["prompt_ids"] if row["context"] == NULL else row["teacher_prompt_ids"]
    prefix: Sequence[int] = ()
    if row["start"] != QUESTION:
        steps = parse_trace(row["text"]).steps[: row["first_wrong_step"]]
        kept = steps if row["start"] == ERROR else steps[:-1]
        prefix = _up_to(run, row["response_ids"], kept[-1].outer_end if kept else 0)
    return _asked(run, row, problems[row["problem_id"]], shown, prefix)


def _handed_back(
    run: ConditionRun, row: Mapping[str, Any], sample: Asked, text: str, sampled: Sequence[int]
) -> Asked:
    """The student, going on after the teacher's step in place of the first wrong one."""
    ids = (*sample.prefix_ids, *sampled)
    steps = parse_trace(text).steps[: row["first_wrong_step"]]
    ended = len(steps) == row["first_wrong_step"] and steps[-1].closed
    prefix = _up_to(run, ids, steps[-1].outer_end) if ended else ids
    # Also whole where the sample was cut off right there: it has had all the tokens it may have.
    whole = len(prefix) == len(ids)
    return _asked(run, row, sample.problem, row["prompt_ids"], prefix, whole=whole)


def _up_to(run: ConditionRun, ids: Sequence[int], end: int) -> Sequence[int]:
    """The tokens of a trace up to a place in its text."""
    return ids[: sum(start < end for start, _ in token_offsets(run.tokenizer, ids))]


def _asked(
    run: ConditionRun,
    row: Mapping[str, Any],
    problem: Problem,
    shown: Sequence[int],
    prefix: Sequence[int],
    *,
    whole: bool = False,
) -> Asked:
    sampling = run.experiment.sampling.model_dump(mode="json", exclude={"batch_size"})
    # The same numbers under all contexts: their difference is that of the prompts.
    purpose = f"teacher from the {row['start']}"
    seed = sampling_seed(run.seed, purpose, row["round"], row["problem_id"], row["turn"])
    prompt = (*shown, *prefix)
    of = row["rollout_id"], row["context"], row["start"]
    key = run.key("teacher sample", row["policy_id"], *of, prompt, sampling, seed)
    return Asked(key, row, problem, seed, prompt, tuple(prefix), whole)


def _sampled(run: ConditionRun) -> dict[str, tuple[str, Sequence[int]]]:
    """Texts of the stored samples, and the tokens that were sampled, by their ids."""
    rows = run.store.rows("teacher_samples", **run.columns)
    columns = rows.select("teacher_sample_id", "text", "response_ids").iter_rows()
    return {sample_id: (text, ids) for sample_id, text, ids in columns}


def _sample_all(
    run: ConditionRun, what: str, asked: Sequence[Asked], stored: AbstractSet[str]
) -> None:
    """Store what is missing of the samples, context by context; `stored` are ids."""
    with run.session.panel.bar(f"{what} of {run.label}", len(asked)) as advance:
        for context in dict.fromkeys(each.row["context"] for each in asked):
            own = [each for each in asked if each.row["context"] == context]
            _sample_missing(run, own, stored, advance)


def _sample_missing(
    run: ConditionRun, asked: Sequence[Asked], stored: AbstractSet[str], advance: Advance
) -> None:
    """Store the batches of which any sample is missing, each as it comes."""
    longest = max((len(each.prompt_ids) for each in asked if not each.whole), default=0)
    shown = f"diagnose.contexts: {asked[0].row['context']}" if asked else ""
    sampling = fitting(run, run.experiment.sampling, longest, shown)
    for start in range(0, len(asked), sampling.batch_size):
        batch = asked[start : start + sampling.batch_size]
        if all(each.sample_id in stored for each in batch):
            advance(len(batch), cached=len(batch))
            continue
        rows = _sample_batch(run, batch, sampling, advance)
        run.store.append_missing(teacher_samples=TABLES["teacher_samples"].frame(rows))
        run.session.interrupts.stop_if_asked()


def fitting(run: ConditionRun, sampling: SamplingConfig, longest: int, what: str) -> SamplingConfig:
    """Return the sampling settings, with shorter responses where a long prompt leaves less room.

    Args:
        run: whose engine samples.
        sampling: the settings.
        longest: tokens of the longest prompt.
        what: the setting that asks for it, such as a context, for the message.

    Raises:
        ConfigError: a prompt leaves no room at all.
    """
    limit = run.sampled_length
    if limit is None or longest + sampling.max_new_tokens <= limit:
        return sampling
    if longest >= limit:
        raise ConfigError(
            "a prompt of the preflight leaves no room for a response",
            got=f"{longest} tokens",
            expected=f"fewer than {limit}, the positions of the model or its engine",
            where=what,
            fix="leave this context out, shorten prompts.teacher, raise engine.context_length, or "
            "set diagnose.teacher_samples and diagnose.branches to 0",
        )
    note(
        f"{run.label}: a prompt of {what} has {longest} tokens, which leaves room for "
        f"{limit - longest} of {sampling.max_new_tokens} new ones"
    )
    return sampling.model_copy(update={"max_new_tokens": limit - longest})


def _sample_batch(
    run: ConditionRun, batch: Sequence[Asked], sampling: SamplingConfig, advance: Advance
) -> list[dict[str, object]]:
    policy: StoredPolicy = run.policy(0)
    open_ = [each for each in batch if not each.whole]
    advance(len(batch) - len(open_))
    with run.session.clock.measure("compute"):
        sampled = run.session.models.engine(run, policy.round, policy.policy_id).generate(
            [Request(each.prompt_ids, each.seed) for each in open_],
            sampling,
            lambda finished, tokens: advance(finished, tokens=tokens),
        )
        of = dict(zip((each.sample_id for each in open_), sampled, strict=True))
        completions = [of.get(each.sample_id, _NOTHING) for each in batch]
        answered = [
            Answered(each.sample_id, each.problem, (*each.prefix_ids, *completion.token_ids))
            for each, completion in zip(batch, completions, strict=True)
        ]
        grades = graded(run, answered)
    rows = zip(batch, completions, grades, strict=True)
    return [_row(run, each, completion, grade) for each, completion, grade in rows]


def _row(
    run: ConditionRun, asked: Asked, completion: Completion, grade: Mapping[str, object]
) -> dict[str, object]:
    row, text = asked.row, str(grade["text"])
    continued = row["start"] == ERROR
    judged = asked.problem.question, text, row["corrected"], row["first_wrong_step"]
    copied = ("policy_id", "rollout_id", "problem_id", "context", "start")
    graded_columns = ("text", "answer", "reward", "correct", "well_formed")
    return (
        run.columns
        | {name: row[name] for name in copied}
        | {name: grade[name] for name in graded_columns}
        | {
            "teacher_sample_id": asked.sample_id,
            "sample_index": row["turn"],
            "sampling_seed": asked.seed,
            "prompt_ids": asked.prompt_ids,
            "prefix_tokens": len(asked.prefix_ids),
            "response_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "reaction": reaction(*judged) if continued else None,
        }
    )
