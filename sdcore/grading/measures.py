"""Units of measure by name, from pint's registry and nothing else. Imported in workers only."""

import re
from fractions import Fraction
from functools import cache
from math import prod

import pint
from pint.util import to_units_container

from sdcore.grading.values import value

_LETTERS = frozenset("mgshLlVAWJNKCF")  # units of one letter; "2 a" and "2 e" are algebra
_PREFIXED = frozenset(  # units that take SI prefixes here: "km", but no "atto-tonne" in "at"
    [
        "meter",
        "gram",
        "second",
        "liter",
        "watt",
        "hertz",
        "pascal",
        "volt",
        "ampere",
        "joule",
        "newton",
        "byte",
        "bit",
        "calorie",
        "mole",
        "ohm",
        "farad",
        "electron_volt",
        "tesla",
        "watt_hour",
    ]
)
_PREFIXES = frozenset(
    ["kilo", "milli", "centi", "deci", "micro", "mega", "giga", "tera", "nano", "hecto"]
)
_NOT_UNITS = frozenset(  # constants, ratios and everyday words among pint's names
    [
        "pi",
        "zeta",
        "hbar",
        "sigma",
        "alpha",
        "gamma",
        "lambda",
        "tansec",
        "gravity",
        "percent",
        "permille",
        "ppm",
        "strain",
        "at",
        "are",
        "am",
        "pm",
        "th",
        "thou",
        "fifth",
        "fifths",
        "quarter",
        "quarters",
        "quad",
        "decade",
        "dot",
        "count",
        "section",
    ]
)
_COUNTED = (  # 188 square units, 188 units^2: no unit in particular
    r"(?:sq(?:uare)?|cu(?:bic)?)?\.? ?units?(?: ?\^ ?\{?[23]\}?)?"
)
_NAME = re.compile(
    r"(?:(?P<power>square|sq\.?|cubic|cu\.?) )?(?P<name>[^\W\d_]+|°[A-Za-z]?)\.?"
    r"(?:(?: ?\^ ?)?\{?(?P<exponent>-?[1-4])\}?)?(?: (?P<spelt>squared|cubed))?"
)
_SPELT_OUT = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]{3,})+")  # newton meters; not 5 in, 5 m - s
_WRAPPED = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\(?:circ|degree)\s*\}?\s*")  # 90^{\circ}
_START = re.compile(
    r"""(?:(?<=[\d})\]])|(?<=\d\\pi))(?:\s|~|\\[,;:\s])*
        (?=[^\W\d_] | \\(?:text|textrm|mathrm|mbox|operatorname|circ|degree)(?![a-z])
          | \^\s*\{?\s*\\circ | °
          | /\s*[A-Za-z]{2})                                    # 5 km  90^\circ  18/hour
    | (?:\s|~|\\[,;:\s])*(?=\\(?:text|textrm|mathrm|mbox)\s*\{)  # 2\pi \text{ cm}
    """,
    re.VERBOSE,
)
_NEXT = re.compile(r"(?:,|,? and)? (?=\d)")  # 2 hours and 30 minutes
_NAMED = re.compile(r"^[A-Za-z]+ ?=|\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-z]")


@cache
def registry() -> "pint.UnitRegistry[float]":
    """Pint's registry with the currencies that `reading` names."""
    units: pint.UnitRegistry[float] = pint.UnitRegistry(cache_folder=None)
    units.define("dollar = [dollar]")
    units.define("cent = dollar / 100")
    for currency in ("euro", "sterling", "yen", "rupee", "yuan"):
        units.define(f"{currency} = [{currency}]")
    return units


def without_unit(text: str) -> tuple[str, "pint.Unit | None"]:
    r"""Split ``16\text{ cm}^2`` into ``16`` and the unit; units are looked for at the end only."""
    for start in _START.finditer(text):
        body, tail = text[: start.start()], text[start.end() :]
        spaced = start.end() > start.start() or "\\" in tail[:1] or tail[:1] in "^°"
        if not tail.startswith("\\") and _VARIABLE.search(_NAMED.sub("", body)):
            continue  # the h of "r^2 h" is no hour
        if body.strip() and (spaced or len(tail) > 1):
            known, unit = _unit(tail, spaced)
            if known:
                return body.strip(), unit
    return _compound(text) or (text, None)


