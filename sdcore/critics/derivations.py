"""The quantities that a word problem's solution computes, step by step, and its first wrong step.

The equations of a step are found by `sdcore.grading.equations`, whatever words stand around them.
Each number in them is traced back to the question. It *follows* if it is

- a number of the question, 0, 1 or 100, a percentage as 0.2, 0.8 or 80, a fraction as 0.25 or 0.75;
- the result of an earlier equation, or of a part of one;
- a quantity that the answer needs, computed in the mind;
- what one operation on two of these gives, if that is of use (it is *assumed* then, since it may be
  a wrong number that fits by chance).

So every result is a function of the question's numbers, a Laurent polynomial. It is *of use* if
it is, up to a product, a part of the formula of a quantity that the answer needs. For (a*b - c)*d
these are a*b, b*d and a*b*d - c*d, but neither a + b nor a*c, nor anything with a distractor's
number.

A step is wrong in one of three cases, and the first such step is the first wrong one:

1. An equation in it is false. A rounded result is false where the exact one has a finite decimal
   expansion, unless the step says "about".
2. An equation uses a number that does not follow.
3. Its result is of no use, and the stated final answer, which is wrong, is computed from it. A
   surplus that is taken out again is no error: where the formula of the stated answer is that of
   the question, only false equations count.

Words are not read: true and useful equations under wrong names count as right. Where a doubtful
step stands before the first one that is surely wrong, or in a solution whose answer is wrong for
no other reason, the case is *undecided*. Doubtful is a step that states in words a number that
does not follow; that uses an assumed number; whose equations cannot be followed (powers,
divisions by sums); or whose result is of no use, if it may be meant as another quantity of the
same value, leads back to a number of the question, or is not shown to lead to the stated answer.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import permutations, product

from sdcore.grading.equations import Equation, equations, numbers
from sdcore.grading.exact import evaluate
from sdcore.grading.laurent import Laurent, is_part
from sdcore.problems.word_problems import CONSTANTS, Problem, as_text, computed

MAX_FORMULAS = 6  # that are followed for one number, where it may stand for several quantities
FINITE = 10**4  # a value with at most four decimal places is exact without rounding
_MARK = re.compile(r"^\W*(?:step )?\d{1,2} ?[.:)]\W", re.IGNORECASE)  # "1. ", "**Step 2:** "
ABOUT = ("≈", "approx", "about", "roughly", "around", "nearly", "almost", "~")

Formulas = tuple[Laurent, ...]  # of one number; none where it cannot be followed


@dataclass(frozen=True)
class Origin:
    """One way in which a value came about.

    Attributes:
        formulas: what it is as a function of the question's numbers; none where that is unknown.
        step: index of the step that has it, -1 for what the question gives.
        parents: the values that it was computed from.
        assumed: no equation has it; one operation on other values gives it, maybe by chance.
    """

    formulas: Formulas
    step: int = -1
    parents: frozenset[Fraction] = frozenset()
    assumed: bool = False


@dataclass(frozen=True)
class Verdict:
    """Judgement of the steps of a solution.

    Attributes:
        first_wrong: index of the first wrong step; None if no step is wrong.
        reason: what is wrong with it.
        undecided: why it cannot be said which step is the first wrong one; None where it can.
        made: each value that a step computes or states, with the step's index.
    """

    first_wrong: int | None
    reason: str
    undecided: str | None
    made: tuple[tuple[int, Fraction], ...]

    def results(self, steps: int) -> frozenset[Fraction]:
        """Values that the first `steps` steps compute or state."""
        return frozenset(value for step, value in self.made if step < steps)


@dataclass(frozen=True)
class Formulae:
    """Formulas of a problem's quantities over its numbers.

    Attributes:
        given: what stands for a number of the question, or for a part or percentage in it.
        needed: the quantities from which the answer follows, by their values.
        answer: the answer's.
    """

    given: Mapping[Fraction, Formulas]
    needed: Mapping[Fraction, Laurent]
    answer: Laurent

    def useful(self, formula: Laurent) -> bool:
        """Return whether a formula is, up to a product, a part of a needed quantity's."""
        return any(is_part(formula, each) for each in self.needed.values())


