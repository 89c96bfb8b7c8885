from fractions import Fraction

import pytest

from sdcore.grading.laurent import Laurent, is_part

A, B, C, D, R = (Laurent.variable(index) for index in range(5))
HUNDRED, ONE = (Laurent.constant(Fraction(each)) for each in (100, 1))
WHOLE = A.times(B).plus(C, -1).times(D)  # (a*b - c) * d
LEFT = A.plus(A.times(R).over(HUNDRED), -1)  # a - a*r/100


def test_sums_products_and_quotients():
    assert A.plus(B).plus(A, -1) == B
    assert A.times(B).over(A) == B and A.plus(B).times(C) == A.times(C).plus(B.times(C))
    assert A.over(A.plus(B)) is None  # not a Laurent polynomial
    assert A.plus(A, -1).terms == frozenset()


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (A.times(B), WHOLE), (B.times(D), WHOLE), (C.times(D), WHOLE), (WHOLE, WHOLE),
        (C.plus(A.times(B), -1), WHOLE), (A.times(B).times(HUNDRED), WHOLE),
        (HUNDRED.plus(R, -1), LEFT), (ONE.plus(R.over(HUNDRED), -1), LEFT), (A.times(R), LEFT),
        (ONE.plus(R, -1), A.over(R).plus(A, -1)), (ONE, WHOLE),
    ],
)  # fmt: skip
def test_parts(part, whole):
    assert is_part(part, whole)


@pytest.mark.parametrize(
    ("other", "whole"),
    [
        (A.plus(B), WHOLE), (A.times(C), WHOLE), (A.over(B), WHOLE), (R, WHOLE),
        (A.times(B).plus(C), WHOLE), (A.times(A), WHOLE), (HUNDRED.plus(R), LEFT),
        (A.times(B), A.over(B)), (A.plus(A, -1), WHOLE),
    ],
)  # fmt: skip
def test_what_is_no_part(other, whole):
    assert not is_part(other, whole)
