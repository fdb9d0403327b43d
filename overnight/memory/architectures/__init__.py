"""Formulas of memory for language models and diffusion, from sizes alone."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from overnight.config import Values
from overnight.errors import BadInput

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe


class Question(Values):
    @classmethod
    def of(cls, **values: Any) -> Self:
        """Raises BadInput with every mistake."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadInput([_problem(e) for e in error.errors()]) from None


def _problem(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    given = "" if error["type"] == "value_error" else f", there is {error['input']!r}"
    return f"{key}{': ' if key else ''}{error['msg'].removeprefix('Value error, ')}{given}"


def training(**parts: Any) -> "Recipe[Any]":
    from overnight.training.recipe import Recipe, constant

    return Recipe(
        batches=lambda data, _generator: data,
        steps_per_epoch=len,
        schedule=constant,
        evaluate=lambda _model, _data, _split: {},
        clip=1.0,
        **parts,
    )


def trained(model: Any) -> list[Any]:
    return [weight for weight in model.parameters() if weight.requires_grad]
