"""A round's critiques from an endpoint, in the ways that save time, against the plain ones.

A refused one is asked for again at once, against in waves; the critic is asked while others are
sampled, against after the last sample. The endpoint is simulated: an answer takes a drawn time, and
one in five is refused. All critiques of a round are under way at once, as in paper.toml.
"""

import json
import random
import time
from collections import Counter

from _measure import alternating, ratio, report

from sdcore.config import LlmCriticConfig
from sdcore.critics.client import ChatEndpoint
from sdcore.critics.llm import LlmCritic
from sdcore.critics.validation import Submission
from sdcore.testing import chat_endpoint, say, submitted

ROLLOUTS = 32
MEDIAN, SPREAD = 0.4, 0.5  # seconds and deviation of its logarithm; QwQ's answers take 250
REFUSED = 0.2
DRAWN = 0.05  # seconds until the sampler has drawn another rollout
PAIRS = 5
CORRECTED = "<step_1>3 + 4 = 7</step_1><answer>7</answer>"
GOOD = json.dumps({"case": "C", "first_wrong_step": None, "corrected": CORRECTED})


class Waves:
    """Asks again only when every conversation has its reply."""

    def __init__(self, client):
        self._client = client

    def ask(self, conversations, go_on):
        waiting = dict(enumerate(conversations))
        while waiting:
            indices = list(waiting)
            for place, reply in self._client.ask([waiting[index] for index in indices]):
                messages = go_on(indices[place], reply)
                if messages is None:
                    del waiting[indices[place]]
                    yield indices[place], reply
                else:
                    waiting[indices[place]] = messages


def answer(body):
    """The same times and refusals for the same trace and attempt, whoever asks."""
    rng = random.Random(f"{submitted(body).trace} {len(body['messages'])} {len(str(body))}")
    time.sleep(MEDIAN * rng.lognormvariate(0, SPREAD))
    return say("no verdict" if rng.random() < REFUSED else GOOD)


def drawn(rollouts):
    """The rollouts, as a sampler draws them."""
    for each in rollouts:
        time.sleep(DRAWN)
        yield each


def main():
    rollouts = [Submission("3 + 4?", f"number {n}", False, "7") for n in range(ROLLOUTS)]
    with chat_endpoint(answer) as (url, _):
        config = LlmCriticConfig(
            kind="llm", model="critic", base_url=url, concurrency=ROLLOUTS, attempts=3
        )
        endpoint = ChatEndpoint(config)
        attempts = []

        def criticise(client, submissions=rollouts):
            found = dict(LlmCritic(config, client).criticise(submissions))
            attempts.append(Counter(found[n].attempts for n in range(ROLLOUTS)))

        waves = alternating(lambda: criticise(Waves(endpoint)), lambda: criticise(endpoint), PAIRS)
        beside = alternating(
            lambda: criticise(endpoint, [*drawn(rollouts)]),
            lambda: criticise(endpoint, drawn(rollouts)),
            PAIRS,
        )
    assert len({str(sorted(each.items())) for each in attempts}) == 1, "all ask the same"
    for name, pairs in {"critic again": waves, "critic beside the sampler": beside}.items():
        headline = ratio(pairs)
        report(name, headline, "<= 1", headline <= 1, attempts=attempts[0], pairs=pairs)


if __name__ == "__main__":
    main()
