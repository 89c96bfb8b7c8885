from sdcore.config import Settings, engine
from sdcore.engines import Engine, silent, unheard
from sdcore.engines.transformers import open_engine


class Shortened(Settings):
    limit: int = 1000


@engine(Shortened)
class Careful(Engine):
    """The engine of this process, with a limit of its own on the length of responses."""

    reads_folders = False

    def __init__(self, settings, resources):
        self._limit = settings.options["limit"]
        self._inner = open_engine(settings, resources)

    def load(self, policy):
        self._inner.load(policy)

    def generate(self, requests, sampling, on_progress=silent, on_finished=unheard):
        length = min(self._limit, sampling.max_new_tokens)
        short = sampling.model_copy(update={"max_new_tokens": length})
        return self._inner.generate(requests, short, on_progress, on_finished)

    def close(self):
        self._inner.close()
