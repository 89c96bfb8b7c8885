"""The search for feedback: its plan, the preflight's scores, short runs, the confirmation."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.comparison import results, summary
from sdcore.analysis.intervals import Array, grid_mean
from sdcore.analysis.metrics import SHARE
from sdcore.analysis.preflight import PURPOSE, measured_as, purpose_with, taught_with
from sdcore.config import Experiment, Limits, LlmCriticConfig
from sdcore.critics.llm import AGAIN, PROMPT
from sdcore.design.candidates import Candidate, Field, Skipped, enumerate_field
from sdcore.design.experiments import (
    as_file,
    confirmation_experiment,
    design_id,
    possible_confirmations,
    prompt_experiment,
    search_experiment,
    winner_experiment,
)
from sdcore.design.ranking import (
    Fate,
    Word,
    decision,
    fates,
    preflight_parts,
    preflight_score,
    shared,
)
from sdcore.design.schedule import CriticBound, Plan, Rung, critic_bounds, plan, stage_bounds
from sdcore.design.spending import Spent, of_rung, spending, total
from sdcore.errors import DataError
from sdcore.reports.design import Outcome, printable, write_page
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.aims import loss_up_to_error
from tasks.run.condition_run import BASE, ConditionRun
from tasks.run.progress import note
from tasks.tracking import artifacts

_GRID = """
    SELECT condition, seed, problem_id, avg_at_k FROM problem_scores
    WHERE experiment_id = $id AND split = $split AND round = $round
    ORDER BY condition, problem_id, seed
"""
_IDLE = """
    SELECT condition, count(*) AS seeds FROM (
        SELECT condition, seed, bool_or(trained) AS trained FROM trained_rounds
        WHERE experiment_id = $id AND round < $round GROUP BY ALL
    ) WHERE NOT trained GROUP BY ALL
"""
_REUSED = """
    SELECT e.experiment_id, count(DISTINCT r.problem_id) AS problems
    FROM rollouts r JOIN experiments e USING (experiment_id)
    WHERE r.experiment_id <> $confirmation AND r.problem_id IN (
        SELECT problem_id FROM problems WHERE experiment_id = $confirmation AND split = 'test')
    GROUP BY ALL ORDER BY ALL
