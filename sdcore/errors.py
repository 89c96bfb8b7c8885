"""Every error that sdcore raises on purpose: what, got, expected, where, and the fix."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class SdcoreError(Exception):
    """Base of all sdcore errors; the parts are attributes, the message is made of them."""

    exit_code = 1  # of a command that ends with it

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        where: str = "",
        fix: str = "",
    ) -> None:
        self.what, self.got, self.expected, self.where, self.fix = what, got, expected, where, fix
        labelled = (("got", got), ("expected", expected), ("where", where), ("fix", fix))
        parts = [
            f"{label}: {_short(value)}" for label, value in labelled if value not in (None, "")
        ]
        super().__init__("\n  ".join([what, *parts]))


class ConfigError(SdcoreError, ValueError):
    """An experiment file, an override or a combination of settings is wrong."""


class DataError(SdcoreError, ValueError):
    """A row, a trace or a dataset is not what its schema promises."""


class StoreError(SdcoreError, RuntimeError):
    """The DuckDB file could not be read or written as asked."""


class StoreBusyError(StoreError, TimeoutError):
    """Another process held the DuckDB file for longer than the bounded wait."""


class ModelError(SdcoreError, RuntimeError):
    """A model, a tokenizer or a checkpoint cannot be loaded or does not fit."""


class EngineError(SdcoreError, RuntimeError):
    """A sampling engine failed or returned something it must not."""


class BudgetError(SdcoreError, RuntimeError):
    """A paid service would cost more than the experiment may spend."""


class TrainingError(SdcoreError, ArithmeticError):
    """A loss or gradient is not finite, or student and teacher do not match."""


class PluginError(SdcoreError, RuntimeError):
    """Code from outside failed, or returned something that it must not."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the closest known word, or nothing if none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _short(value: object, limit: int = 600) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
