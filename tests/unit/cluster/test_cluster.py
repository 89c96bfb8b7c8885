"""What travels between the machines of a cluster, and what becomes of it; without Ray."""

from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

from flows import cluster
from flows.cluster import ATTEMPTS, Job
from sdcore.config import load_experiment
from sdcore.errors import ConfigError, SdcoreError, StoreError
from sdcore.models import sealed, weight_files
from sdcore.store import parts
from sdcore.store.parts import Part, open_folder
from sdcore.store.schema import TABLES
from tasks.cluster import attempts
from tasks.cluster.attempts import GIVEN, merge, open_attempt
from tasks.cluster.checkpoints import pull, push
from tasks.cluster.outbox import Outbox, receive
from tasks.evaluate import is_trained
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.session import DATABASE, Session
from tests.helpers.example import EXPERIMENT, fill
from tests.helpers.paths import QUICKSTART
from tests.helpers.tiny import flip, llama, save


@pytest.fixture
def root(tmp_path):
    return open_folder(str(tmp_path / "root"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A condition and seed with rows, in a workspace; MLflow is left alone."""
    monkeypatch.setattr(attempts, "log_run", lambda run: None)
    with Session(tmp_path / "workspace") as session:
        fill(session.store)
        yield ConditionRun(session, EXPERIMENT, "reference", 1)


def next_policy(run: ConditionRun, round_: int = 5) -> Part:
    row = replace(run.policy(4), policy_id=f"p{round_}", round=round_, sha256="5" * 64)
    return Part({"policies": StoredPolicy.to_frame([row])})


def test_a_node_gets_the_paid_answers_of_all_conditions(run):
    """It would else pay the small model of a cascade again."""
    answer = run.columns | {
        "answer_id": "a", "rollout_id": "of another condition", "critic": "small",
        "content_id": "c", "valid": False, "invalid_reason": "no", "raw": "{}", "attempts": 1,
        "prompt_tokens": 9, "tokens": 5, "cost": 0.5,
    }  # fmt: skip
    rows = [answer, answer | {"answer_id": "b", "condition": "grpo"}]
    answers = TABLES["critic_answers"].frame(rows)
    run.store.append_missing(critic_answers=answers)
    given = attempts.given_rows(run)
    assert sorted(given["critic_answers"]["answer_id"]) == ["a", "b"]
    assert not any(TABLES[name].repeats(frame) for name, frame in given.items())


def test_the_section_changes_no_result_and_refuses_a_budget():
    there = ["cluster.root=s3://bucket/x"]
    alone, spread = load_experiment(QUICKSTART), load_experiment(QUICKSTART, there)
    assert spread.experiment_id == alone.experiment_id
    paid = ["critic.kind=llm", "critic.model=m", "critic.max_budget=1", "critic.price_out=1"]
    with pytest.raises(ConfigError, match="need one process at a time"):
        load_experiment(QUICKSTART, [*there, *paid, "critic.base_url=http://127.0.0.1:1/v1"])
    with pytest.raises(ConfigError, match=r"cluster\.root"):
        load_experiment(QUICKSTART, ["cluster.root=runs"])  # which folder is that, elsewhere?
    with pytest.raises(ConfigError, match=r"cannot set this"):
        load_experiment(QUICKSTART, there, trusted=False)


def test_a_node_begins_with_the_rows_that_its_training_reads(run, root, tmp_path):
    attempt = open_attempt(run, root)
    receive(attempt, tmp_path / "node" / DATABASE)
    with Session(tmp_path / "node") as session:
        there = ConditionRun(session, EXPERIMENT, "reference", 1)
        assert there.prompt_day == run.prompt_day
        assert there.train_problems.equals(run.train_problems)
        assert there.policy(4) == run.policy(4) and there.policy(0) == run.policy(0)
        for table in ("rollouts", "scores", "updates", "contexts"):
            own = [each.store.rows(table, **run.columns) for each in (there, run)]
            assert own[0].sort(pl.all()).equals(own[1].sort(pl.all())) and len(own[0])
        assert set(session.store.rows("policies")["condition"]) == {"base", "reference"}


def test_rows_are_sent_at_once_and_a_round_with_its_checkpoint(run, root, tmp_path):
    attempt, node = open_attempt(run, root), tmp_path / "node"
    outbox = Outbox(node, root, attempt)
    frames = {name: run.store.rows(name, **run.columns) for name in ("scores", "updates")}
    outbox.add({"scores": frames["scores"]}, False)
    assert [name[:6] for name in parts.names(attempt)] == ["000001"]
    round_ = next_policy(run)
    outbox.add({**round_.frames, "updates": frames["updates"]}, False)
    outbox.flush()
    assert len(parts.names(attempt)) == 1  # its checkpoint is not written
    folder = node / StoredPolicy.from_frame(round_.frames["policies"])[0].checkpoint
    folder.mkdir(parents=True)
    outbox.flush()
    assert [name[:6] for name in parts.names(attempt)] == ["000001", "000002"]
    copies = root / f"{folder.parent.relative_to(node).as_posix()}"
    for name in ("round-0004-abc", "round-0005-abc"):
        (copies / name).make()
    outbox.add(next_policy(run).frames, True)
    assert copies.names() == ["round-0004-abc", "round-0005-abc"]  # until the rows are sent
    outbox.flush()
    assert copies.names() == ["round-0005-abc"]  # the node has dropped the other one
    outbox.add({"scores": frames["scores"].clear()}, False)  # nothing
    outbox.flush()
    sent = [parts.read(attempt, name) for name in parts.names(attempt)]
    assert [sorted(part.frames) for part in sent] == [
        ["scores"], ["policies", "updates"], ["policies"],
    ]  # fmt: skip
    assert [part.replaces for part in sent] == [False, False, True]
    attempt.remove()
    (tmp_path / "root").chmod(0o500)
    with pytest.raises(StoreError, match="cannot be sent"):
        outbox.add({"scores": frames["scores"]}, False)


def test_parts_are_merged_once_and_those_of_an_older_attempt_never(run, root):
    first = open_attempt(run, root)
    parts.write(first, next_policy(run), 1)
    assert [sorted(part.frames) for part in merge(run, first)] == [["policies"]]
    assert merge(run, first) == [] and parts.names(first) == []
    parts.write(first, next_policy(run, 6), 2)
    second = open_attempt(run, root)  # it merges what the first has left
    assert run.policy(6).policy_id == "p6"
    first.make()
    parts.write(first, next_policy(run, 7), 3)  # by a node that was given up for lost
    assert first.has(parts.names(first)[0]) and merge(run, second) == []
    third = open_attempt(run, root)
    assert first.path < second.path < third.path and not first.has(GIVEN)
    with pytest.raises(StoreError, match="not stored"):
        run.policy(7)
    with pytest.raises(StoreError, match="attempt is not there"):
        receive(second, run.root / "node" / DATABASE)


def test_a_checkpoint_arrives_whole_or_not_at_all(root, tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    policy = StoredPolicy("e", "base", 0, "p", None, 0, 0, "full", None, "")
    save(llama(), here / policy.checkpoint)
    policy = replace(policy, sha256=weight_files.folder_digest(here / policy.checkpoint))
    pull(there, policy, root, resumable=False)
    assert not there.exists()  # it is nowhere
    push(here, policy, root)
    place = root / f"{policy.checkpoint}-{policy.sha256[:16]}"
    pull(there, policy, root, resumable=False)
    names = [sorted(path.name for path in (each / policy.checkpoint).iterdir())
             for each in (here, there)]  # fmt: skip
    assert names[0] == names[1] == place.names()
    weight_files.require(there / policy.checkpoint, policy.sha256)

    other = tmp_path / "other"
    place.files.rm_file(f"{place.path}/{sealed.CHECKSUMS}")  # a copy that was cut off
    pull(other, policy, root, resumable=False)
    assert not (other / policy.checkpoint).exists()
    push(here, policy, root)  # it is made whole
    flip(tmp_path / "root" / f"{policy.checkpoint}-{policy.sha256[:16]}" / weight_files.FULL_FILE)
    pull(other, policy, root, resumable=False)
    assert not (other / policy.checkpoint).exists() and place.names() == []
    assert "copied checkpoint is damaged" in capsys.readouterr().err


def test_a_run_is_trained_when_every_split_is_scored(run):
    assert is_trained(run)
    run.store.supersede({"scores": "split = $split AND round = 4"}, {"split": "test"})
    assert not is_trained(run)
    row = run.columns | {"round": 3, "good_round": 2, "sign": "entropy", "reason": "it fell"}
    run.store.append_missing(stops=TABLES["stops"].frame([row]))
    assert is_trained(run)  # what was stopped is scored up to its last good round


class Lost(Exception):
    """As Ray's, of a node that is gone."""


@pytest.fixture
def nodes(run, root, monkeypatch):
    """Let a function stand in for the nodes; gives the loop over finished jobs."""
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    errors = SimpleNamespace(RayError=Lost, RayTaskError=ZeroDivisionError)

    def wait(references, **options):
        return references[:1], references[1:]

    def get(reference):
        result = reference()
        if isinstance(result, Lost | ZeroDivisionError):
            raise result
        return result

    ray = SimpleNamespace(wait=wait, get=get, exceptions=errors)

    def finished(node):
        job = Job(run, root)
        remote = SimpleNamespace(remote=lambda *given: lambda: node(given))
        return list(cluster._finished(ray, remote, {job.start(remote): job}))

    return finished


def test_what_a_lost_node_has_sent_is_kept_and_another_goes_on(run, root, nodes, capsys):
    given = []

    def node(arguments):
        given.append(arguments[-1])
        if len(given) == 1:
            parts.write(parts.Folder(root.files, arguments[-1]), next_policy(run), 1)
            return Lost("the node died")
        return None

    assert [job.run for job in nodes(node)] == [run]
    assert len(set(given)) == 2 and run.policy(5).policy_id == "p5"
    assert "reference/seed-1 was lost, and goes on elsewhere: the node died" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_that_is_lost_again_and_again_ends_with_an_error(nodes):
    tried = []
    with pytest.raises(SdcoreError, match=r"lost 3 times in a row[\s\S]*no memory"):
        nodes(lambda given: tried.append(given) or Lost("no memory"))
    assert len(tried) == ATTEMPTS


def test_a_nodes_own_error_is_raised_and_not_tried_again(nodes):
    own, tried = ConfigError("the critic's key is not set", fix="export it"), []
    with pytest.raises(ConfigError) as raised:
        nodes(lambda given: tried.append(given) or own)
    assert raised.value is own and len(tried) == 1
    with pytest.raises(ZeroDivisionError):
        nodes(lambda given: ZeroDivisionError())
