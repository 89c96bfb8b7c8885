from sdcore.config import Settings, source
from sdcore.problems.arithmetic import generate_problems


class Drawn(Settings):
    count: int = 60
    word: str = "Question:"


@source(settings=Drawn, endless=True)
def sums(config):
    """Sums, each announced by a word."""
    for problem in generate_problems(config.options["count"], config.seed, holdout=True):
        question = f"{config.options['word']} {problem.question}"
        yield {"question": question, "answer": str(problem.answer)}
