"""The search for feedback: the preflight ranks, short runs halve, a fresh run confirms."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl
from prefect import flow

from flows.compare_contexts import compare_contexts, make_ready, train_in_turn, train_round
from flows.diagnose import diagnose, measure
from sdcore.analysis import preflight
from sdcore.config import Experiment
from sdcore.design.schedule import Rung
from sdcore.reports.design import Outcome
from tasks.design import Search, conclude, halve, plan_search, rank_by_preflight, require_fresh
from tasks.diagnose import frozen_problems
from tasks.evaluate import evaluate
from tasks.health import stopped
from tasks.maintenance.restore import restore
from tasks.prepare import prepare
from tasks.run.condition_run import ConditionRun, base_run, trained_runs
from tasks.run.lock import run_lock
from tasks.run.rounds import first_round
from tasks.run.session import Session
from tasks.track import track, tracked


@flow(flow_run_name="{experiment.name}/design")
def design(experiment: Experiment, root: Path) -> Outcome:
    """Find the feedback that trains an experiment's model best, within a budget said beforehand.

    The candidates are the conditions of one run, which the preflight and every rung of the search
    share; the confirmation is a run of its own, on problems that neither has sampled. What the
    workspace folder `root` already holds is not done again.
    """
    with Session(root) as session:
        base = base_run(session, experiment)
        with run_lock(base):
            prepare(base)
            search = plan_search(base)
    found = diagnose.fn(search.experiment, root)
    measures: dict[str | None, pl.DataFrame] = {search.field.usual: found.measures}
    with Session(root) as session:
        for prompt in search.field.prompts:
            base = base_run(session, search.with_prompt(prompt))
            measures[prompt] = _measured(base, preflight.purpose_with(prompt))
        best = _halved(base_run(session, search.experiment), search, measures)
        winner = best[0] if best else None
        confirmation = search.confirmation(session.store, winner) if winner else None
    if winner != search.baseline.name and confirmation:
        with Session(root) as session:
            base = base_run(session, confirmation)
            with run_lock(base):
                prepare(base)
                require_fresh(base, search, confirmation)
        compare_contexts.fn(confirmation, root)
    with Session(root) as session:
        base = base_run(session, experiment)
        with run_lock(base), tracked(base):
            return conclude(base, search, winner)


def _measured(base: ConditionRun, purpose: str) -> pl.DataFrame:
    """Measure the contexts of another prompt of the critic, on copies of the same rollouts."""
    run = ConditionRun(base.session, base.experiment, purpose, base.seed)
    with tracked(base), run_lock(run):
        measure(run)
        ids = frozen_problems(run)["problem_id"].to_list()
        return preflight.diagnose(run.store, run.experiment, ids, purpose).measures


def _halved(
    base: ConditionRun, search: Search, measures: Mapping[str | None, pl.DataFrame]
) -> list[str]:
    """Train the candidates rung by rung; return those that are left, best first."""
    experiment, session = search.experiment, base.session
    with tracked(base):
        with run_lock(base):
            make_ready(base, ("train", "validation"))
            evaluate(base, base.policy(0), "validation")
            track(base)
            names = rank_by_preflight(base, search, measures)
        for rung in search.plan.rungs:
            _train(base, rung, names)
            with run_lock(base):
                names = halve(base, search, rung, names)
        with session.tracking() as tracking:
            tracking.finish(experiment)
    return names


def _train(base: ConditionRun, rung: Rung, names: Sequence[str]) -> None:
    runs = [run for run in trained_runs(base) if run.condition in names]
    work = partial(_train_to, rounds=rung.rounds)
    train_in_turn(runs, work, f"rung {rung.number}: candidates x seeds")


def _train_to(run: ConditionRun, rounds: int) -> None:
    """Train a candidate up to so many rounds, from where it is, and score it on validation.

    Where a sign of `health.stop_when` ends it before, it is not scored.
    """
    with run.session.panel.bar(run.label, total=rounds, part=True) as advance:
        restore(run)
        if stopped(run) is not None:
            return
        round_ = first_round(run)
        advance(min(round_.number, rounds))
        while round_.number < rounds:
            round_ = train_round(round_, rounds)
            advance(1)
            if stopped(run) is not None:
                return
        evaluate(run, run.policy(rounds), "validation")
        track(run)