@lru_cache(maxsize=1024)
def formulae(problem: Problem) -> Formulae:
    """Return the formulas of a problem."""
    made: list[Laurent] = []
    given: dict[Fraction, Formulas] = {n: (Laurent.constant(n),) for n in CONSTANTS}
    for place, each in enumerate(problem.quantities):
        if not each.operation:
            made.append(Laurent.variable(place))
            given[each.value] = (*given.get(each.value, ()), made[-1])
            continue
        formula = _combined(each.operation, *(made[operand] for operand in each.operands))
        assert formula is not None, "quantities are divided by numbers of the question only"
        made.append(formula)
        if each.operation in "%/":
            number = problem.quantities[each.operands[1]].value
            for value, same in _parts_of_one(each.operation, number, made[each.operands[1]]):
                given[value] = (*given.get(value, ()), same)
    needed = {problem.quantities[place].value: made[place] for place in problem.needed}
    return Formulae(given, needed, made[problem.needed[-1]])


def _parts_of_one(
    operation: str, number: Fraction, formula: Laurent
) -> Iterator[tuple[Fraction, Laurent]]:
    """0.2, 0.8 and 80 for 20 per cent; 0.25 and 0.75 for a quarter."""
    one, hundred = (Laurent.constant(Fraction(each)) for each in (1, 100))
    part = formula.over(hundred) if operation == "%" else one.over(formula)
    value = number / 100 if operation == "%" else 1 / number
    if part is not None:
        for rest, other in ((value, part), (1 - value, one.plus(part, -1))):
            if other is not None:
                yield rest, other
    left = hundred.plus(formula, -1)
    if operation == "%" and left is not None:
        yield 100 - number, left


def judged(
    problem: Problem, steps: Sequence[str], answer: Fraction | None, *, right: bool
) -> Verdict:
    """Judge the steps of a solution.

    Args:
        problem: what is to be solved.
        steps: the contents of the steps.
        answer: the stated final answer; None where there is none or it is no number.
        right: the answer is the reference's.
    """
    reader = _Reader(formulae(problem))
    for step in steps:
        reader.read(step)
    wrong, reason, undecided = reader.conclusion(answer, right=right)
    return Verdict(wrong, reason, undecided, tuple(reader.made))


