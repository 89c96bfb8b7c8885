"""Rounds that are sampled from the weights before the last update, with real parts."""

import pytest

from sdcore.config import load_experiment
from sdcore.errors import ConfigError
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import assert_same, count, kill, sdcore, start, tables, wait_for

pytestmark = pytest.mark.usefixtures("prefect")
LAGGING = """
name = "lagging"
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 8, validation = 2, test = 2 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 4, questions_per_round = 4, save_every = 4, lag = 1 }
evaluation = { every = 4, samples = 1, validation_samples = 1, resamples = 200 }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 0.002
[conditions.grpo]
objective = "grpo"
group_size = 2
learning_rate = 0.002
"""
APART = '''
"""An engine that reads policies from disk, and a teacher that waits for it, and it for the teacher.

Each train round after the first is drawn while the one before is trained, or both wait in vain.
"""
import threading

from sdcore.config import DistillConfig, engine, objective
from sdcore.engines.transformers import open_engine
from sdcore.training.objectives import Distillation

MET, TRAINED = threading.Barrier(2), []
ROUND = 4  # problems of a training round; the other splits have 2


@engine()
class Apart:
    reads_folders, update_share = True, None

    def __init__(self, settings, resources):
        self._inner, self._rounds = open_engine(settings, resources), 0
        self.close = self._inner.close

    def load(self, policy):
        if policy.folder != policy.base:  # it begins with the base
            self._inner.load(policy)

    def generate(self, requests, sampling, on_progress, on_finished):
        if len(requests) == ROUND:
            if self._rounds:
                MET.wait(60)
            self._rounds += 1
        return self._inner.generate(requests, sampling, on_progress, on_finished)


class Settings(DistillConfig):
    objective: str


@objective(Settings)
class Meeting(Distillation):
    def loss(self, examples, device):
        if len(TRAINED) < 2:  # the third round is the last, and has none after it
            MET.wait(60)
        TRAINED.append(examples)
        return super().loss(examples, device)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lag") / "lagging.toml"
    path.write_text(LAGGING, "utf-8")
    return path


@pytest.fixture(scope="module")
def whole(file, prefect):
    workspace = file.parent / "whole"
    sdcore("run", file, "--workspace", workspace)
    return workspace


def test_each_round_is_sampled_from_the_weights_before_the_last_update(whole):
    rows = tables(whole)
    for condition in ("aligned", "grpo"):
        policies = rows["policies"].filter(condition=condition).sort("round")
        base = rows["policies"].filter(condition="base", round=0)["policy_id"].item()
        after = [base, *policies["policy_id"]]  # by rounds
        assert policies["round"].to_list() == [1, 2, 3, 4]
        drawn = rows["rollouts"].filter(condition=condition, purpose="train")
        by_round = drawn.group_by("round").agg("policy_id").sort("round")
        size = 4 if condition == "aligned" else 8
        assert by_round.rows() == [
            (0, [after[0]] * size), (1, [after[0]] * size),
            (2, [after[1]] * size), (3, [after[2]] * size),
        ]  # fmt: skip
        assert len(set(drawn["sampling_seed"])) == 4 * size
        first, *later = rows["updates"].filter(condition=condition).sort("round")["logprob_drift"]
        assert first < 1e-5 and min(later) > 10 * first  # the weights have moved on since


@pytest.mark.night
@pytest.mark.parametrize("updates", [1, 3])
def test_a_killed_run_ends_as_if_it_never_had_been(file, whole, tmp_path, updates):
    """No checkpoint is due before the last round, so that older weights are made again."""
    process = start("run", file, "--workspace", tmp_path)
    wait_for(process, lambda: count(tmp_path, "updates") >= updates)
    kill(process)
    sdcore("run", file, "--workspace", tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.night
def test_a_round_whose_rollouts_are_superseded_is_sampled_from_the_same_weights(file, tmp_path):
    often = [file, "training.save_every=1"]
    sdcore("run", *often, "--workspace", tmp_path / "whole")
    redone = tmp_path / "redone"
    sdcore("run", *often, "--workspace", redone)
    place = ["--condition", "aligned", "--seed", 0, "--round", 2, "--workspace", redone]
    sdcore("rerun", "lagging", "--from", "sample", *place)
    sdcore("run", *often, "--workspace", redone)
    assert_same(redone, tmp_path / "whole")


def test_a_server_samples_the_next_round_while_this_one_is_trained(tmp_path):
    (tmp_path / "apart.py").write_text(APART, "utf-8")
    file = tmp_path / "apart.toml"
    beside = LAGGING.replace('objective = "distill"', 'objective = "apart:Meeting"')
    beside = beside.partition("[conditions.grpo]")[0].replace("rounds = 4", "rounds = 3")
    file.write_text(f'{beside}[engine]\nkind = "apart:Apart"\n', "utf-8")
    sdcore("run", file, "--workspace", tmp_path / "runs")
    assert len(tables(tmp_path / "runs")["updates"]) == 3


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("conditions.reference.divergence=policy_gradient", "policy_gradient"),
        ("sampling.temperature=0.7", "sampling.temperature = 0.7"),
    ],
)
def test_a_gradient_that_needs_the_very_weights_is_refused(override, reason):
    with pytest.raises(ConfigError, match=reason):
        load_experiment(QUICKSTART, ["training.lag=1", override])
    load_experiment(QUICKSTART, ["training.lag=0", override])
