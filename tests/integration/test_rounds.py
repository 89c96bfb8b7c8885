"""What a round commits, and where a run goes on."""

from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

from sdcore.config import DistillConfig, load_experiment, objective
from sdcore.rollouts import Rollout
from sdcore.store.schema import TABLES
from sdcore.training import results
from sdcore.training.objectives import Distillation
from tasks.distill import _updates, train
from tasks.run.condition_run import ConditionRun, StoredPolicy, base_run
from tasks.run.rounds import Round, first_round, stored_round
from tasks.run.session import Session
from tests.helpers.example import critique, problem, rollout, update
from tests.helpers.paths import QUICKSTART


def policy(run: ConditionRun, round_: int) -> StoredPolicy:
    return StoredPolicy(
        **run.columns, policy_id=f"{run.label} {round_}", parent_id=None, step=round_,
        round=round_, kind="lora", path=None, sha256=str(round_),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of four rounds whose base is stored."""
    with Session(tmp_path) as session:
        experiment = load_experiment(QUICKSTART, ["training.rounds=4"])
        base = base_run(session, experiment)
        session.store.append_missing(policies=StoredPolicy.to_frame([policy(base, 0)]))
        yield ConditionRun(session, experiment, "grpo", 0)


def sampled(run: ConditionRun, round_: int) -> pl.DataFrame:
    row = rollout("grpo", 0, "train", round_, "p", 0, correct=True)
    return TABLES["rollouts"].frame([row | run.columns | {"round": round_}])


def stored(run: ConditionRun, table: str) -> list[int]:
    return sorted(run.store.rows(table, **run.columns)["round"])


def keep(run: ConditionRun, *rounds: int) -> None:
    """Store policies after so many rounds, with the rollouts of the round after each."""
    for round_ in rounds:
        run.store.append_missing(
            policies=StoredPolicy.to_frame([policy(run, round_)]), rollouts=sampled(run, round_)
        )


def test_a_new_run_starts_from_the_base(run):
    round_ = first_round(run)
    assert (round_.number, round_.policy.policy_id) == (0, "base 0")


def test_a_run_goes_on_after_its_last_policy(run):
    keep(run, 1, 2)
    round_ = first_round(run)
    assert (round_.number, round_.policy.policy_id, round_.resumed) == (2, "grpo/seed-0 2", True)
    assert stored(run, "rollouts") == [1, 2]  # round 2's were sampled from that very policy


def test_a_stored_round_is_read_back(run):
    keep(run, 1, 2)
    made = sampled(run, 1).with_columns(
        policy_id=pl.lit("grpo/seed-0 1"), rollout_id=pl.lit("the policy's own")
    )
    run.store.append_missing(rollouts=made)
    round_ = stored_round(run, 1)
    assert [each.rollout_id for each in round_.rollouts] == ["the policy's own"]
    assert round_.frames["rollouts"].equals(made)
    assert round_.policy.round == 1 and not len(round_.frames["contexts"])


def test_a_stored_round_has_its_critiques_and_contexts_and_no_others(run):
    keep(run, 1)
    kept = [("b", 0), ("a", 1), ("a", 0)]
    rows = [
        rollout("grpo", 0, "train", 1, name, index, correct=False) | run.columns
        | {"policy_id": "grpo/seed-0 1", "rollout_id": f"{name}{index}"}
        for name, index in kept
    ]  # fmt: skip
    scored = rows[0] | {"purpose": "validation", "rollout_id": "scored"}
    problems = [problem(name, "train", place) | {"experiment_id": run.columns["experiment_id"]}
                for place, name in enumerate(("b", "a"))]  # fmt: skip
    contexts = [
        run.columns | {"context_id": name, "rollout_id": name, "context": "reference",
                       "text": "t", "critique_id": None, "teacher_prompt_ids": [1]}
        for name in ("a0", "b0", "scored")
    ]  # fmt: skip
    run.store.append_missing(
        rollouts=TABLES["rollouts"].frame([*rows, scored]),
        problems=TABLES["problems"].frame(problems),
        critiques=TABLES["critiques"].frame([critique(row, 2) for row in (rows[1], scored)]),
        contexts=TABLES["contexts"].frame(contexts),
    )
    round_ = stored_round(run, 1)
    assert [each.rollout_id for each in round_.rollouts] == ["a0", "a1", "b0"]
    assert round_.frames["rollouts"]["rollout_id"].to_list() == ["a0", "a1", "b0"]
    assert {name: each.first_wrong_step for name, each in round_.critiques.items()} == {"a1": 2}
    assert sorted(round_.frames["contexts"]["rollout_id"]) == ["a0", "b0"]
    assert round_.resumed and round_.label == "grpo/seed-0 round 1"
    judged = [(each.problem.problem_id, each.valid) for each in round_.judged()]
    assert judged == [("a", False), ("a", True), ("b", False)]


def test_a_finished_run_is_left_alone(run):
    keep(run, 1, 4)
    assert first_round(run).number == 4
    assert stored(run, "policies") == [1, 4]


def test_a_checkpoint_that_no_row_speaks_of_is_removed(run):
    keep(run, 1)
    run.checkpoint(1).mkdir(parents=True)
    run.checkpoint(3).mkdir()
    run.checkpoint(3).with_name(".round-0003-half").mkdir()
    assert first_round(run).number == 1
    assert [folder.name for folder in run.folder.iterdir()] == ["round-0001"]


def test_a_round_is_committed_with_its_policy_and_leads_to_the_next(run):
    round_ = first_round(run)
    round_.frames["rollouts"] = sampled(run, 0)
    assert stored(run, "rollouts") == []
    round_.commit(policy(run, 1), {})
    assert stored(run, "rollouts") == [0] and stored(run, "policies") == [1]
    following = round_.next()
    assert (following.number, following.resumed) == (1, False)
    assert following.policy == policy(run, 1) and following.frames == round_.frames == {}
    updates = TABLES["updates"].frame([update("grpo", 0, 1) | run.columns])
    following.commit(policy(run, 2), {"updates": updates})
    assert stored(run, "updates") == [1] and stored(run, "policies") == [1, 2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_finished_stages_made_is_kept_when_a_later_one_fails(run, error):
    round_ = Round(run, policy(run, 1), resumed=False)
    with pytest.raises(error), round_.kept():
        round_.frames["rollouts"] = sampled(run, 1)
        raise error
    assert stored(run, "rollouts") == [1] and stored(run, "policies") == []
    with round_.kept():
        round_.frames["rollouts"] = sampled(run, 2)
    assert stored(run, "rollouts") == [1]  # what succeeds is committed, not kept
    with pytest.raises(error), Round(run, policy(run, 2), resumed=False).kept():
        raise error  # there is nothing to keep


class Settings(DistillConfig):
    objective: str


@objective(Settings)
class Rewarded(Distillation):
    """Self-distillation that also looks at the rewards of a group."""

    def advantages(self, rewards_PG):
        return rewards_PG - rewards_PG.mean(1, keepdim=True)


class Recorder:
    """A trainer that only notes what it is to learn from."""

    def __init__(self) -> None:
        self.advantages: dict[str, float | None] = {}

    def step(self, examples) -> None:
        self.advantages |= {each.rollout_id: each.advantage for each in examples}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("distill", [None, None, None]), (f"{__name__}:Rewarded", [-0.5, 0.0, 0.0])],
)
def test_rollouts_that_are_left_out_count_in_their_group_alone(run, kind, expected):
    # Of two groups of two the first rollout, a right one, has no right sibling to be shown.
    settings = {"objective": kind, "context": "sibling", "group_size": 2, "learning_rate": 1e-3}
    own = run.experiment.model_dump(exclude={"plugins", "trials"}) | {
        "conditions": {"own": settings}
    }
    mine = ConditionRun(run.session, type(run.experiment).model_validate(own), "own", 0)
    rows = [
        rollout("own", 0, "train", 0, name, index, correct=(name, index) != ("a", 1))
        | mine.columns | {"rollout_id": f"{name}{index}"}
        for name in ("a", "b") for index in (0, 1)
    ]  # fmt: skip
    round_ = Round(mine, policy(mine, 0), resumed=False)
    round_.frames["rollouts"] = TABLES["rollouts"].frame(rows)
    round_.rollouts = Rollout.from_frame(round_.frames["rollouts"])
    shown = [
        mine.columns | {"context_id": name, "rollout_id": name, "context": "sibling", "text": "t",
                        "critique_id": None, "teacher_prompt_ids": [1]}
        for name in ("a1", "b0", "b1")
    ]  # fmt: skip
    round_.frames["contexts"] = TABLES["contexts"].frame(shown)
    trainer = Recorder()
    train(round_, trainer)
    assert trainer.advantages == dict(zip(("a1", "b0", "b1"), expected, strict=True))


def test_a_step_that_was_not_taken_keeps_its_place_among_the_updates(run):
    own = run.experiment.model_dump(exclude={"plugins", "trials"})
    own["training"]["steps_per_round"] = 3
    mine = ConditionRun(run.session, type(run.experiment).model_validate(own), "grpo", 0)
    round_ = Round(mine, policy(mine, 2), resumed=False)
    rows = [rollout("grpo", 0, "train", 2, "a", index, correct=index == 1) for index in range(8)]
    round_.frames["rollouts"] = TABLES["rollouts"].frame([row | mine.columns for row in rows])
    round_.rollouts = Rollout.from_frame(round_.frames["rollouts"])
    after = replace(policy(mine, 3), step=9)
    taken = SimpleNamespace(columns=dict.fromkeys(results._COLUMNS, 1))
    steps = [None, taken, taken]
    found = _updates(round_, after, round_.frames["rollouts"], steps, None, None)
    assert found["step"].to_list() == [8, 9]