def _compound(text: str) -> tuple[str, "pint.Unit"] | None:
    """A measure in falling units of a kind, in the first of them: ``5 ft 6 in`` is 5.5 feet."""
    texts = _NEXT.split(text)
    parts = [without_unit(each) for each in texts] if len(texts) > 1 else [("", None)]
    first = parts[0][1]
    if first is None:
        return None
    total, last = Fraction(0), Fraction(2)
    for number, unit in parts:
        scale, amount = factor(unit, first) if unit is not None else None, value(number)
        if scale is None or amount is None or scale >= last or amount.exact < 0:
            return None
        total, last = total + amount.exact * scale, scale
    return rf"\frac{{{total.numerator}}}{{{total.denominator}}}", first


def is_rate(unit: "pint.Unit") -> bool:
    """Return whether a unit is only divided by: the one of $5/hour."""
    return str(unit).startswith("1 / ")


def factor(unit: "pint.Unit", other: "pint.Unit") -> Fraction | None:
    """Factor from a number in `unit` to one in `other`; None if they measure different things."""
    if unit == other:
        return Fraction(1)
    try:
        shift, one = (registry().Quantity(each, unit).to(other).magnitude for each in (0.0, 1.0))
    except pint.PintError:
        return None
    if shift:  # °C is no multiple of °F
        return None
    return Fraction(one).limit_denominator(10**12)


def _unit(tail: str, spaced: bool) -> tuple[bool, "pint.Unit | None"]:
    """Return whether a tail is a unit, and which: ``km/h``, ``newton meters``, ``m^2``, ``°C``."""
    plain = _DEGREE.sub("°", _WRAPPED.sub(r" \1 ", tail))
    plain = re.sub(r"\s+", " ", plain.replace(r"\cdot", "*").replace("~", " ")).strip(" .")
    if re.fullmatch(_COUNTED, plain, re.IGNORECASE):
        return True, None
    for spelling in (re.sub("[ -]", "_", plain), plain.replace(" ", "")):  # light-years, fl oz
        if spelling != plain and (name := _known(spelling, spaced)):
            return True, registry().Unit(name)
    product = registry().Unit("")
    sign = 1
    for position, part in enumerate(re.split(r"( ?/ ?|(?:^| )per | ?\* ?|-)", plain)):
        if position % 2:
            sign = -1 if part.strip() in ("/", "per") else 1
            continue
        if not part and position == 0:
            continue  # $18 per hour
        separate = _SPELT_OUT.fullmatch(part) and not _factor(part, spaced)
        factors = [_factor(word, spaced) for word in (part.split() if separate else [part])]
        units = [registry().Unit(name) ** power for name, power in filter(None, factors)]
        if len({unit.dimensionality for unit in units}) < len(factors):  # feet inches
            return False, None
        joint = prod(units, start=registry().Unit(""))
        powers = to_units_container(joint)
        if len(units) > 1 and not registry().get_compatible_units(powers):  # hours meters
            return False, None
        product *= joint**sign
    return True, product


def _factor(part: str, spaced: bool) -> tuple[str, int] | None:
    """Return a unit and its power, as in ``cubic meters`` and ``m^2``; None if it is no unit."""
    match = _NAME.fullmatch(part)
    name = _known(match["name"], spaced) if match else None
    if match is None or name is None:
        return None
    power = int(match["exponent"] or 1)
    if match["power"] or match["spelt"]:
        power = 2 if (match["power"] or match["spelt"]).startswith("sq") else 3
    return name, power


@cache
def _known(word: str, spaced: bool) -> str | None:
    """Pint's name of a unit, None if it has none."""
    if word == "°":
        return "degree"
    if len(word) == 1 and (word not in _LETTERS or not spaced):
        return None
    for spelling in (word, word.lower()):
        if spelling.lower() in _NOT_UNITS or (spelling != word and len(word) < 4):
            continue
        for prefix, name, _ in registry().parse_unit_name(spelling):
            if not prefix or (prefix in _PREFIXES and name in _PREFIXED):
                return f"{prefix}{name}"
    return None
