"""Laurent polynomials with exact coefficients: sums of products of variables and their inverses.

``12 * 8 - 5`` with variables for its numbers is ``a*b - c``. What a solution computes, as a
function of a question's numbers, is such a polynomial as long as it divides by products only.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

Monomial = tuple[tuple[int, int], ...]  # variables in order, each with an exponent that is not 0

MAX_TERMS = 200


@dataclass(frozen=True)
class Laurent:
    """A polynomial as its monomials with their coefficients, none of which is 0."""

    terms: frozenset[tuple[Monomial, Fraction]]

    @classmethod
    def of(cls, terms: Mapping[Monomial, Fraction]) -> Self:
        """The polynomial with these terms; zeros are left out."""
        return cls(frozenset((each, factor) for each, factor in terms.items() if factor))

    @classmethod
    def constant(cls, number: Fraction) -> Self:
        """A number."""
        return cls.of({(): number})

    @classmethod
    def variable(cls, index: int) -> Self:
        """A variable by itself."""
        return cls.of({((index, 1),): Fraction(1)})

    def plus(self, other: Self, factor: int = 1) -> Self | None:
        """The sum, or with -1 the difference; None for more than `MAX_TERMS` terms."""
        total = defaultdict[Monomial, Fraction](Fraction, self.terms)
        for each, number in other.terms:
            total[each] += factor * number
        return self.of(total) if len(total) <= MAX_TERMS else None

    def times(self, other: Self) -> Self | None:
        """The product; None for more than `MAX_TERMS` terms."""
        total = defaultdict[Monomial, Fraction](Fraction)
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            return None
        for mine, number in self.terms:
            for theirs, factor in other.terms:
                total[_product(mine, theirs)] += number * factor
        return self.of(total)

    def over(self, other: Self) -> Self | None:
        """The quotient; None where the divisor has not exactly one term."""
        if len(other.terms) != 1:
            return None
        ((divisor, factor),) = other.terms
        return self.times(self.of({_power(divisor, -1): 1 / factor}))


def is_part(part: Laurent, whole: Laurent) -> bool:
    """Return whether a polynomial, times a monomial, is proportional to some of another's terms.

    ``1 - r/100`` is a part of ``x - x*r/100 + d``, and so are ``100 - r``, ``x*r`` and ``x + d``;
    ``x + r`` and ``x*d`` are not. The monomial may have no variable in a power that lies beyond
    those of the whole: otherwise every product would be a part of every other. Nor may the part
    divide by a variable by which the whole does not.
    """
    goal, bounds = dict(whole.terms), _bounds(whole)
    if not part.terms or any(
        power < min(bounds.get(variable, (0, 0)))
        for place, _ in part.terms
        for variable, power in place
    ):
        return False
    (first, number), *others = sorted(part.terms)
    for place, wanted in goal.items():
        factor = _product(place, _power(first, -1))
        if not all(low <= power <= high for v, power in factor
                   for low, high in [bounds.get(v, (0, 0))]):  # fmt: skip
            continue
        scale = wanted / number
        if all(goal.get(_product(each, factor)) == scale * n for each, n in others):
            return True
    return False


def _bounds(whole: Laurent) -> dict[int, tuple[int, int]]:
    """Smallest and largest power of each variable, 0 among them."""
    bounds: dict[int, tuple[int, int]] = {}
    for place, _ in whole.terms:
        for variable, power in place:
            low, high = bounds.get(variable, (0, 0))
            bounds[variable] = min(low, power), max(high, power)
    return bounds


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = defaultdict[int, int](int, left)
    for variable, power in right:
        powers[variable] += power
    return tuple(sorted((v, power) for v, power in powers.items() if power))


def _power(base: Monomial, exponent: int) -> Monomial:
    return tuple((variable, power * exponent) for variable, power in base)
