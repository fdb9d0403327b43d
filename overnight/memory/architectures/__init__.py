"""Formulas of memory for language models and diffusion, from sizes alone."""

from typing import Any, Self

from pydantic import ValidationError

from overnight.config import Values
from overnight.errors import BadInput


class Question(Values):
    """What is asked about a model."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The typed values. Raises BadInput with every mistake."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadInput([_problem(e) for e in error.errors()]) from None


def _problem(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    given = "" if error["type"] == "value_error" else f", there is {error['input']!r}"
    return f"{key}{': ' if key else ''}{error['msg'].removeprefix('Value error, ')}{given}"
