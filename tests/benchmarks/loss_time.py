"""Time of the forward-KL loss, forward and backward, against TRL's full-logit path."""

import _losses
from _measure import alternating, ratio, report

TOKENS, PAIRS = 1024, 5


def main() -> None:
    figures: dict[str, object] = {}
    ratios = {}
    for trained in (False, True):
        paths = {
            name: path(_losses.inputs(TOKENS, trained=trained))
            for name, path in _losses.PATHS.items()
        }
        head = "trained head" if trained else "frozen head"
        for rival in paths.keys() - {"sdcore"}:
            pairs = alternating(paths[rival], paths["sdcore"], PAIRS)
            ratios[rival, trained] = ratio(pairs)
            figures[f"{rival}, {head}: ratio"] = round(ratios[rival, trained], 3)
            figures[f"{rival}, {head}: seconds of rival and sdcore"] = pairs
        losses = {name: path() for name, path in paths.items()}
        figures[f"{head}: losses"] = losses
    headline = ratios["trl", False]
    report("loss_time", headline, "at most 0.7 of TRL's time", headline <= 0.7, **figures)


if __name__ == "__main__":
    main()