"""


class Search:
    """A planned search: its candidates, its experiment and its schedule.

    Not a dataclass, since Prefect walks through every field of one that a task is given.
    """

    def __init__(self, experiment: Experiment, solutions: pl.Series) -> None:
        self.file = experiment
        self.design_id = design_id(experiment)
        self.field: Field = enumerate_field(experiment, solutions)
        self.candidates = {each.name: each for each in self.field.candidates}
        self.experiment = search_experiment(experiment, self.field)
        self.possible = possible_confirmations(experiment, self.field)
        self.asked: dict[str, CriticBound] = {}  # of the critic at most, by stage and prompt
        runs = [self.experiment, *map(self.with_prompt, self.field.prompts)]
        self.plan: Plan = plan(
            self.experiment, self.possible, sum(len(taught_with(run)) for run in runs)
        )

    def with_prompt(self, prompt: str) -> Experiment:
        """The preflight of the candidates whose critiques another prompt asks for."""
        return prompt_experiment(self.experiment, self.field, prompt)

    def critic_bounds(self, characters: int) -> dict[str, CriticBound]:
        """Return the most that a language model as critic is asked, by stage and prompt.

        Args:
            characters: of the longest question with its solution.
        """
        critic = self.experiment.critic
        if not (critic and critic.models):
            return {}
        shown = characters // 4 + self.experiment.sampling.max_new_tokens

        def read(model: LlmCriticConfig) -> int:
            # Asked again, it is also shown its last answer.
            again = model.max_tokens + len(AGAIN) // 4 if model.attempts > 1 else 0
            return len(model.template or PROMPT) // 4 + shown + again

        lengths = {_named(self.field.usual): [read(model) for model in critic.models]}
        for name in self.field.prompts:  # which only a single model has
            prompted = [model.model_copy(update={"prompt": name}) for model in critic.models]
            lengths[name] = [read(model) for model in prompted]
        return critic_bounds(self.experiment, self.possible, self.plan.rungs, lengths)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Return how many rollouts per question the candidates sample, each number once."""
        return tuple(sorted({each.condition.group_size for each in self.field.candidates}))

    @property
    def baseline(self) -> Candidate:
        """Return the condition that the winner is confirmed against."""
        return self.field.baseline

    def pair(self, winner: str) -> list[Candidate]:
        """The baseline and the winner, which are one where the baseline has won."""
        both = {each.name: each for each in (self.baseline, self.candidates[winner])}
        return list(both.values())

    def confirmation(self, store: Store, winner: str) -> Experiment:
        """The run that confirms the winner; its critic may take what the search has left."""
        most = self.file.design.critic_limits
        spent = total(spending(store, self.experiment.experiment_id))
        left = Limits(
            None if most.cost is None else max(0.0, most.cost - spent.cost),
            None if most.tokens is None else max(1, most.tokens - spent.critic),
        )
        return confirmation_experiment(self.file, self.pair(winner), left)

    def skipped_rows(self) -> list[dict[str, object]]:
        """Rows of `candidates` for what cannot be trained."""
        return [self._skipped(each) for each in self.field.skipped]

    def _skipped(self, skipped: Skipped) -> dict[str, object]:
        row = self.row(self.baseline, self.experiment, 0, Spent())
        copied = ("context", "divergence", "reason")
        return row | {name: getattr(skipped, name) for name in copied} | {
            "candidate": skipped.name, "learns_from": skipped.tokens, "fate": "skipped",
        }  # fmt: skip

    def row(
        self, candidate: Candidate, run: Experiment, rung: int, spent: Spent
    ) -> dict[str, object]:
        """The part of a row of `candidates` that is known before anything is decided."""
        empty = dict.fromkeys(("score", "low", "high", "teacher", "auc", "aim", "rank"))
        return {
            "experiment_id": self.file.experiment_id,
            "design_id": self.design_id,
            "candidate": candidate.name,
            "rung": rung,
            "run_id": run.experiment_id,
            "context": candidate.context,
            "learns_from": candidate.condition.learns_from,
            "divergence": candidate.divergence,
            "rounds": 0,
            "seeds": 0,
            **empty,
            "sampled_tokens": spent.sampled,
            "critic_tokens": spent.critic,
            "cost": spent.cost,
            "decided_at": datetime.now(UTC).replace(tzinfo=None),
        }


def plan_search(base: ConditionRun) -> Search:
    """Plan the search of a file whose problems are stored, and say its budget.

    Raises:
        ConfigError: there is nothing to choose among, or the budget does not allow it.
    """
    train = base.candidates("train")
    search = Search(base.experiment, train["solution"])
    for each in search.field.skipped:
        note(f"skipped {each.name}: {each.reason}")
    rungs = search.plan.rungs
    counts = " → ".join(str(rung.candidates) for rung in rungs)
    note(
        f"{len(search.candidates)} candidates are scored by the preflight; short runs of {counts} "
        f"up to {rungs[-1].rounds} rounds"
    )
    stages = ", ".join(f"{stage} {tokens:,}" for stage, tokens in search.plan.bounds.items())
    note(f"Budget: at most {search.plan.bound:,} sampled tokens ({stages})")
    longest = train.select(
        pl.col("question").str.len_chars() + pl.col("solution").fill_null("").str.len_chars()
    ).max()
    search.asked = search.critic_bounds(int(longest.item() or 0))
    for stage, bound in search.asked.items():
        note(
            f"Critic, {stage}: at most {bound.critiques:,} critiques, {bound.written:,} tokens "
            f"written and about {bound.read:,} read, cost {bound.cost:.4g}"
        )
    if search.asked:
        most, bounds = base.experiment.design.critic_limits, search.asked.values()
        cost, tokens = sum(each.cost for each in bounds), sum(each.tokens for each in bounds)
        allowed = "" if most.cost is None else f", of which design.max_cost allows {most.cost:g}"
        note(f"Budget of the critic: at most {cost:.4g}{allowed}")
        allowed = (
            ""
            if most.tokens is None
            else f", of which design.max_critic_tokens allows {most.tokens:,}"
        )
        note(f"Tokens of the critic: about {tokens:,} at most{allowed}")
    return search


