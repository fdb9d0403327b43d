"""Formulas of memory for language models and diffusion, from sizes alone."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from overnight.errors import BadInput

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], /, **values: object) -> M:
    """The typed values. Raises BadInput with every mistake."""
    try:
        return model(**values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, there is {e['input']!r}" for e in error.errors()
        ]
        raise BadInput(problems) from None
