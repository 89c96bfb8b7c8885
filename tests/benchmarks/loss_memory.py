"""Peak memory of the forward-KL loss, forward and backward, from hidden states to their gradient.

In units of one [T, V] float32 tensor. The rival is TRL's full-logit path; Liger's fused JSD is
measured where it is installed (it needs Triton).
"""

import _losses
from _measure import peak_bytes, report

SHORT, LONG = 1024, 4096


def main() -> None:
    figures: dict[str, object] = {}
    peaks = {}
    for name, path in _losses.PATHS.items():
        for trained in (False, True):
            head = "trained" if trained else "frozen"
            for tokens in (SHORT, LONG):
                peak = peak_bytes(path(_losses.inputs(tokens, trained=trained)))
                peaks[name, head, tokens] = peak
                figures[f"{name}, {head} head, T={tokens}: units"] = round(
                    peak / (4 * tokens * _losses.VOCABULARY), 3
                )
    # Gradients of the hidden states, and the scores, are all that may grow with T.
    growth = peaks["sdcore", "frozen", LONG] - peaks["sdcore", "frozen", SHORT]
    hidden = 4 * (LONG - SHORT) * _losses.HIDDEN
    units = peaks["sdcore", "frozen", SHORT] / (4 * SHORT * _losses.VOCABULARY)
    report(
        "loss_memory",
        units,
        "at most 1.0 unit at T=1024, and no growth to T=4096 beyond the hidden states",
        units <= 1.0 and growth <= 2.1 * hidden,
        growth_over_hidden_states=round(growth / hidden, 3),
        bytes={" ".join(map(str, key)): peak for key, peak in peaks.items()},
        **figures,
    )


if __name__ == "__main__":
    main()
