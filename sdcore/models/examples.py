"""Worked examples for few-shot prompts, written by hand; none is of a source that is shipped."""

from sdcore.traces import render_trace

EXAMPLES = tuple(
    (question, render_trace(steps, answer))
    for question, steps, answer in (
        (
            "A clown ties 4 bunches of 9 balloons each. Later 7 balloons burst. How many are left?",
            ["The clown ties 4 * 9 = 36 balloons.", "After the bursts, 36 - 7 = 29 are left."],
            "29",
        ),
        (
            "Wendy cycles 13 miles on each of 5 days, and 24 miles on the day after. How many "
            "miles does she cycle in all?",
            ["On the 5 days she cycles 5 * 13 = 65 miles.", "In all that is 65 + 24 = 89 miles."],
            "89",
        ),
        (
            "Of 80 seats in a cinema, 15% are broken. A ticket costs $6, and every seat that is "
            "not broken is sold. How many dollars does the cinema take in?",
            [
                "Broken are 80 * 15 / 100 = 12 seats.",
                "So 80 - 12 = 68 seats are sold.",
                "The cinema takes in 68 * 6 = 408 dollars.",
            ],
            "408",
        ),
        (
            "A cook has 63 ounces of rice and needs 7 ounces per pot. Each pot feeds 3 guests. How "
            "many guests can be fed?",
            ["The rice is enough for 63 / 7 = 9 pots.", "They feed 9 * 3 = 27 guests."],
            "27",
        ),
    )
)
"""Questions with a right trace each."""
