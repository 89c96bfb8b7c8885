"""What tests/test_ranks.py runs under torchrun: each case trains, saves, and resumes once."""

import faulthandler
import shutil
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from sdcore.config import DistillConfig, GrpoConfig, TeacherConfig, TrainingConfig
from sdcore.distributed import collectives
from sdcore.errors import SdcoreError
from sdcore.models import weight_files
from sdcore.training.trainer import Trainer
from tests.helpers.tiny import LORA, adapted, examples, flip, llama

distill = partial(DistillConfig, objective="distill", context="none", learning_rate=1e-2)
grpo = GrpoConfig(objective="grpo", learning_rate=1e-2, kl_coefficient=0.1, normalise="sequence")
CASES = {  # condition, all weights, sharded
    "adapter": (distill(), False, False),
    "full": (distill(), True, False),
    "grpo": (grpo, False, False),
    "weighted": (distill(tokens={"kind": "advantages", "bound": 0.5}), False, False),
    "sharded weighted": (distill(tokens={"kind": "advantages", "bound": 0.5}), True, True),
    "sharded": (distill(), True, True),
    "sharded untied": (distill(divergence="jsd"), True, True),
    "sharded ema": (distill(teacher=TeacherConfig(kind="ema", decay=0.5)), True, True),
    "sharded grpo": (grpo, True, True),
}


def train(case: str, folder: Path) -> list[dict[str, object]]:
    """Two steps, a checkpoint, and a third step by a trainer that resumes from it."""
    condition, full, sharded = CASES[case]
    lora = None if full else LORA
    training = TrainingConfig(lora=lora, tokens_per_microbatch=30, sharded=sharded)

    def trainer() -> Trainer:
        model = llama(tied="untied" not in case) if full else adapted()
        return Trainer(model, condition, training, total_steps=9, seed=0)

    first = trainer()
    updates = [first.step(examples(count)) for count in (7, 1)]
    first.save(folder / "middle")
    on_first = collectives.rank_and_world_size()[0] == 0
    assert (
        bool(weight_files.gathered(first.model)) == on_first
    )  # nobody else keeps what is gathered
    second = trainer()
    second.signals(examples(2))  # a pass without a backward must leave nothing behind
    second.load(folder / "middle")
    updates.append(second.step(examples(5)))
    second.save(folder / "end")
    return [asdict(replace(update, seconds=0, signals=[])) for update in updates]


def load_apart(folder: Path) -> list[str]:
    """What each rank's error says when rank 1 alone finds something wrong with a checkpoint."""
    condition, _, _ = CASES["full"]
    trainer = Trainer(llama(), condition, TrainingConfig(lora=None), total_steps=9, seed=0)
    first = torch.distributed.get_rank() == 0
    trainer.save(folder)
    own = folder if first else folder.with_name("of rank 1")
    if not first:
        shutil.copytree(folder, own)
        flip(own / weight_files.FULL_FILE)
    said = []
    for load, path in (
        (trainer.load, own if first else own / "nowhere"),
        (trainer.load, own),
        (trainer.load_weights, own),
    ):
        try:
            load(path)
        except SdcoreError as error:
            said.append(f"{error.what}: {error.got}")
    return collectives.gather([said])


if __name__ == "__main__":
    faulthandler.dump_traceback_later(120, exit=True)  # a hang ends, and says where it was
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name in CASES:
        found = train(name, Path(sys.argv[1]) / name)
        if torch.distributed.get_rank() == 0:
            print(repr({name: found}))
    said = load_apart(Path(sys.argv[1]) / "apart")
    if torch.distributed.get_rank() == 0:
        print(repr({"apart": said}))
    torch.distributed.destroy_process_group()
