"""Tokens of a step put together to phrases: expressions in Python's notation, units dropped.

"In 3 days he eats 12 red apples + 7 pears" has the phrases ``3`` and ``12 + 7``. The words around
a phrase are kept, since they may change its value.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from sdcore.grading.notation import Token
from sdcore.grading.units import SHORT, UNITS, singular

OPERATORS = {
    ("plus",): "+", ("minus",): "-", ("times",): "of", ("x",): "*",
    ("multiplied", "by"): "*", ("divided", "by"): "/",
}  # fmt: skip
_VOWEL = re.compile("[aeiou]", re.IGNORECASE)
ARTICLES = {"the", "her", "his", "their", "its", "these", "those", "all", "that", "this"}
CLAUSE = {
    "because", "so", "then", "which", "who", "means", "therefore", "thus", "hence", "if", "since",
    "when", "while", "until", "is", "are", "was", "has", "have", "had", "but", "where",
    "give", "gives", "make", "makes", "get", "gets",
}  # fmt: skip
_BEFORE_A_SIGN = {  # not x, which may be a variable: 5 x - 3 = 2
    "from", "to", "by", "than", "with", "of", "into", "between", "and", "or", "plus", "minus",
    "times",
}  # fmt: skip
_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1, "root": 2}


@dataclass
class Phrase:
    """Numbers and operators that belong together."""

    before: tuple[str, ...] = ()  # words, in small letters
    after: tuple[str, ...] = ()
    pieces: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # its numbers as they are in the text
    units: set[str] = field(default_factory=set)
    sized: dict[int, str] = field(default_factory=dict)  # units that convert, by their piece
    letters: list[str] = field(default_factory=list)  # units of one letter: 5 m
    odd: bool = False  # it cannot be evaluated
    spoken: bool = False  # an operator is a word: 12 divided by 4
    listed: bool = False  # its first minus may mark an item of a list: - 3 * 4
    note: int | None = None  # the piece that may begin a remark: 20 (5 * 4)
    unclosed: int | None = None  # the last bracket without an end
    start: int = -1
    end: int = -1

    def terms(self) -> tuple[tuple[Fraction, str], ...]:
        """The numbers of a sum with their units; none for what is not a mere sum of numbers."""
        signs, terms = ["+", *self.pieces[1::2]], self.pieces[::2]
        plain = {*signs} <= {*"+-"} and all(map(_PLAIN.fullmatch, terms))
        if not plain or len(signs) != len(terms):
            return ()
        return tuple(
            (Fraction(sign + term), self.sized.get(2 * place, ""))
            for place, (sign, term) in enumerate(zip(signs, terms, strict=True))
        )


def phrases(tokens: Sequence[Token], *, before_relation: bool) -> list[Phrase]:
    """The phrases of what stands between two relations or marks.

    Args:
        tokens: no relation or mark is among them.
        before_relation: whether a relation follows; a last ``!`` is a factorial then.
    """
    reader = _Reader(tokens, before_relation)
    while reader.step():
        pass
    return [phrase for phrase in reader.done if phrase.pieces]


class _Reader:
    def __init__(self, tokens: Sequence[Token], before_relation: bool) -> None:
        self.tokens, self.before_relation = tokens, before_relation
        self.done: list[Phrase] = []
        self.at = 0
        self._start_phrase(())

    def _start_phrase(self, before: tuple[str, ...]) -> None:
        self.phrase = Phrase(before=before)
        self.run: list[Token] = []  # words since the last piece
        self.complete = False  # the last piece ends an operand
        self.brackets: list[tuple[int, str]] = []  # piece of each open one, what follows its end

    def step(self) -> bool:
        """Read a token; False at the end."""
        if self.at >= len(self.tokens):
            self._end_phrase()
            return False
        token = self.tokens[self.at]
        getattr(self, f"_{token.kind}")(token)
        self.at += 1
        return True

    def _next(self, ahead: int = 1) -> Token | None:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else None

    def _emit(self, piece: str, token: Token, *, complete: bool) -> None:
        phrase = self.phrase
        phrase.start = token.start if phrase.start < 0 else phrase.start
        phrase.end = token.end
        phrase.pieces.append(piece)
        self.complete = complete

    def _end_phrase(self, next_before: tuple[str, ...] = ()) -> None:
        phrase = self.phrase
        phrase.after = tuple(word.text.lower() for word in self.run)
        if self.complete:
            self._take_units()
        elif phrase.pieces:
            phrase.odd = True  # it ends with an operator or a variable: 3 + y
        if self.brackets:
            phrase.unclosed = self.brackets[-1][0]
        self.done.append(phrase)
        self._start_phrase(next_before)

    def _take_units(self) -> None:
        """The words after an operand are its unit, unless one looks like a variable."""
        for place, word in enumerate(self.run):
            text, attached = singular(word.text), place == 0 and word.start == self.phrase.end
            letters = len(text.lstrip("-"))
            if letters == 1 and place == 0 and word.text in {*SHORT, "L"}:
                self.phrase.letters.append(text)
            elif letters == 1 and (attached or word.text not in "aI"):
                self.phrase.odd = True  # 3 y
            elif (
                letters == 2
                and text not in {*SHORT, "tv", "my", "by"}
                and (attached or not _VOWEL.search(text))
            ):
                self.phrase.odd = True  # 3ab, 3 xy
            elif "_" in text or (attached and text in ("rd", "th", "st", "nd")):
                self.phrase.odd = True  # a_1, 3rd
            self.phrase.units.add(text)
            if text in UNITS:
                self.phrase.sized.setdefault(len(self.phrase.pieces) - 1, text)
        self.run = []

    def _join(self, token: Token) -> None:
        """Settle what stands between the last piece and an operand that begins here."""
        words = tuple(word.text.lower() for word in self.run)
        phrase = self.phrase
        if not self.complete:
            if phrase.pieces and words:  # 3 + some 4, but not (so 3 + 4 = 7)
                phrase.odd |= phrase.pieces[-1] != "(" or not CLAUSE.issuperset(words)
            elif words:
                phrase.before += words
            self.run = []
            return
        for tail, operator in OPERATORS.items():
            if words[-len(tail) :] == tail and len(words) < len(tail) + 4 and not CLAUSE & {*words}:
                self.run = self.run[: -len(tail)]
                self._take_units()
                self.phrase.spoken = True
                self._emit(operator, token, complete=False)
                return
        part = phrase.pieces[-1].endswith("/100)") or phrase.pieces[-2:-1] == ["/"]
        if words[:1] == ("of",) and set(words[1:]) <= ARTICLES and part:  # 20% of the 50
            self.run = []
            self._emit("of", token, complete=False)
        elif words:
            self._end_phrase(words)

    def _word(self, token: Token) -> None:
        self.run.append(token)

    def _odd(self, token: Token) -> None:
        self._join(token)
        self.phrase.odd = True
        self._emit("?", token, complete=True)

    def _number(self, token: Token) -> None:
        self._join(token)
        text = "".join(char for char in token.text if char not in r" ,{}\\").lstrip("0") or "0"
        text = f"0{text}" if text.startswith(".") else text
        slash, bottom = self._next(1), self._next(2)
        if self.complete:  # two numbers side by side: 2 1/2, or what cannot be read
            fraction = slash and bottom and slash.text == "/" and bottom.kind == "number"
            if self.phrase.pieces[-1].startswith("factorial"):  # 4! 2!
                self._emit("*", token, complete=False)
            elif not fraction or not self.phrase.pieces[-1].isdecimal():
                self.phrase.odd = True
            else:
                whole = self.phrase.pieces.pop()
                assert bottom is not None
                self.phrase.written.append(token.text)
                self._emit(f"({whole}+{text}/{bottom.text})", bottom, complete=True)
                self.at += 2
                return
        self.phrase.written.append(text)
        self._emit(text, token, complete=True)

    def _operator(self, token: Token) -> None:
        if token.text in "%!":
            self._postfix(token)
            return
        sign = {"^": "**", "@": "*"}.get(token.text, token.text)
        following = self._next()
        if self.complete and following and following.kind == "word" and sign == "/":
            self._take_units()
            self.phrase.odd |= len(following.text) == 1 and following.text not in SHORT
            self.phrase.units.add(singular(following.text))  # 60 km/h
            self.phrase.end = following.end
            self.at += 1
        elif self.complete and self.run and sign == "**":
            self._skip_exponent()  # 10 cm^2
        elif self.complete and sign == "-" and self._needs_operand():
            self._join(token)
            self._emit(sign, token, complete=False)
        elif self.complete:
            self._take_units()
            self._emit(sign, token, complete=False)
        elif self.run and not self.phrase.pieces and self._is_sign(token):
            self._join(token)
            self._emit(sign, token, complete=False)
        elif self.run and not self.phrase.pieces:
            self._take_variable(token)  # y - 3
            self._emit(sign, token, complete=False)
        else:
            self.phrase.odd |= bool(self.run) or sign != "-"  # a minus may be a sign
            if following and not self.at:
                self.phrase.listed = token.end < following.start
            self.run = []
            self._emit(sign, token, complete=False)

    def _needs_operand(self) -> bool:
        """After such words a minus is a sign: 24 from -23, 5 times -3, 9 because -18/-2 = 9."""
        words = tuple(word.text.lower() for word in self.run)
        return bool(CLAUSE & {*words} or _BEFORE_A_SIGN & {*words[-1:]})

    def _is_sign(self, token: Token) -> bool:
        """A minus between a word that is no variable and the number that it belongs to: so -3."""
        word, following = self.run[-1], self._next()
        return (
            token.text == "-"
            and word.text.lower() in CLAUSE | _BEFORE_A_SIGN
            and word.end < token.start
            and following is not None
            and following.start == token.end
        )

    def _take_variable(self, token: Token) -> None:
        self.phrase.before, self.run = tuple(word.text.lower() for word in self.run), []
        self.phrase.odd = True
        self._emit("?", token, complete=True)

    def _postfix(self, token: Token) -> None:
        following = self._next()
        pieces = self.phrase.pieces
        plain = self.complete and not self.run and pieces[-1][:1].isdigit()
        if plain and token.text == "%":
            pieces[-1] = f"({pieces[-1]}/100)"
        elif token.text == "%":
            self._odd(token)
        elif following or self.before_relation:
            if plain:
                pieces[-1] = f"factorial({pieces[-1]})"
            else:
                self._odd(token)

    def _skip_exponent(self) -> None:
        following = self._next()
        self.at += 1 if following and following.kind == "number" else 3  # ^2, ^{2}

    def _function(self, token: Token) -> None:
        name = token.text.lstrip("\\")
        mixed = self.complete and not self.run and self.phrase.pieces[-1].isdecimal()
        self._join(token)
        if self.complete:  # 3\frac{1}{2} is a sum or a product
            self._emit("⊕" if mixed and name == "frac" else "*", token, complete=False)
        if name == "pi":
            self._emit("pi", token, complete=True)
            return
        following = self._next()
        if following and following.kind == "number" and name == "sqrt":  # √9
            self.phrase.written.append(following.text)
            self._emit(f"sqrt({following.text})", following, complete=True)
            self.at += 1
        elif following and following.text in ("{", "(", "["):
            self._emit("root" if following.text == "[" else name, token, complete=False)
            self._open_argument(_ARGUMENTS["root" if following.text == "[" else name])
        else:
            self._odd(token)

    def _open_argument(self, count: int) -> None:
        """Go on to the bracket after a function: `count` arguments follow in brackets."""
        bracket = self._next()
        if bracket is None or bracket.kind != "open":
            self.phrase.odd = True
            return
        self.at += 1
        self.brackets.append((len(self.phrase.pieces), f"{count - 1}"))
        self._emit("(", bracket, complete=False)

    def _open(self, token: Token) -> None:
        attached = not self.run and token.start == self.phrase.end
        if self.complete and not attached and self._skip_remark():
            return
        previous = self.run[-1] if self.run else None
        if previous and previous.end == token.start and token.text == "(":
            self._take_variable(token)  # f(3)
        spaced = bool(self.run) or token.start > self.phrase.end >= 0
        self._join(token)
        if self.complete:
            if spaced and self.phrase.note is None:
                self.phrase.note = len(self.phrase.pieces)
            self._emit("*", token, complete=False)
        self.brackets.append((len(self.phrase.pieces), ""))
        self._emit("(", token, complete=False)

    def _skip_remark(self) -> bool:
        """Go past words in brackets: 12 (apples)."""
        for place in range(self.at + 1, len(self.tokens)):
            token = self.tokens[place]
            if token.kind == "close" and place > self.at + 1:
                self.at = place
                return True
            if token.kind != "word" or len(token.text) == 1:
                return False
        return False

    def _close(self, token: Token) -> None:
        if not self.brackets:  # 1) or the end of a bracket that began before a mark
            following = self._next()
            self._end_phrase()
            if following is None or following.kind == "operator":
                self._odd(token)
            return
        if self.run and self.complete:
            self._take_units()
        self.phrase.odd |= bool(self.run) or not self.complete
        self.run = []
        _, more = self.brackets.pop()
        self._emit(")", token, complete=True)
        if more and more != "0":
            self._open_argument(int(more))
