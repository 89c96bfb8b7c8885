"""The user's Jinja templates, in a sandbox: values are data and never read as templates."""

from functools import cache

from jinja2 import StrictUndefined, Template, TemplateError, TemplateRuntimeError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from sdcore.errors import ConfigError

STEPS = 100_000  # iterations of all loops, and calls of macros, that one rendering may take
LARGEST = 1_000_000  # characters or elements of a product, and characters of a result
LARGEST_BITS = 100_000  # of a whole number

_STEP, _LIMITED = "sdcore_step", "sdcore_limited"  # names that templates are given


class _Bounded(SandboxedEnvironment):
    """A sandbox that also refuses products and powers that would take hours or all memory."""

    intercepted_binops = frozenset(["+", "*", "**"])

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Evaluate ``left + right``, ``left * right`` or ``left ** right``."""
        _limited(left), _limited(right)
        sizes = sorted((left, right), key=lambda value: isinstance(value, int))
        if operator == "*" and isinstance(sizes[0], str | list | tuple):
            too_large = isinstance(sizes[1], int) and len(sizes[0]) * sizes[1] > LARGEST
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length()
            too_large = max(bits, right.bit_length()) > LARGEST_BITS
        else:
            too_large = False
        if too_large:
            raise TemplateRuntimeError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


_JINJA = _Bounded(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
del _JINJA.filters["random"], _JINJA.globals["lipsum"]  # the same values give the same text

# What expressions may raise; SyntaxError is Python's, for more than 20 loops within each other.
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
    RecursionError, MemoryError, SyntaxError,
)  # fmt: skip


def render(template: str, **values: object) -> str:
    """Fill a Jinja template, in a sandbox.

    Raises:
        ConfigError: the template is malformed, names a value that is not there, fails, or takes
            more than `STEPS` steps.
    """
    try:
        text = _compiled(template).render(values | {_STEP: _Steps().take, _LIMITED: _limited})
        _limited(text)
    except _FAILURES as error:
        raise ConfigError(
            "prompt template does not render",
            got=f"{type(error).__name__}: {error}",
            expected=f"a template of {', '.join(sorted(values))}",
            where=template,
        ) from error
    return text


def variables(template: str) -> set[str]:
    """Return the values that a template names.

    Raises:
        ConfigError: the template is malformed.
    """
    try:
        return meta.find_undeclared_variables(_JINJA.parse(template))
    except (TemplateError, RecursionError) as error:
        raise ConfigError("template is malformed", got=error, where=template) from error


class _Steps:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self._left = STEPS

    def take(self) -> bool:
        """Count a step; always true, so that it can stand in a condition."""
        self._left -= 1
        if self._left < 0:
            raise TemplateRuntimeError(f"more than {STEPS:,} steps of loops and macros")
        return True


def _limited(value: object) -> object:
    """Refuse what has become too long: doubled in a loop, a text would soon take all memory."""
    if isinstance(value, str | list | tuple) and len(value) > LARGEST:
        raise TemplateRuntimeError(f"a text or list of {len(value):,} characters or elements")
    return value


@cache
def _compiled(template: str) -> Template:
    """Compile a template in which each iteration of a loop and each call of a macro is counted."""
    tree = _JINJA.parse(template)
    blocks: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.For), *tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)
    ]  # fmt: skip
    for block in blocks:
        block.body.insert(0, nodes.ExprStmt(_call(_STEP)))
        if isinstance(block, nodes.For) and block.test is not None:
            # {% for x in xs if false %} never comes to its body
            block.test = nodes.And(_call(_STEP), block.test)
    for joined in tree.find_all(nodes.Concat):  # one ~ two
        joined.nodes = [_call(_LIMITED, part) for part in joined.nodes]
    return Template.from_code(_JINJA, _JINJA.compile(tree), _JINJA.make_globals(None))


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)