def _named(prompt: str | None) -> str:
    return "sdcore's own prompt" if prompt is None else prompt


@task(cache_policy=NO_CACHE, task_run_name="rank by the preflight {base.experiment.name}")
def rank_by_preflight(
    base: ConditionRun, search: Search, measures: Mapping[str | None, pl.DataFrame]
) -> list[str]:
    """Score the candidates on the frozen rollouts, and store what becomes of them.

    Args:
        base: of the search's experiment.
        search: the search.
        measures: of the preflight of its contexts, by the prompt of the critic.

    Returns:
        The candidates that stay, best first.
    """
    parts = {
        name: known
        for prompt, frame in measures.items()
        for name, known in _preflight_parts(base, search, prompt, frame).items()
    }
    parts = {name: parts[name] for name in search.candidates}
    scores: dict[str, float | None] = {
        name: preflight_score(known) for name, known in parts.items()
    }
    decided = fates(scores, list(search.candidates), search.plan.rungs[0].candidates)
    rows = spending(base.store, search.experiment.experiment_id)
    stages = [BASE, PURPOSE, *map(purpose_with, search.field.prompts)]
    spent = _in_shares(total(rows.filter(pl.col("condition").is_in(stages))), len(decided))
    made = [
        search.row(search.candidates[fate.name], search.experiment, 0, share)
        | {"score": scores[fate.name], "rank": fate.rank, "fate": fate.word, "reason": fate.reason}
        | parts[fate.name]
        for fate, share in zip(decided, spent, strict=True)
    ]
    _store(base, search, 0, made + search.skipped_rows())
    return _kept(decided, "the preflight")


def _preflight_parts(
    base: ConditionRun, search: Search, prompt: str | None, measures: pl.DataFrame
) -> dict[str, dict[str, float | None]]:
    """The parts of the score of each candidate with a prompt of the critic."""
    own = [each for each in search.candidates.values() if each.prompt == prompt]
    purpose = purpose_with(None if prompt == search.field.usual else prompt)
    aims = loss_up_to_error(base, {each.name: each.condition for each in own}, purpose)
    measured: dict[str, dict[str, float]] = {}
    for context, measure, value in measures.select("context", "measure", "value").iter_rows():
        measured.setdefault(context, {})[measure] = value
    return {
        each.name: preflight_parts(
            measured.get(measured_as(base.experiment, each.context), {}), aims[each.name]
        )
        for each in own
    }


@task(cache_policy=NO_CACHE, task_run_name="rung {rung.number} {base.experiment.name}")
def halve(base: ConditionRun, search: Search, rung: Rung, names: list[str]) -> list[str]:
    """Rank the candidates that a rung has trained, and store what becomes of them.

    Args:
        base: of the search's experiment.
        search: the search.
        rung: whose training is done.
        names: its candidates, in the order of the rung before.

    Returns:
        The candidates that stay, best first.
    """
    run = search.experiment
    missing = _without_score(base, rung)
    grids = _grids(base, run, "validation", rung.rounds)
    means = {
        name: grid_mean(grids[name], run.evaluation.confidence, limits=SHARE)
        for name in names
        if name in grids and name not in missing
    }
    scores = {name: means[name].value if name in means else None for name in names}
    decided = fates(scores, names, rung.keeps, missing)
    before = next((r.rounds for r in search.plan.rungs if r.number == rung.number - 1), 0)
    spent = spending(base.store, run.experiment_id)
    made = []
    for fate in decided:
        own = total(of_rung(spent, fate.name, before, rung.rounds))
        row = search.row(search.candidates[fate.name], run, rung.number, own)
        row |= {"rounds": rung.rounds, "seeds": len(run.seeds), "score": scores[fate.name]}
        row |= {"rank": fate.rank, "fate": fate.word, "reason": fate.reason}
        if fate.name in means:
            row |= {"low": means[fate.name].low, "high": means[fate.name].high}
        made.append(row)
    _store(base, search, rung.number, made)
    return _kept(decided, f"rung {rung.number}")


