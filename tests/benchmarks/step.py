"""Time and peak memory of a whole distillation step of SmolLM2-135M, against TRL's trainer."""

import resource
import subprocess
import sys

import _steps
from _measure import alternating, ratio, report

PAIRS = 5
WORK = {"sdcore": _steps.ours, "trl": lambda examples: _steps.trl([examples])}


def peak_rss(name: str) -> int:
    """Peak resident bytes of a process that takes two steps."""
    command = [sys.executable, __file__, name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def main() -> None:
    examples = _steps.rollouts()
    rss = {name: peak_rss(name) for name in WORK}  # first: a child's peak starts at its parent's
    pairs = alternating(_steps.trl([examples]), _steps.ours(examples), PAIRS)
    memory = rss["sdcore"] / rss["trl"]
    report(
        "step",
        ratio(pairs),
        "at most 0.6 of TRL's time and 0.5 of its peak RSS",
        ratio(pairs) <= 0.6 and memory <= 0.5,
        rss_ratio=round(memory, 3),
        rss_bytes=rss,
        seconds_of_rival_and_sdcore=pairs,
        response_lengths=_steps.LENGTHS,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work = WORK[sys.argv[1]](_steps.rollouts())
        work(), work()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        main()
