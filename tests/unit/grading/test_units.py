# ruff: noqa: E501
from fractions import Fraction

import pytest

from sdcore.grading.units import converts, mixed, ratios, singular


def test_a_plural_loses_its_ending():
    words = ["Hours", "eggs", "hrs", "gas", "-feet", "mins"]
    assert [singular(word) for word in words] == ["hour", "egg", "hrs", "gas", "feet", "min"]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("hour", "minute", {60, Fraction(1, 60), 1}), ("minute", "hour", {60, Fraction(1, 60), 1}),
        ("hour", "hour", {1}), ("hrs", "min", {60, Fraction(1, 60), 1}), ("", "", set()), ("egg", "apple", set()),
        ("cent", "", {Fraction(1, 100), 1}), ("", "cent", {100, 1}), ("dozen egg", "egg", {12, 1}),
        ("", "dozen", {Fraction(1, 12), 1}), ("km", "", {1}), ("km", "kg", {1}),
        ("month", "year", {Fraction(1, 12), 12, Fraction(30, 365), Fraction(365, 30), 1,
                           Fraction(4, 52), 13}),
    ],
)  # fmt: skip
def test_ratios_are_those_of_units_of_a_kind(left, right, expected):
    assert ratios(frozenset(left.split()), frozenset(right.split())) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("foot", "inch", True), ("inch", "foot", False), ("hour", "hour", False),
        ("day", "hour", False), ("dozen egg", "egg", True), ("dozen", "", False),
        ("egg", "egg", False), ("foot", "minute", False), ("foot", "", False),
        ("lbs", "ounce", True), ("yds", "feet", True), ("hrs", "minute", True),
    ],
)  # fmt: skip
def test_a_unit_is_converted_to_smaller_ones(left, right, expected):
    assert converts(frozenset(left.split()), frozenset(right.split())) == expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("pound ounce", True),
        ("pound lb", False),
        ("pound minute", False),
        ("pound", False),
        ("", False),
    ],
)
def test_units_are_mixed_if_two_of_a_kind_differ(units, expected):
    assert mixed(frozenset(units.split())) == expected
