"""Equations are drawn as trees and written in a drawn notation: their truth is known beforehand.

Values are computed here, with fractions only; nothing of what reads the text is used for that.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from sdcore.grading.equations import equations, false_equation

SUM, PRODUCT, FACTOR, ATOM = range(4)  # how tightly a text holds together
VERBAL = ("is equal to", "equals")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Number:
    """A number that is not negative; `form` is how it is written."""

    value: Fraction
    form: str = "plain"  # percent, mixed, fraction or root


@dataclass(frozen=True)
class Negative:
    of: "Tree"


@dataclass(frozen=True)
class Operation:
    sign: str  # +-*/^, | for a fraction with a bar
    left: "Tree"
    right: "Tree"


Tree = Number | Negative | Operation | str  # a variable


def value(tree: Tree) -> Fraction:
    match tree:
        case Number(number):
            return number
        case Negative(inner):
            return -value(inner)
        case Operation("+", left, right):
            return value(left) + value(right)
        case Operation("-", left, right):
            return value(left) - value(right)
        case Operation("*", left, right):
            return value(left) * value(right)
        case Operation("^", left, right):
            return value(left) ** int(value(right))
        case Operation(_, left, right):
            return value(left) / value(right)
    raise TypeError(tree)


@dataclass(frozen=True)
class Notation:
    plus: str
    minus: str
    times: str
    over: str
    sign: str  # of a negative number
    equals: str
    brackets: tuple[str, str]
    power: str
    thousands: str
    percent: str
    fraction: str
    root: str
    mixed: str
    currency: str
    unit: str
    around: str
    spaced: bool
    bare: bool  # 3 * -4, and no brackets around -4
    implicit: bool  # 3(4 + 5)

    def joined(self, left: str, sign: str, right: str) -> str:
        spaced = self.spaced or sign[-1].isalpha()
        return f"{left} {sign} {right}" if spaced else f"{left}{sign}{right}"

    def chain(self, *members: str) -> str:
        text = members[0]
        for member in members[1:]:
            text = self.joined(text, self.equals, member)
        return self.around % text

    def bracketed(self, text: str) -> str:
        return f"{self.brackets[0]}{text}{self.brackets[1]}"

    def number(self, number: Fraction) -> str:
        """A decimal with all its digits: 1,234.5."""
        places = next(n for n in range(40) if (number * 10**n).denominator == 1)
        mark = self.thousands
        if mark in (" ", "\u202f") and (places or not self.spaced):
            mark = ""  # such a number ends before a space or a full stop
        digits = str(int(abs(number) * 10**places)).rjust(places + 1, "0")
        whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
        text = f"{int(whole):,}".replace(",", mark) + ("." + decimals if places else "")
        return f"{self.sign if number < 0 else ''}{self.currency}{text}{self.unit}"


def written(tree: Tree, n: Notation) -> tuple[str, int]:
    """The text of a tree, and how tightly it holds together."""

    def part(tree: Tree, least: int) -> str:
        text, strength = written(tree, n)
        return text if strength >= least else n.bracketed(text)

    match tree:
        case str():
            return tree, ATOM
        case Number(number, "plain"):
            return n.number(number), FACTOR if n.unit else ATOM
        case Number(number, "percent"):
            return replace(n, currency="", unit="").number(number * 100) + n.percent, FACTOR
        case Number(number, "root"):
            return n.root % int(number**2), FACTOR
        case Number(number, "fraction"):
            return n.fraction % (number.numerator, number.denominator), FACTOR
        case Number(number, "mixed"):
            whole, rest = divmod(number.numerator, number.denominator)
            return n.mixed % (whole, rest, number.denominator), PRODUCT
        case Negative(inner):
            text = n.sign + part(inner, FACTOR)
            return (text, PRODUCT) if n.bare else (n.bracketed(text), ATOM)
        case Operation("+" | "-" as sign, left, right):
            operator = n.plus if sign == "+" else n.minus
            return n.joined(part(left, SUM), operator, part(right, PRODUCT)), SUM
        case Operation("*", left, right):
            first, second = part(left, PRODUCT), part(right, PRODUCT)
            if n.implicit and first.isdecimal() and second[0] == n.brackets[0]:
                return first + second, PRODUCT
            return n.joined(first, n.times, second), PRODUCT
        case Operation("/", left, right):
            return n.joined(part(left, FACTOR), n.over, part(right, FACTOR)), PRODUCT
        case Operation("|", left, right):
            return rf"\frac{{{part(left, SUM)}}}{{{part(right, SUM)}}}", FACTOR
        case Operation("^", left, Number(number)):
            base, exponent = part(left, ATOM), str(number)
            if n.power == "²":
                return base + exponent.translate(RAISED), FACTOR
            if n.power.endswith("%s") and number < 0:
                exponent = f"({exponent})"
            return base + n.power % exponent, FACTOR
    raise TypeError(tree)


CHOICES = {
    "plus": ["+", "+", "plus"],
    "minus": ["-", "−", "–", "minus"],
    "times": ["*", "×", "·", r"\times", r"\cdot", "multiplied by"],
    "over": ["/", "÷", r"\div", "∕", "divided by"],
    "sign": ["-", "−", "–"],
    "equals": ["=", "=", "==", "&=", "\\\\\n&=", *VERBAL],
    "brackets": [("(", ")"), ("[", "]"), (r"\left(", r"\right)"), (r"\bigl[", r"\bigr]")],
    "power": ["^%s", "^{%s}", "**%s", "²"],
    "thousands": ["", ",", "{,}", r"\,", " ", "\u202f"],
    "percent": ["%", r"\%", " %", " percent", " per cent"],
    "fraction": [r"\frac{%s}{%s}", r"\dfrac{%s}{%s}", r"\tfrac{%s}{%s}"],
    "root": ["√%s", "sqrt(%s)", r"\sqrt{%s}"],
    "mixed": ["%s %s/%s", r"%s\frac{%s}{%s}"],
    "currency": ["", "", "$", r"\$", "€"],
    "unit": ["", "", " apples", " km", r"\text{ cm}"],
    "around": [
        "%s", "So %s.", "We have $%s$.", r"Thus \[%s.\]", "**%s**", "* %s", "(%s)",
        "Step 2: %s, as it is.",
    ],
    "spaced": [True, False],
    "bare": [True, False],
    "implicit": [True, False],
}  # fmt: skip


@st.composite
def notations(draw: st.DrawFn) -> Notation:
    drawn = {name: draw(st.sampled_from(choices)) for name, choices in CHOICES.items()}
    if drawn["currency"]:
        drawn["unit"] = ""
    if drawn["unit"]:
        drawn |= {"spaced": True, "implicit": False}  # 3 apples-y
    if drawn["currency"] or len(drawn["brackets"][0]) > 1:
        drawn["bare"] = False  # after a word, the minus in -$5 and -\\left(5 may follow a variable
    return Notation(**drawn)


small = st.integers(1, 9)
wholes = st.builds(Number, st.one_of(small, st.integers(0, 12_000_000)).map(Fraction))
leaves = st.one_of(
    wholes,
    st.builds(lambda n, zeros: Number(Fraction(n, 10**zeros)), st.integers(0, 99_999), small),
    st.builds(lambda n: Number(Fraction(n, 200), "percent"), st.integers(1, 300)),
    st.builds(lambda n: Number(Fraction(n), "root"), st.integers(1, 30)),
    st.builds(lambda n, m: Number(Fraction(n, m), "fraction"), small, st.integers(2, 9)),
    st.builds(lambda n, m: Number(n + Fraction(1, m), "mixed"), small, st.integers(2, 9)),
)


def trees(leaf: st.SearchStrategy[Tree], signs: str) -> st.SearchStrategy[Tree]:
    """Calculations: a number alone is none."""

    def grown(part: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        sums = st.builds(Operation, st.sampled_from("+-"), leaf, leaf)
        exponents = st.integers(-2 if "/" in signs else 0, 3).map(lambda n: Number(Fraction(n)))
        return st.one_of(
            st.builds(Operation, st.sampled_from(signs), part, part),
            st.builds(Operation, st.just("^"), st.one_of(leaf, sums), exponents),
            st.builds(Negative, part),
        )

    return st.recursive(leaf, grown, max_leaves=5).filter(lambda tree: isinstance(tree, Operation))


def parts(tree: Tree) -> list[Tree]:
    match tree:
        case Operation(_, left, right):
            return [tree, *parts(left), *parts(right)]
        case Negative(inner):
            return [tree, *parts(inner)]
    return [tree]


def known(tree: Tree) -> Fraction:
    """The value of a tree that has one. 80 - 25% has two, and a number of 25 digits is rounded."""
    try:
        number = value(tree)
    except ZeroDivisionError:
        assume(False)
    discount = isinstance(tree.left, Number) and getattr(tree.right, "form", "") == "percent"
    assume(abs(number) < 10**20 and not (tree.sign in "+-" and discount))
    return number


def ratio_alone(tree: Operation) -> bool:
    """3/4 in words may be a part of something: it is equal to $24."""
    sides = (tree.left, tree.right)
    return tree.sign in "/|" and all(isinstance(side, Number) for side in sides)


def misread(tree: Tree) -> Tree:
    """The same with 2\\frac{1}{2} as a product."""
    match tree:
        case Operation(sign, left, right):
            return Operation(sign, misread(left), misread(right))
        case Negative(inner):
            return Negative(misread(inner))
        case Number(number, "mixed"):
            return Number(number // 1 * (number % 1))
    return tree


def spelt(number: Fraction, form: str) -> Tree:
    size = abs(number)
    tree: Tree = Number(size, form)
    if form == "mixed" and (size < 1 or size.denominator > 99):  # 41 391/500 may be thousands
        form = "fraction"
    if size.denominator == 1 and form != "percent":
        tree = Number(size)
    elif form == "fraction":
        tree = Operation("|", Number(Fraction(size.numerator)), Number(Fraction(size.denominator)))
    return Negative(tree) if number < 0 else tree


def last_place(number: Fraction, form: str) -> Fraction:
    """1 for 25, 1/100 for 0.25 and for 25%."""
    scale = 100 if form == "percent" else 1
    places = next(n for n in range(40) if (number * scale * 10**n).denominator == 1)
    return Fraction(1, 10**places * scale)


def too_far(exact: Fraction, shown: Fraction, place: Fraction) -> bool:
    """Whether a number is neither a value nor what it may be rounded to or cut off at."""
    to_round = place and (exact / place).denominator > 1
    return abs(exact - shown) >= place if to_round else exact != shown


results = st.tuples(
    st.sampled_from(["plain", "plain", "percent", "fraction", "mixed"]),
    st.integers(0, 4),
    st.one_of(st.integers(-9, -1), st.integers(1, 9)),
)


def readings(tree: Tree) -> set[Fraction]:
    """Values that a tree may also be read to have."""
    forms = {part.form for part in parts(tree) if isinstance(part, Number)}
    scales = (1, 100, Fraction(1, 100)) if "percent" in forms else (1,)
    return {value(one) * scale for one in (tree, misread(tree)) for scale in scales}


@given(trees(leaves, "+-*/|"), notations(), results)
def test_a_result_holds_if_it_is_the_value_or_rounds_it(tree, n, result):
    exact = known(tree)
    assume(not (n.equals in VERBAL and ratio_alone(tree)))
    form, places, off = result
    if form in ("fraction", "mixed"):
        right, unit = exact, Fraction(1, exact.denominator if form == "fraction" else 1)
    else:
        unit = Fraction(1, 10**places * (100 if form == "percent" else 1))
        right = round(exact / unit) * unit
    left = written(tree, n)[0]

    text = n.chain(left, written(spelt(right, form), n)[0])
    (read,) = equations(text)
    assert (read.holds, read.exact, read.runs_on) == (True, right == exact, False), text

    planted = spelt(right + off * unit, form)
    digits = planted.of if isinstance(planted, Negative) else planted
    rounded = isinstance(digits, Number) and digits.form in ("plain", "percent")
    place = last_place(value(planted), form) if rounded else Fraction(0)
    assume(all(too_far(one, two, place) for one in readings(tree) for two in readings(planted)))
    text = n.chain(left, written(planted, n)[0])
    (read,) = equations(text)
    assert not read.holds and not read.exact and not read.runs_on, text
    assert false_equation(text) == read.text


OFF = st.integers(-9, 9).filter(bool)
WRONG = st.sampled_from(["", "2", "3", "23"])  # members of a chain that are off


@given(trees(wholes, "+-*"), notations(), st.integers(1, 99), OFF, WRONG)
def test_a_chain_is_wrong_only_where_it_goes_wrong(tree, n, part, off, wrong):
    """A wrong value that is carried on is wrong once; the last member may be wrong by itself."""
    exact = known(tree)
    second, third = (exact + off * (place in wrong) for place in "23")
    assume(abs(exact - part) != abs(exact) and abs(exact - part) != abs(second))
    sum_ = Operation("+", spelt(exact - part, "plain"), spelt(part + second - exact, "plain"))
    members = (tree, sum_, spelt(third, "plain"))
    text = n.chain(*(written(member, n)[0] for member in members))
    assert [each.holds for each in equations(text)] == [second == exact, third == second], text


@given(trees(wholes, "+-*"), notations(), st.integers(2, 9), OFF, st.sampled_from(["", "2", "3"]))
def test_a_chain_may_run_on_with_its_result(tree, n, factor, off, wrong):
    """2 + 3 = 5 * 4 = 20 is right in the 5 and in the 20."""
    exact = known(tree)
    start = exact + off * (wrong == "2")
    assume(start and start * factor != exact)
    product = Operation("*", spelt(start, "plain"), Number(Fraction(factor)))
    members = (tree, product, spelt(start * factor + off * (wrong == "3"), "plain"))
    text = n.chain(*(written(member, n)[0] for member in members))
    found = [(each.holds, each.runs_on) for each in equations(text)]
    assert found == [(wrong != "2", wrong != "2"), (wrong != "3", False)], text


@given(
    trees(st.one_of(wholes, st.sampled_from("ynz")), "+-*/|").filter(
        lambda tree: any(isinstance(part, str) for part in parts(tree))
    ),
    notations(),
    st.integers(0, 99),
)  # fmt: skip
def test_a_side_with_a_variable_claims_nothing(tree, n, result):
    text = n.chain(written(tree, n)[0], n.number(Fraction(result)))
    assert list(equations(text)) == [], text


SIZES = [
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("feet", "inches", 12), ("km", "m", 1000),
    ("yards", "feet", 3), ("kg", "grams", 1000), ("pounds", "ounces", 16), ("yards", "inches", 36),
    ("gallons", "cups", 16), ("litres", "ml", 1000), ("tablespoons", "tsp", 3), ("cm", "mm", 10),
    ("dollars", "cents", 100), ("dozen eggs", "eggs", 12),
]  # fmt: skip


@given(st.integers(1, 500), st.sampled_from(SIZES), OFF)
def test_units_are_converted_to_smaller_ones(many, sizes, off):
    larger, smaller, size = sizes
    claim = f"{many} {larger} = {{}} {smaller}"
    assert [each.holds for each in equations(claim.format(many * size))] == [True]
    wrong = many * size + off
    assume(wrong != many and abs(wrong - Fraction(many, size)) >= 1 and wrong > 0)
    assert [each.holds for each in equations(claim.format(wrong))] == [False]