@task(cache_policy=NO_CACHE, task_run_name="conclude {base.experiment.name}")
def conclude(base: ConditionRun, search: Search, winner: str | None) -> Outcome:
    """Decide about the winner, whose confirmation is done; write the page and its file, log all.

    Args:
        base: of the file's experiment.
        search: the search.
        winner: the best of the last rung; None where no candidate has a score.

    Raises:
        DataError: the confirmation was scored on problems that the search has sampled.
    """
    word, reason = "no winner", "no candidate of the last rung has a score"
    run = None
    if winner == search.baseline.name:
        word, reason = "kept", "the file's own condition has won: there is nothing to confirm"
    elif winner is not None:
        run = search.confirmation(base.store, winner)
        word, reason = _confirmed(base, search, run, winner)
    if run is None:
        _store(base, search, len(search.plan.rungs) + 1, [])  # a former winner's confirmation
    outcome = Outcome(
        experiment=base.experiment,
        design_id=search.design_id,
        search_id=search.experiment.experiment_id,
        confirmation_id=run.experiment_id if run else None,
        baseline=search.baseline.name,
        winner=winner,
        word=word,
        reason=reason,
        rungs=search.plan.rungs,
        group_sizes=search.group_sizes,
        bounds=search.plan.bounds,
        critic_bounds=stage_bounds(search.asked),
        candidates=base.store.rows("candidates", design_id=search.design_id).sort("rung", "rank"),
        reused=_reused(base, run.experiment_id) if run else (),
        file=_winner_file(search, winner, f"{word}: {reason}") if winner else None,
    )
    folder = base.root / "reports"
    page = write_page(outcome, folder)
    with base.session.tracking() as tracking:
        tracking.log_table(base.experiment, outcome.candidates, "candidates.csv")
        tracking.log_text(base.experiment, page.read_text("utf-8"), "design.html")
        if outcome.file:
            tracking.log_text(base.experiment, outcome.file, "winner.toml")
        tracking.finish(base.experiment)
    artifacts.publish_design(base, printable(outcome))
    return outcome


def _winner_file(search: Search, winner: str, about: str) -> str:
    text = f"Chosen by `sdcore design`. {about[:1].upper()}{about[1:]}."
    return as_file(winner_experiment(search.file, search.pair(winner), text))


def _confirmed(base: ConditionRun, search: Search, run: Experiment, winner: str) -> tuple[str, str]:
    """The decision and its reason; both candidates get a row."""
    require_fresh(base, search, run)
    pair = [each.name for each in search.pair(winner)]
    rows = base.store.rows(
        "comparisons", experiment_id=run.experiment_id, condition=winner, baseline=pair[0],
        metric="avg_at_k", budget="epochs",
    )  # fmt: skip
    word: Word = "not shown"
    reason = "the two were not compared: one of them trained nothing or stopped"
    if len(rows):
        row = rows.row(0, named=True)
        word = decision(row["low"], row["high"])
        points = [
            f"{100 * row[end]:+z.1f}".replace("-", "−") for end in ("difference", "low", "high")
        ]
        reason = (
            f"{points[0]} points ({points[1]} to {points[2]}; the interval covers {row['covers']}) "
            f"against {pair[0]}, avg@{run.evaluation.samples} on {run.problems.test} test "
            f"problems, {row['seeds']} seeds"
        )
        if row["seeds"] < len(run.seeds):
            loaded = results(base.store, run.experiment_id)
            lost = [f"{name}: {said}" for name in pair if (said := loaded.note(name))]
            word = "not shown"
            reason += f" of {len(run.seeds)}; seeds were lost, {'; '.join(lost)}"
    chosen = summary(base.store, run.experiment_id).filter(checkpoint="validation")
    known = {row["condition"]: row for row in chosen.iter_rows(named=True)}
    spent = spending(base.store, run.experiment_id)
    common = _in_shares(total(spent.filter(condition=BASE)), len(pair))
    made = []
    for rank, (name, share) in enumerate(zip(pair, common, strict=True), 1):
        own, found = total(spent.filter(condition=name)) + share, known.get(name, {})
        made.append(
            search.row(search.candidates[name], run, len(search.plan.rungs) + 1, own)
            | {"rounds": run.training.rounds, "seeds": found.get("seeds") or 0, "rank": rank}
            | {"score": found.get("avg_at_k"), "low": found.get("avg_at_k_low")}
            | {"high": found.get("avg_at_k_high")}
            | {"fate": word if name == winner else "baseline"}
            | {"reason": reason if name == winner else "what the winner is compared with"}
        )
    _store(base, search, len(search.plan.rungs) + 1, made)
    return word, reason


