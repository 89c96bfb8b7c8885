import ast
import subprocess
import sys

import pytest
import torch

from sdcore.distributed import collectives
from sdcore.models import weight_files
from tests.helpers.paths import ROOT
from tests.helpers.two_ranks import CASES, train


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Updates by case, and the folder with the checkpoints, of two processes under torchrun."""
    folder = tmp_path_factory.mktemp("together")
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "tests.helpers.two_ranks", str(folder),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = [ast.literal_eval(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {name: updates for line in lines for name, updates in line.items()}, folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(case, together, tmp_path):
    updates, folder = together
    alone = train(case, tmp_path)
    for ours, theirs in zip(updates[case], alone, strict=True):
        for name in ("loss", "grad_norm", "entropy", "kl", "logprob_drift"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
        assert (ours["rollouts"], ours["tokens"]) == (theirs["rollouts"], theirs["tokens"])
    for checkpoint in ("middle", "end"):
        for path in sorted((tmp_path / checkpoint).rglob("*.safetensors")):
            same = folder / case / path.relative_to(tmp_path)
            theirs, ours = weight_files.load_tensors(path), weight_files.load_tensors(same)
            assert ours.keys() == theirs.keys()
            for name, expected in theirs.items():
                torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_that_one_rank_cannot_read_is_an_error_on_all(together):
    on_first, on_second = together[0]["apart"]
    changed = "files are not as they were written: missing, unreadable or changed: model"
    expected = ("not a checkpoint to resume: no trainer/state.json", changed, changed)
    for first, second, start in zip(on_first, on_second, expected, strict=True):
        assert second.startswith(start)
        assert first.startswith(f"another rank failed: {start.partition(':')[0]}")


def test_alone_nothing_is_exchanged():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    collectives.sum_gradients([weight])
    assert weight.grad.tolist() == [1, 2]
    assert collectives.rank_and_world_size() == (0, 1)
    assert collectives.gather(["a"]) == ["a"]
    assert collectives.together(lambda: 3) == 3
    assert collectives.whole(weight) is weight


def test_gradients_are_exchanged_in_buckets_that_keep_their_order(monkeypatch):
    monkeypatch.setattr(collectives, "BUCKET", 8)
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 1, 9, 2, 2)]
    sizes = [[w.numel() for w in group] for group in collectives.buckets(weights)]
    assert sizes == [[3, 4, 1], [9], [2, 2]]
    assert list(collectives.buckets([])) == []