class _Reader:
    """Reads steps one after the other and keeps the values at hand."""

    def __init__(self, formulas: Formulae) -> None:
        self.formulas = formulas
        self.known = {value: [Origin(each)] for value, each in formulas.given.items()}
        self.made: list[tuple[int, Fraction]] = []
        self._loose: dict[Fraction, int] = {}  # numbers in words only that do not follow
        self._wrong: int | None = None  # the first step that is wrong by itself
        self._reason = ""
        self._roots: tuple[Fraction, ...] = ()  # operands of that step
        self._doubts: list[tuple[int, str]] = []
        self._index = -1

    def read(self, text: str) -> None:
        """Read a step."""
        self._index += 1
        shown = set[Fraction]()
        roughly = any(word in text.lower() for word in ABOUT)
        for equation in _equations(text):
            shown |= self._take(equation, roughly=roughly)
        for number in map(Fraction, numbers(_MARK.sub("", text))):
            if number in shown or self._follows(number):
                self.made.append((self._index, number))
            else:
                self._loose.setdefault(number, self._index)

    def conclusion(
        self, answer: Fraction | None, *, right: bool
    ) -> tuple[int | None, str, str | None]:
        """Index of the first wrong step, what is wrong, and why that is undecided."""
        wrong, reason = self._wrong, self._reason
        if answer is not None and self.formulas.answer in self._formulas_of(answer):
            rounded = wrong is None and not right
            return wrong, reason, "the answer is rounded" if rounded else None
        useless, doubtful = self._origins_of(answer)
        useless = {place for place in useless if wrong is None or place < wrong}
        if useless:
            if right or not self._derived(answer):
                doubtful |= useless
            else:
                wrong, reason = min(useless), "its result is of no use for what is asked"
        stated = () if right and wrong is None else self._loose.values()
        doubts = [
            *self._doubts,
            *(
                (place, f"step {place + 1}: a number that is stated does not follow")
                for place in stated
            ),
            *((place, f"step {place + 1}: it may be of use or not") for place in doubtful),
        ]
        first = min((each for each in doubts if wrong is None or each[0] < wrong), default=None)
        return wrong, reason, first and first[1]

    def _origins_of(self, answer: Fraction | None) -> tuple[set[int], set[int]]:
        """Steps of no use, and doubtful ones, that the answer and the wrong step are built on."""
        useless, doubtful, seen = set[int](), set[int](), set[int]()
        last = len(self.made) if self._wrong is None else self._wrong
        waiting = [self._before(value, last) for value in self._roots]
        if answer is not None:
            origins = self.known.get(answer, [])
            derived = max((each.step for each in origins if each.parents), default=None)
            waiting.append([each for each in origins if derived in (None, each.step)])
        if not self._derived(answer):  # it may come from any result
            waiting += [self.known[value] for _, value in self.made]
        while waiting:
            origins = waiting.pop()
            sound = any(map(self._sound, origins))
            for each in origins:
                if each.assumed or not each.formulas or self._circular(each):
                    doubtful.add(each.step)
                elif not self._sound(each):
                    (doubtful if sound else useless).add(each.step)
                if id(each) not in seen:
                    seen.add(id(each))
                    waiting += [self._before(parent, each.step, each) for parent in each.parents]
        return useless, doubtful - {-1}

    def _before(self, value: Fraction, step: int, but: Origin | None = None) -> list[Origin]:
        """Origins of a value up to a step, which were at hand there."""
        return [each for each in self.known.get(value, ()) if each.step <= step and each is not but]

    def _circular(self, origin: Origin) -> bool:
        """Return whether an equation only leads back to a number of the question."""
        given = (formula for each in self.formulas.given.values() for formula in each)
        return bool(origin.parents) and bool({*given} & {*origin.formulas})

    def _sound(self, origin: Origin) -> bool:
        return origin.step < 0 or any(map(self.formulas.useful, origin.formulas))

    def _derived(self, value: Fraction | None) -> bool:
        """Return whether an equation has this value as its result."""
        return value is not None and any(each.parents for each in self.known.get(value, ()))

    def _formulas_of(self, value: Fraction) -> Formulas:
        every = (formula for each in self.known.get(value, ()) for formula in each.formulas)
        return tuple(dict.fromkeys(every))[:MAX_FORMULAS]

    def _take(self, equation: Equation, *, roughly: bool) -> set[Fraction]:
        """Judge an equation and keep its result; return the values in it that are settled."""
        left = [each for text in equation.left if (each := _reading(text))]
        right = [each for text in equation.right if (each := _reading(text))]
        if not left or not right:
            self._doubt("an equation cannot be followed", self._index)
            return set()
        if not _calculated(left[0]) and _calculated(right[0]):  # 91 = 96 - 5
            left, right = right, left
        result = _leftmost(right[0].tree) if equation.runs_on else right[0].value
        fitting = [each for each in left if each.value == result] or left
        if not equation.holds or not (equation.exact or roughly or _unending(left[0].value)):
            self._fail(f"{equation.text!r} is false", fitting[0].leaves)
        founded = [each for each in fitting if all(map(self._follows, each.leaves))]
        if not founded and self._wrong is None:
            self._fail_for_foreign(fitting[0])
        chosen = (founded or fitting)[0]
        parents = frozenset(chosen.leaves)
        *parts, (_, formulas) = self._parts(chosen.tree)
        self._keep(result, Origin(formulas, self._index, parents))
        others = [] if equation.runs_on else [part for r in right for part in self._parts(r.tree)]
        for value, same in (*parts, *others):
            if value not in self.known:
                self._keep(value, Origin(same, self._index, parents))
        self.made.append((self._index, result))
        return {result, *chosen.leaves, *(leaf for each in right for leaf in each.leaves)}

    def _fail_for_foreign(self, reading: "_Reading") -> None:
        foreign = next(leaf for leaf in reading.leaves if not self._follows(leaf))
        place = self._loose.get(foreign, self._index)
        if place < self._index:
            self._doubt(f"{as_text(foreign)} is stated without an equation", place)
        self._fail(f"{as_text(foreign)} does not follow from the question", reading.leaves)

    def _fail(self, reason: str, operands: tuple[Fraction, ...]) -> None:
        if self._wrong is None:
            self._wrong, self._reason, self._roots = self._index, reason, operands

    def _doubt(self, reason: str, place: int) -> None:
        if self._wrong is None:
            self._doubts.append((place, f"step {place + 1}: {reason}"))

    def _keep(self, value: Fraction, origin: Origin) -> None:
        self.known.setdefault(value, []).append(origin)

    def _follows(self, number: Fraction) -> bool:
        """Return whether a number is at hand, or can be computed in the mind from what is."""
        if number in self.known:
            return True
        if number in self.formulas.needed:
            self._keep(number, Origin((self.formulas.needed[number],), self._index))
        elif formulas := tuple(dict.fromkeys(self._mental(number)))[:MAX_FORMULAS]:
            self._keep(number, Origin(formulas, self._index, assumed=True))
        return number in self.known

    def _mental(self, number: Fraction) -> Iterator[Laurent]:
        """Useful formulas of a number that one operation on two values at hand gives."""
        for left, right in permutations([*self.known], 2):
            for operation in "+-*/":
                if (right or operation != "/") and computed(operation, left, right) == number:
                    ways = product(self._formulas_of(left), self._formulas_of(right))
                    made = (_combined(operation, mine, theirs) for mine, theirs in ways)
                    yield from (each for each in made if each and self.formulas.useful(each))

    def _parts(self, node: ast.expr) -> list[tuple[Fraction, Formulas]]:
        """Values and formulas of the parts of an expression, the whole last."""
        value = evaluate(ast.unparse(node))
        if value is None:
            return []
        operation = _SIGNS.get(type(node.op)) if isinstance(node, ast.BinOp) else None
        if isinstance(node, ast.BinOp) and operation:
            left, right = self._parts(node.left), self._parts(node.right)
            ways = product(left[-1][1], right[-1][1]) if left and right else ()
            made = (_combined(operation, mine, theirs) for mine, theirs in ways)
            formulas = tuple(dict.fromkeys(filter(None, made)))[:MAX_FORMULAS]
            return [*left, *right, (value, formulas)]
        return [(value, self._formulas_of(value))]


