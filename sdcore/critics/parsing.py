"""Parse a language model's answer: case, first wrong step and corrected trace.

The answer is untrusted text. It must hold one JSON object or a bare tagged trace; anything else is
unreadable and never taken for a verdict.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from sdcore.contexts import Critique
from sdcore.errors import DataError
from sdcore.system.json_objects import distinct

_STEP = re.compile(r"<?(?:step)?[ _]?(\d{1,4})>?", re.ASCII)  # 2, step 2, step_2, <step_2>
_NONE = {"", "none", "null", "n/a", "-", "0", "-1"}
# A JSON escape, or else a backslash that is more likely LaTeX, as in \frac, \times and \neq.
_LATEX = re.compile(r'\\(?:["\\/]|u[0-9a-fA-F]{4}|n(?!eq|abla|otin|ewline)|[bfrt](?![a-zA-Z]))|\\')


def _case(value: Any) -> Any:
    return value.strip().upper().removeprefix("CASE").strip() if isinstance(value, str) else value


def _step(value: Any) -> Any:
    """Read 2, "2", "step_2", "none", 0 or -1; 0 and -1 can be no step, so they claim none."""
    text = str(value).strip().casefold().removesuffix(".0")
    if text in _NONE:
        return None
    found = _STEP.fullmatch(text)
    if found is None:
        raise ValueError(f"not the number of a step: {text[:40]}")
    return int(found[1])


class Claims(BaseModel):
    """The JSON object that the critic is asked for."""

    case: Annotated[Literal["A", "B", "C", "D"], BeforeValidator(_case)]
    first_wrong_step: Annotated[int | None, BeforeValidator(_step)]
    corrected: str


SCHEMA: dict[str, Any] = Claims.model_json_schema() | {"additionalProperties": False}
"""JSON schema of an answer, for endpoints with structured output."""


def read_answer(text: str) -> Critique:
    """Return the critique as the model states it, unchecked and without its thinking.

    Raises:
        DataError: the answer holds no verdict.
    """
    said = without_thinking(text)
    start, end = said.find("{"), said.rfind("}") + 1
    if "<step_1>" in said and "{" not in said.partition("<step_1>")[0]:
        return Critique(None, None, said.strip(), raw=text)
    try:
        plain = _LATEX.sub(_escaped, said[start:end])
        found = json.loads(plain, strict=False, object_pairs_hook=distinct)
        claims = Claims.model_validate(found)
    except (ValidationError, ValueError, RecursionError) as error:
        raise DataError(
            "the answer is not the JSON object that was asked for",
            got=said.strip() or "an empty answer",
            expected="case, first_wrong_step and corrected",
        ) from error
    corrected = claims.corrected.encode("utf-8", "replace").decode()  # no lone surrogates
    return Critique(claims.case, claims.first_wrong_step, corrected, raw=text)


def without_thinking(text: str) -> str:
    """Return what follows the thinking; nothing where the model was cut off in it."""
    said = text.rpartition("</think>")[2]
    return said.partition("<think>")[0]


def _escaped(match: re.Match[str]) -> str:
    return match[0] if len(match[0]) > 1 else "\\\\"
