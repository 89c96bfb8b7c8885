from sdcore.config import CriticSettings, critic
from sdcore.contexts import Critique
from sdcore.critics.llm import Critic


class StubbornSettings(CriticSettings):
    step: str = "see the reference"


@critic(StubbornSettings)
class Stubborn(Critic):
    """Calls every first step wrong and writes the same one in its place."""

    name = "stubborn"

    def __init__(self, settings, open_client):
        self._step = settings.step

    def criticise(self, submissions):
        for index, each in enumerate(submissions):
            answer = f"<answer>{each.reference}</answer>"
            yield index, Critique("D", 1, f"<step_1>{self._step}</step_1>{answer}")