def _store(base: ConditionRun, search: Search, rung: int, made: list[dict[str, object]]) -> None:
    """Store what a rung has decided; where that is another now, the old decisions are superseded.

    They are after `sdcore rescore` of the search's run or of the confirmation, for example.
    """
    now = TABLES["candidates"].frame(made)
    where: dict[str, object] = {"design_id": search.design_id, "rung": rung}
    before = base.store.rows("candidates", **where)
    decided = [name for name in now.columns if name != "decided_at"]
    old = before.join(now, on=decided, how="anti", nulls_equal=True)
    if len(old):
        sql = "design_id = $design_id AND rung = $rung"
        base.store.supersede({"candidates": sql}, where, candidates=now)
    else:
        base.store.append_missing(candidates=now)


def require_fresh(base: ConditionRun, search: Search, run: Experiment) -> None:
    """Refuse a confirmation on problems that the search has sampled.

    Args:
        base: of any run in the workspace.
        search: the search.
        run: the confirmation, whose problems are stored.

    Raises:
        DataError: there are such problems.
    """
    reused = dict(_reused(base, run.experiment_id)).get(search.experiment.experiment_id, 0)
    if reused:
        raise DataError(
            "the confirmation has test problems that the search has sampled",
            got=f"{reused} problems",
            expected="none",
            where=f"{run.experiment_id} and {search.experiment.experiment_id}",
            fix="if the search's run was once resumed or redone like a run of `sdcore run`, which "
            "scores it on test, start another search: give the file another name. Else report "
            "this: the splits of a source should have no problem in common",
        )


def _reused(base: ConditionRun, confirmation: str) -> tuple[tuple[str, int], ...]:
    """Runs of the workspace that have sampled its test problems, and how many of these."""
    rows = base.store.query(_REUSED, {"confirmation": confirmation}).iter_rows()
    return tuple((str(run), int(problems)) for run, problems in rows)


def _without_score(base: ConditionRun, rung: Rung) -> dict[str, str]:
    """Why candidates have no score at a rung: they trained nothing, or were stopped until then.

    A search that is resumed asks again about rungs after which candidates have been stopped.
    """
    parameters = {"id": base.experiment.experiment_id, "round": rung.rounds}
    idle = base.store.query(_IDLE, parameters).iter_rows()
    found = {str(name): f"trained nothing with {seeds} seeds" for name, seeds in idle}
    stops = base.store.rows("stops", experiment_id=base.experiment.experiment_id)
    for row in stops.filter(pl.col("round") < rung.rounds).iter_rows(named=True):
        found[row["condition"]] = (
            f"seed {row['seed']} stopped after round {row['round']}: {row['reason']}"
        )
    return found


def _grids(base: ConditionRun, run: Experiment, split: str, round_: int) -> dict[str, Array]:
    """Accuracy by problem and seed, [P, S], of every condition that was scored after a round."""
    parameters = {"id": run.experiment_id, "split": split, "round": round_}
    scored = base.store.query(_GRID, parameters)
    return {
        str(name): rows["avg_at_k"].to_numpy().reshape(-1, rows["seed"].n_unique())
        for (name,), rows in scored.group_by("condition", maintain_order=True)
    }


def _in_shares(spent: Spent, sharers: int) -> list[Spent]:
    """Divide what all share equally among them."""
    sampled, critic = shared(spent.sampled, sharers), shared(spent.critic, sharers)
    return [
        Spent(tokens, read, spent.cost / sharers)
        for tokens, read in zip(sampled, critic, strict=True)
    ]


def _kept(decided: Sequence[Fate], where: str) -> list[str]:
    kept = [fate.name for fate in decided if fate.word == "kept"]
    note(f"after {where}: {', '.join(kept) or 'no candidate'}")
    return kept
