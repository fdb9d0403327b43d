"""Typed values: those of a step (Params) and of a whole experiment (Experiment)."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from overnight.errors import ConfigError, did_you_mean, one_line
from overnight.paths import shown

# The last three: errors of yaml's own parts that it does not turn into a YAMLError.
MALFORMED = (yaml.YAMLError, ValueError, AttributeError, RecursionError)
OVERRIDE = "override "
TOP = (
    "flow",
    "name",
    "seed",
    "card",
    "seeds",
    "retry_after_s",
    "fresh",
)  # keys of a whole experiment, which its sections do not have


def runtime_option(default: Any, description: str, **rules: Any) -> Any:
    """A field that changes how a step runs, never what it computes: it stays out of the key."""
    return Field(default, description=description, json_schema_extra={"runtime_option": True}, **rules)


class Values(BaseModel):
    """Base of all values: frozen, unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    RENAMED: ClassVar[dict[str, str]] = {}  # {key of an earlier version: what it is called now}
    MEANINGLESS: ClassVar[dict[str, str]] = {}  # {key of similar sections: why this one does not have it}

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown_keys(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Here it is known which class lacks the key.
        try:
            return handler(given)
        except ValidationError as error:
            found = [
                InitErrorDetails(type=cls._problem(e), loc=e["loc"], input=e["input"]) for e in error.errors()
            ]
            raise ValidationError.from_exception_data(cls.__name__, found) from None

    @classmethod
    def _problem(cls, error: Any) -> PydanticCustomError:
        if error["type"] == "extra_forbidden":
            return PydanticCustomError("value_error", cls._unknown(str(error["loc"][-1])))
        if error["type"] == "missing":
            return PydanticCustomError("value_error", "is required and missing")
        return PydanticCustomError(error["type"], error["msg"])

    @classmethod
    def _unknown(cls, key: str) -> str:
        if key in cls.RENAMED:
            return f"is now called {cls.RENAMED[key]}"
        if key in cls.MEANINGLESS:
            return f"unknown key: {cls.MEANINGLESS[key]}"
        fields = cls.model_fields.items()
        inside = [f"{name}.{key}" for name, f in fields if key in getattr(f.annotation, "model_fields", ())]
        hint = (
            f"; did you mean {' or '.join(inside)}?" if inside else did_you_mean(key, cls.model_fields) or ";"
        )
        return f"unknown key{hint} allowed: {', '.join(sorted(cls.model_fields))}"

    def result_params(self) -> dict[str, Any]:
        return {
            name: _result_value(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and "runtime_option" in field.json_schema_extra)
        }


class Params(Values):
    exclusive: bool = runtime_option(False, "share the card with no other step")


class CardChoice(Values):
    """`card: 1` is short for `card: {use: 1}`."""

    use: str | int | None = None  # index or UUID; the first card when left out
    # while other programs use the card: wait; shrink the micro-batch; or also yield what they want, and go on
    # later
    policy: Literal["wait", "shrink", "yield"] = "wait"
    count: bool = False  # the virtual card counts the bytes of tensors and enforces its leases; slower

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, CardChoice):
            return given
        choice = given if isinstance(given, dict) else {"use": given}
        use = choice.get("use")
        if isinstance(use, bool) or not isinstance(use, str | int | None):
            raise ValueError(  # noqa: TRY004 - pydantic wants one
                "expected an index, a UUID, or {use: ..., policy: ..., count: ...}"
            )
        return choice


class Gate(Values):
    """When a new model replaces the champion (docs/promotion.md); losses are between 0 and 1."""

    # by how much its loss on test items must be lower, at least
    minimum_effect: float = Field(0.001, ge=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=1)  # the share of years that may see a false promotion
    margin: float = Field(0.05, ge=0, le=1)  # by how much the loss of one class may rise
    size: float = Field(2.0, gt=0)  # how many times as large as the champion it may be
    latency: float | None = Field(None, gt=0)  # how many times as long it may take; left out: any