@dataclass(frozen=True)
class _Reading:
    """An expression: its tree, its value and the numbers in it."""

    tree: ast.expr
    value: Fraction
    leaves: tuple[Fraction, ...]


_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
}  # fmt: skip


@lru_cache(maxsize=4096)
def _equations(text: str) -> tuple[Equation, ...]:
    return tuple(equations(text))


@lru_cache(maxsize=4096)
def _reading(text: str) -> _Reading | None:
    value = evaluate(text)
    if value is None:
        return None
    tree = ast.parse(text.strip(), mode="eval").body
    constants = [each for each in ast.walk(tree) if isinstance(each, ast.Constant)]
    leaves = tuple(Fraction(str(each.value)) for each in constants)
    return _Reading(tree, value, leaves)


def _calculated(reading: _Reading) -> bool:
    return isinstance(reading.tree, ast.BinOp)


def _leftmost(node: ast.expr) -> Fraction:
    while isinstance(node, ast.BinOp):
        node = node.left
    return evaluate(ast.unparse(node)) or Fraction(0)


def _unending(value: Fraction) -> bool:
    return (value * FINITE).denominator != 1


def _combined(operation: str, left: Laurent, right: Laurent) -> Laurent | None:
    match operation:
        case "+":
            return left.plus(right)
        case "-":
            return left.plus(right, -1)
        case "*":
            return left.times(right)
        case "/":
            return left.over(right)
    part = left.times(right)
    return part and part.times(Laurent.constant(Fraction(1, 100)))
