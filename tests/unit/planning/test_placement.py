"""Which GPU the trainer, the vLLM server and the critic get."""

import pytest

from sdcore.config import Experiment
from sdcore.errors import ConfigError
from sdcore.planning.placement import Placement, described, placements

DISTILL = {"objective": "distill", "context": "reference", "learning_rate": 1e-5}
OURS = {"engine": {"kind": "vllm"}}
SPLIT = {"engine": {"kind": "vllm", "arguments": ["--tensor-parallel-size=4"]}}
PROCESS = {"engine": {"kind": "transformers"}}
THEIRS = {
    "engine": {"kind": "vllm", "urls": ["http://127.0.0.1:1"]},
    "training": {"questions_per_round": 8, "lora": {"rank": 4}},
}
JUDGE = {
    "critic": {"kind": "llm", "model": "judge"},
    "conditions": {"one": DISTILL | {"context": "step_aligned"}},
}
ELSEWHERE = JUDGE | {
    "critic": {"kind": "llm", "model": "judge", "base_url": "http://127.0.0.1:2/v1"}
}


def made(**sections) -> Experiment:
    given = {
        "name": "small", "model": {"name": "Qwen/Qwen3-1.7B", "dtype": "bfloat16"},
        "problems": {"source": "dataset", "name": "x", "train": 8, "validation": 8, "test": 8},
        "conditions": {"one": DISTILL}, "training": {"questions_per_round": 8},
    }  # fmt: skip
    return Experiment.model_validate(given | sections)


def placed(sections, count, **how):
    return placements(made(**sections), [str(i) for i in range(count)], **how)


@pytest.mark.parametrize(
    ("sections", "count", "trainer", "server", "critic"),
    [
        (OURS, 1, "0", "0", None),
        (OURS, 2, "0", "1", None),
        (OURS, 8, "0", "1", None),
        (PROCESS, 8, "0", "", None),
        (THEIRS, 2, "0", "", None),
        (SPLIT, 4, "0", "0123", None),
        (SPLIT, 8, "0", "1234", None),
        (OURS | JUDGE, 1, "0", "0", "0"),
        (OURS | JUDGE, 2, "0", "1", "0"),
        (OURS | JUDGE, 8, "0", "1", "2"),
        (PROCESS | JUDGE, 2, "0", "", "1"),
        (OURS | ELSEWHERE, 8, "0", "1", None),
    ],
)
def test_one_worker_on_one_two_and_eight_gpus(sections, count, trainer, server, critic):
    assert placed(sections, count) == [Placement(tuple(trainer), tuple(server), critic)]


def test_a_server_is_never_on_the_gpu_of_another_worker():
    for count, workers in ((2, 2), (4, 2), (8, 2), (8, 3), (8, 4), (8, 8)):
        made_ = placed(OURS, count, workers=workers)
        seen = [gpu for each in made_ for gpu in each.visible]
        assert len(made_) == workers and len(seen) == len(set(seen))
        assert all(each.is_shared == (count // workers == 1) for each in made_)
    two = placed(OURS, 4, workers=2)
    assert [each.visible for each in two] == [("0", "1"), ("2", "3")]


def test_a_worker_that_sees_its_gpus_alone_places_itself_alike():
    """The first process places all; each of the others is given what it may see."""
    experiment = made(**(OURS | JUDGE))
    names = ["GPU-a", "GPU-b", "GPU-c", "GPU-d", "GPU-e", "GPU-f", "GPU-g"]
    for each in placements(experiment, names, 2):
        assert placements(experiment, each.visible) == [each]


def test_ranks_of_torchrun_come_first_and_the_server_after_them():
    assert placed(OURS, 8, ranks=8) == [Placement(tuple("01234567"), ("0",))]
    assert placed(OURS, 8, ranks=4) == [Placement(tuple("0123"), ("4",))]


def test_more_workers_than_gpus_share_them_where_nothing_fills_a_gpu():
    assert [each.trainer for each in placed(PROCESS, 2, workers=3)] == [("0",), ("1",), ("0",)]
    with pytest.raises(ConfigError, match="more GPUs than there are") as caught:
        placed(OURS, 2, workers=3)
    assert caught.value.fix == "--workers 2"
    with pytest.raises(ConfigError) as caught:
        placed(SPLIT, 2)
    assert "--tensor-parallel-size" in caught.value.fix


def test_without_a_gpu_nothing_is_placed():
    (alone, other) = placed(SPLIT, 0, workers=2)
    assert alone == other == Placement(()) and alone.visible == () and not alone.is_shared


def test_it_is_said_in_one_line():
    assert described(placed(OURS | JUDGE, 4), "0123") == (
        "trainer on 0, vLLM on 1, critic on 2; idle: 3"
    )
    assert described(placed(OURS, 2, workers=2), "01") == (
        "worker 1: trainer on 0, vLLM on 0; worker 2: trainer on 1, vLLM on 1"
    )
