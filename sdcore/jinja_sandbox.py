"""The user's Jinja templates, in a sandbox: values are data and never read as templates."""

from functools import cache

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from sdcore.errors import ConfigError

_JINJA = SandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
)


def render(template: str, **values: object) -> str:
    """Fill a Jinja template, in a sandbox.

    Raises:
        ConfigError: the template is malformed, names a value that is not there, or fails.
    """
    try:
        return _compiled(template).render(**values)
    except (TemplateError, ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(
            "prompt template does not render",
            got=f"{type(error).__name__}: {error}",
            expected=f"a template of {', '.join(sorted(values))}",
            where=template,
        ) from error


def variables(template: str) -> set[str]:
    """The values that a template names.

    Raises:
        ConfigError: the template is malformed.
    """
    try:
        return meta.find_undeclared_variables(_JINJA.parse(template))
    except TemplateError as error:
        raise ConfigError("template is malformed", got=error, where=template) from error


@cache
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)
