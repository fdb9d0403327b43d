"""A whole night: a list of experiments of any flow."""

from typing import Any

from pydantic import (
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from overnight.config import Experiment
from overnight.errors import ConfigError
from overnight.night.settings import NightValues
from overnight.step import flow_names, is_wanted, load_pipeline, pipeline

FORM = (
    "experiments: [cifar10.yaml, {config: graph.yaml, name: planes, gnn: {epochs: 9}}, "
    "{command: python my.py, vram: 2000, name: mine}]"
)


class Part(Experiment):
    """One experiment of the list: its `flow` decides which other keys it has."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_flow(cls, values: Any, _handler: ModelWrapValidatorHandler["Part"]) -> Any:
        if not isinstance(values, dict):
            raise ValueError(  # noqa: TRY004 - pydantic wants one
                "expected a config, e.g. cifar10.yaml, or a mapping {config: cifar10.yaml, ...}"
            )
        name = values.get("flow") or ("command" if "command" in values else None)
        if name not in _other_flows():
            given = f"unknown flow {name!r}" if name else "a flow or a config is required and missing"
            raise ValueError(f"{given}; there are {', '.join(_other_flows())}")
        try:
            experiment = load_pipeline(name).experiment
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return experiment.model_validate({**values, "flow": name, "name": values.get("name") or name})


def _other_flows() -> list[str]:
    return [name for name in flow_names() if name != "nightly"]


class Nightly(NightValues):
    """The experiments of a night: configs beside this file, with changes where an item is a mapping."""

    experiments: list[SerializeAsAny[Part]] = []

    @model_validator(mode="before")
    @classmethod
    def _not_by_family(cls, values: Any) -> Any:
        """Refuse the sections by family (`vision: {digits: vision.yaml}`) that nights had before."""
        old = [name for name in values if name in _other_flows()] if isinstance(values, dict) else []
        message = PydanticCustomError("old_section", f"a night is a list of experiments now: {FORM}")
        if old:
            problems = [InitErrorDetails(type=message, loc=(name,), input={}) for name in old]
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values

    @field_validator("experiments")
    @classmethod
    def _some_and_each_name_once(cls, parts: list[Part]) -> list[Part]:
        if not parts:
            raise ValueError(f"there is nothing to run; write {FORM}")
        names = [str(part.name) for part in parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"several are called {', '.join(twice)}; give each its own: {{config: ..., name: ...}}"
            )
        return parts


@pipeline
def nightly(cfg: Nightly) -> None:
    """Run all experiments of a list, equal steps once; a night never overlaps itself."""
    for part in sorted(cfg.experiments, key=lambda part: -part.priority):
        if is_wanted(str(part.name)):
            load_pipeline(str(part.flow)).part(str(part.name), part)