class Experiment(Values):
    """One config file: values for every step of one flow; may be part of a larger one."""

    flow: str | None = None  # which file of flows/ runs it; at the top of the file only
    # the MLflow experiment; the file's name when left out
    name: str | None = Field(None, max_length=200, pattern=r"\S")
    priority: float = runtime_option(0, "of an experiment in a night: the higher is begun first")
    seed: int = Field(0, ge=0, lt=2**32)  # of every random choice; at the top of the file only
    # several: all of it runs with as many seeds from `seed` on; the scores get a mean and an interval
    seeds: int = Field(1, ge=1, le=100)  # at the top of the file only
    card: CardChoice = runtime_option(
        CardChoice(), "index or UUID of the card, or {use, policy, count}; at the top of the file only"
    )
    gate: Gate = runtime_option(Gate(), "when a new model replaces the champion")
    # A dropped connection, a router that restarts, an outage of minutes; a longer one is for the next night.
    retry_after_s: tuple[float, ...] = runtime_option(
        (10.0, 60.0, 300.0),
        "how long a step waits before each new try, when the network or room on the disk was missing; "
        "[] for no new try; at the top of the file only",
    )

    # run steps again though their results are remembered: all, or those of a name, a label, or a night's part
    fresh: bool | tuple[str, ...] = runtime_option(False, "true, or steps; at the top alone")

    @field_validator("fresh", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [name for name in given.split(",") if name] if isinstance(given, str) else given

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Raises ConfigError with every mistake."""
        return validate(cls, *read(path, overrides))


def _result_value(value: Any) -> Any:
    if isinstance(value, Values):
        return value.result_params()
    if isinstance(value, dict):
        return {str(k): _result_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_result_value(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class Source:
    """Where each value of a config came from, so that a message can point at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places = dict[str, str]()  # dotted key -> file:line, or the override that set it
        self.problems = list[str]()
        self.unread = set[str]()  # dotted keys whose config cannot be read: what they hold is not checked
        self.left_out = list[str]()  # keys of named configs that have no effect, each with its place

    def at(self, loc: Sequence[str | int]) -> str:
        """`file:line` of a value, or the override that set it (or those that set something below it)."""
        keys = [".".join(map(str, loc[:end])) for end in range(len(loc), -1, -1)]
        below = [
            at for key, at in self.places.items() if key.startswith(f"{keys[0]}.") and at.startswith(OVERRIDE)
        ]
        nearest = next((self.places[key] for key in keys if key in self.places), shown(self.path))
        return ", ".join(below) or nearest

    def is_unread(self, loc: Sequence[str | int]) -> bool:
        return any(".".join(map(str, loc[:end])) in self.unread for end in range(len(loc) + 1))


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """A yaml mapping with dotted overrides laid over it; mistakes are gathered in the Source.

    A section may be another config beside this one: `etl: etl.yaml`, or with changes
    `etl: {config: etl.yaml, predictor: null}`; its flow, name, seed and card are left out. An item of a list
    keeps its flow, and is named as the file unless the changes give a name.
    """
    source = Source(path)
    values = _read_file(path, source, "", ())
    for override in overrides:
        _override(values, override, source)
    return values, source


def _read_file(path: Path, source: Source, prefix: str, inside: tuple[Path, ...]) -> dict[str, Any]:
    """`prefix`: of the keys of its values, `inside`: the files that name it."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        if any(path.samefile(other) for other in inside):
            raise ConfigError(f"{shown(inside[-1])}: names {shown(path)}, which is made of it")
        node = loader.get_single_node()
        values = loader.construct_document(node) if node else None
        lines = dict(_lines(node, path, source))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.yaml")]
        hint = did_you_mean(path.name, beside, lambda name: shown(path.parent / name))
        raise ConfigError(f"{shown(path)}: there is no such file{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{shown(path)}: is a folder, not a config") from None
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except MALFORMED as error:
        raise ConfigError(f"{shown(path)}: not readable as yaml: {one_line(error)}") from None
    if not isinstance(values, dict):
        given = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{shown(path)}: expected 'key: value' lines, found {given}")
    source.places |= {f"{prefix}{key}": f"{shown(path)}:{line}" for key, line in lines.items()}
    return {key: _section(value, source, f"{prefix}{key}.", (*inside, path)) for key, value in values.items()}


def _section(value: Any, source: Source, prefix: str, inside: tuple[Path, ...], item: bool = False) -> Any:
    """With every config that it names in its place. item: it stands in a list."""
    if prefix.split(".")[-2:-1] == ["command"]:  # of a program: `python my.py settings.yaml`
        return value
    if isinstance(value, list):
        return [
            _section(child, source, f"{prefix}{index}.", inside, item=True)
            for index, child in enumerate(value)
        ]
    if isinstance(value, str) and value.endswith(".yaml"):
        value = {"config": value}
    if not isinstance(value, dict):
        return value
    changes = {k: _section(v, source, f"{prefix}{k}.", inside) for k, v in value.items() if k != "config"}
    if not isinstance(value.get("config"), str):
        return value if "config" in value else changes
    named = inside[-1].parent / value["config"]
    key = prefix.removesuffix(".")
    try:
        base = _read_file(named, source, prefix, inside)
    except ConfigError as error:
        source.problems.append(f"{source.at(key.split('.'))}: {key}: {error}")
        source.unread.add(key)
        return changes
    kept = {k: v for k, v in base.items() if k not in TOP}
    source.left_out += [
        f"{source.at((*key.split('.'), k))}: {k} has no effect here: {shown(inside[0])} has its own"
        for k in TOP
        if k in base and k != "flow"
    ]
    if item and "flow" in base:
        kept |= {"flow": base["flow"], "name": named.stem}
    return _merged(kept, changes)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(base[k], v)
        for k, v in changes.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **changes, **both}


class _Loader(yaml.SafeLoader):
    """Yaml 1.1 takes `1e-3` for text; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _lines(node: Any, path: Path, source: Source, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every value. A key written twice is a mistake, which yaml does not report."""
    seen = set[str]()
    for index, item in enumerate(node.value if isinstance(node, yaml.CollectionNode) else ()):
        key, child = item if isinstance(node, yaml.MappingNode) else (item, item)
        name = f"{prefix}{key.value if key is not child else index}"
        line = key.start_mark.line + 1
        if name in seen:
            source.problems.append(f"{shown(path)}:{line}: {name}: written twice; keep one")
        seen.add(name)
        yield name, line
        yield from _lines(child, path, source, f"{name}.")


def _override(values: dict[str, Any], override: str, source: Source) -> None:
    """An item of a list is named by its index or its `name`."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    try:
        if not equals or not all(keys):
            raise LookupError("write it as key=value, e.g. cnn.epochs=3")
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        found = _set(values, keys, value)
    except LookupError as error:
        source.problems.append(f"{OVERRIDE}{override!r}: {error.args[0]}")
    except MALFORMED:
        source.problems.append(f"{OVERRIDE}{override!r}: the value is not readable as yaml")
    else:
        key = ".".join(found)
        shown_as = f"{dotted}=..." if "://" in text else override  # an address may be a secret
        source.places[key] = f"{OVERRIDE}{shown_as!r}"
        _set(values, found, _section(value, source, f"{key}.", (source.path,), item=found[-1].isdigit()))


def _set(values: Any, keys: Sequence[str], value: Any) -> list[str]:
    """Its keys with indices in place of names. Raises LookupError."""
    key, *below = keys
    place: Any = _index(values, key) if isinstance(values, list) else key
    if not below:
        values[place] = value
        return [str(place)]
    at = values.setdefault(place, {}) if isinstance(values, dict) else values[place]
    if not isinstance(at, dict | list):
        raise LookupError(f"{key} holds no keys")  # noqa: TRY004
    return [str(place), *_set(at, below, value)]


def _index(items: list[Any], key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    called = [str(name) for name in names if name]
    raise LookupError(
        f"the list has the entries 0 to {len(items) - 1}{': ' if called else ''}{', '.join(called)}"
    )


V = TypeVar("V", bound=Values)


def validate(model: type[V], values: dict[str, Any], source: Source, below: tuple[str, ...] = ()) -> V:
    """Raises one ConfigError with every mistake. below: the keys of the source that hold the values."""
    problems = list(source.problems)
    try:
        checked = model.model_validate(values)
    except ValidationError as error:
        problems += [
            _explain(e, source, below) for e in error.errors() if not source.is_unread((*below, *e["loc"]))
        ]
    else:
        problems += [
            f"{source.at((*loc, key))}: {'.'.join((*loc, key))}: belongs at the top of the file"
            for loc, key in _misplaced(checked)
        ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return checked


def _explain(error: Any, source: Source, below: tuple[str, ...]) -> str:
    loc = tuple(part for part in error["loc"] if part != "[key]")
    message = error["msg"].removeprefix("Value error, ")
    hide = isinstance(error["input"], dict | list) or error["type"] == "value_error"
    given = "" if hide else f" (got {error['input']!r})"
    key = f"{'.'.join(map(str, loc))}: " if loc else ""
    return f"{source.at((*below, *loc))}: {key}{message[:1].lower() + message[1:] if key else message}{given}"


def _misplaced(values: Values, loc: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of the whole experiment inside a part; an item of a list may have a flow."""
    if loc and isinstance(values, Experiment):
        allowed = {"name", "flow"} if loc[-1].isdigit() else {"name"}
        yield from ((loc, key) for key in TOP if key in values.model_fields_set - allowed)
    for name in type(values).model_fields:
        for key, child in parts_of(getattr(values, name)):
            if isinstance(child, Values):
                yield from _misplaced(child, (*loc, name, *key))


def parts_of(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(key, child) of a mapping or a list; for anything else the value itself, with an empty key."""
    if isinstance(value, dict):
        yield from (((str(key),), child) for key, child in value.items())
    elif isinstance(value, list | tuple):
        yield from (((str(index),), child) for index, child in enumerate(value))
    else:
        yield (), value
