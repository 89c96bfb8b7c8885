"""Tokens are counted where the tokenizer is at hand, and approximated where it is not."""

import pytest

from sdcore.planning.lengths import approximate_tokens

# Counted with SmolLM2's tokenizer.
COUNTED = {
    "<step_1>take 14, subtract 1: 13</step_1><step_2>take 13, add 3: 16</step_2><answer>16": 47,
    "Natalia sold 48/2 = 24 clips in May. She sold 48+24 = 72 clips in April and May.": 35,
    r"Let $x = \frac{a}{b}$ be such that $\sin(x)^2 + 3x \le 14$. Then $\boxed{42}$ follows.": 40,
}  # fmt: skip


@pytest.mark.parametrize("text", COUNTED)
def test_tokens_are_approximated_without_a_tokenizer(text):
    assert approximate_tokens(text) == pytest.approx(COUNTED[text], rel=0.12)


def test_a_long_word_has_several_tokens_and_nothing_has_none():
    assert approximate_tokens("environmental") == pytest.approx(13 / 6)
    assert approximate_tokens("") == 0
