"""A trained policy to keep and to use: its weights, the base model's name, prompts and sampling."""

import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from sdcore.config import Experiment
from sdcore.engines import Request, Served
from sdcore.engines.transformers import TransformersEngine
from sdcore.errors import ModelError
from sdcore.models import hub, policies, sealed, weight_files
from sdcore.models.prompts import student_prompt
from sdcore.traces import response_text


def save_solver(
    folder: Path,
    experiment: Experiment,
    checkpoint: Path,
    day: date,
    warmed_up: Path | None = None,
) -> None:
    """Write what `Solver` loads: the weights of a checkpoint, settings, and the base's name.

    Args:
        folder: to be created.
        experiment: whose prompts and sampling the solver uses.
        checkpoint: folder of the trained weights.
        day: the date in prompts whose chat template reads the clock.
        warmed_up: folder of a warmed-up base, which is copied because no name stands for it.
    """
    adapted = experiment.training.lora is not None
    file = weight_files.ADAPTER_FILE if adapted else weight_files.FULL_FILE
    base = warmed_up or hub.resolve(experiment.model.name)
    about = {
        "experiment": experiment.model_dump(mode="json"),
        "base_sha256": weight_files.folder_digest(base),
        "prompt_day": day.isoformat(),
    }
    sealed.require_intact(checkpoint, file)
    with sealed.replacing(folder) as fresh:
        shutil.copyfile(checkpoint / file, fresh / file)
        if warmed_up:
            shutil.copytree(warmed_up, fresh / "base")
        (fresh / "solver.json").write_text(json.dumps(about, indent=2), "utf-8")


class Solver:
    """Answers questions with the prompts and the sampling settings of the policy's experiment."""

    def __init__(self, folder: Path) -> None:
        """Load the base model and put the saved weights on it.

        Raises:
            ModelError: a file is damaged, or the name now stands for other weights than those that
                training started from.
        """
        sealed.require_intact(folder)
        about = json.loads((folder / "solver.json").read_text("utf-8"))
        self.experiment = Experiment.model_validate(about["experiment"])
        warmed_up = self.experiment.warmup is not None
        base = folder / "base" if warmed_up else hub.resolve(self.experiment.model.name)
        digest = weight_files.folder_digest(base)
        if digest != about["base_sha256"]:
            raise ModelError(
                "the base model is not the one that this policy was trained from",
                got=digest,
                expected=about["base_sha256"],
                where=str(base),
            )
        day = date.fromisoformat(about["prompt_day"])
        self._tokenizer = policies.load_tokenizer(base, day)
        self._engine = TransformersEngine(
            policies.load_policy(base, self.experiment.model),
            end_ids=policies.end_ids(base),
        )
        trained = policies.load_policy(base, self.experiment.model)
        if self.experiment.training.lora:
            trained = policies.attach_lora(trained, self.experiment.training.lora, seed=0)
        weight_files.load(trained, folder)
        self._engine.load(Served("solver", folder, base, live=trained))

    def predict(self, questions: Sequence[str]) -> list[str]:
        """One sampled trace for each question; the same call gives the same traces."""
        prompts = [
            student_prompt(self._tokenizer, self.experiment.prompts, question)
            for question in questions
        ]
        requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
        completions = self._engine.generate(requests, self.experiment.sampling)
        return [response_text(self._tokenizer, each.token_ids) for each in completions]


def _load_pyfunc(path: str) -> Solver:
    """Entry point that MLflow calls in the loader module of a model."""
    return Solver(Path(path))
