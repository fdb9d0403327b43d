"""`@step` makes a task of a function, `@pipeline` a flow of code that calls steps; both are found by name."""

import hashlib
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

from pydantic import TypeAdapter

from overnight.artifact import Artifact, DataSpec
from overnight.config import Experiment, Params
from overnight.data.file_set import FileSet
from overnight.errors import BadInput, ConfigError
from overnight.files import source_sha256
from overnight.gpu.card import Card
from overnight.paths import INSTALLED, configs, in_checkout, root, shown
from overnight.run import Run

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Artifact | None)


@dataclass(eq=False)
class Step(Generic[P, R]):
    """A task: `body(run, params, ...)` does the work and needs no server; a call in a pipeline submits it.

    gpu: its body holds a lease while it runs
    recipe: (params, DataSpec) -> Recipe, for a step that trains
    vram_mib: MiB to lease when neither a measurement nor a prediction exists; 0: the whole budget
    uncapped: it takes memory of the card that neither torch nor RMM allocates; it runs alone until measured
    program: it runs a program of its own, which is watched as a whole: its process makes no CUDA context
    reproducible: False where the same key may give another result, as of a clock or a service: always run
    spec: (params, *given) -> DataSpec of its result, or None when unknown
    peak: (params, *given) -> Formula or (low, high) MiB of the card, or None when unknown
    `given` are data set entries and the DataSpecs of upstream artifacts.
    probe: (card or None for the CPU, params, *given) -> its engine or library there, by name; part of the key
    """

    body: Callable[Concatenate[Run, P], R]
    gpu: bool = False
    recipe: "Callable[..., Recipe[Any]] | None" = None
    vram_mib: int = 0
    uncapped: bool = False
    program: bool = False
    reproducible: bool = True
    spec: Callable[..., DataSpec | None] | None = None
    peak: Callable[..., Any] | None = None
    probe: Callable[..., Mapping[str, str]] | None = None

    def __post_init__(self) -> None:
        self.name = self.body.__name__
        self.__doc__ = self.body.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        bound = inspect.signature(self.body).bind(None, *args, **kwargs)
        bound.apply_defaults()
        return cast("R", current_builder().submit(self, list(bound.arguments.values())[1:]))

    @property
    def address(self) -> str:
        return f"{self.body.__module__}:{self.name}"

    @cached_property
    def hints(self) -> dict[str, Any]:
        hints = get_type_hints(self.body)
        return {name: hints[name] for name in list(inspect.signature(self.body).parameters)[1:]}

    def from_json(self, arguments: Sequence[Any]) -> list[Any]:
        return [
            TypeAdapter(hint).validate_python(value)
            for hint, value in zip(self.hints.values(), arguments, strict=True)
        ]

    def choices(self, card: Card | None, arguments: Sequence[Any]) -> dict[str, str]:
        """Engine, library and precision on this card (None: the CPU), by name."""
        found = dict(self.probe(card, *arguments)) if self.probe else {}
        if self.recipe and getattr(arguments[0], "precision", "") == "auto":
            found["precision"] = card.fast_precision() if card and not card.virtual else "fp32"
        return found

    def memory_key(self, arguments: Sequence[Any]) -> str:
        """Digest of what decides its memory at a given micro-batch; seed and content of the data do not."""
        parts = {
            "step": self.address,
            "source": source_sha256(self.files()),
            "torch": importlib.metadata.version("torch"),
            "arguments": [_shape(a) for a in arguments],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def files(self) -> list[Path]:
        """Of its family (the folder directly below tasks/), sorted; else its own file alone."""
        file = Path(inspect.getfile(self.body)).resolve()
        match in_checkout(file) or file:
            case Path(parts=("tasks", name, _, *deeper)) if name != "shared":
                family = file.parents[len(deeper)]
            case _:
                return [file]
        found = sorted(path.relative_to(family) for path in family.rglob("*.py"))
        # Hidden files and folders are those of editors.
        return [family / path for path in found if not any(p.startswith(".") for p in path.parts)]


def _shape(value: Any) -> Any:
    """An argument reduced to what decides memory: shapes and counts."""
    if isinstance(value, Artifact):
        return {"artifact": value.kind, "spec": value.spec.model_dump(mode="json")}
    if isinstance(value, FileSet):
        return value.shape()
    if isinstance(value, Params):
        return value.model_dump(mode="json", exclude={"micro_batch", "exclusive", "vram_mib"})
    if isinstance(value, list):
        return [_shape(one) for one in value]
    return value


@overload
def step(body: Callable[Concatenate[Run, P], R], /) -> Step[P, R]: ...
@overload
def step(**fields: Any) -> Callable[[Callable[Concatenate[Run, P], R]], Step[P, R]]: ...
def step(body: Any = None, /, **fields: Any) -> Any:
    """`@step` or `@step(gpu=True, recipe=..., vram_mib=...)`."""
    return Step(body, **fields) if body else partial(Step, **fields)


class Builder(ABC):
    part = ""
    left_out: frozenset[str] = frozenset()  # parts of a night that are not run

    @abstractmethod
    def submit(self, step: Step[Any, Any], arguments: list[Any]) -> Any:
        """Returns what stands for the step's result until it is done."""

    def label(self, name: str) -> str:
        return f"{self.part}/{name}" if self.part else name

    @contextmanager
    def named(self, part: str) -> Iterator[None]:
        before = self.part
        self.part = part
        try:
            yield
        finally:
            self.part = before


_builder: ContextVar[Builder | None] = ContextVar("builder", default=None)


@contextmanager
def building(builder: Builder) -> Iterator[None]:
    token = _builder.set(builder)
    try:
        yield
    finally:
        _builder.reset(token)


def current_builder() -> Builder:
    """Raises RuntimeError outside of a pipeline."""
    builder = _builder.get()
    if builder is None:
        raise RuntimeError("a step was called outside a pipeline: call step.body(run, params, ...) instead")
    return builder


def is_wanted(part: str) -> bool:
    """Whether a part of a night is to run: there may be no time for it."""
    return part not in current_builder().left_out


class Pipeline(Generic[P, T]):
    """A flow: straight code that calls steps. Inside another pipeline it runs as a part of that one."""

    def __init__(self, body: Callable[P, T]) -> None:
        self.body = body
        self.name = body.__name__
        self.__doc__ = body.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.part(self.name, *args, **kwargs)

    def part(self, name: str, *args: P.args, **kwargs: P.kwargs) -> T:
        """With labels that begin with `name`, for a pipeline that runs another more than once."""
        with current_builder().named(name):
            return self.body(*args, **kwargs)

    @cached_property
    def experiment(self) -> type[Experiment]:
        """The Experiment subclass of its first argument. Raises ConfigError."""
        with suppress(StopIteration, LookupError, NameError):  # no argument, no annotation, an unknown name
            hint = get_type_hints(self.body)[next(iter(inspect.signature(self.body).parameters))]
            if isinstance(hint, type) and issubclass(hint, Experiment):
                return hint
        code = cast("FunctionType", self.body).__code__
        raise ConfigError(
            f"{shown(Path(code.co_filename))}:{code.co_firstlineno}: {self.name}: "
            f"write it as `def {self.name}(cfg: C)`, where C is a subclass of Experiment"
        )


pipeline = Pipeline  # `@pipeline` on `def vision(cfg: Vision, ...)`, in the file of that name


def load_step(address: str) -> Step[Any, Any]:
    """Import the step of an address module:function. Raises BadInput."""
    found = pkgutil.resolve_name(address)
    if not isinstance(found, Step):
        raise BadInput(f"{address}: is no step; decorate the function with @step")
    return found


def flow_names() -> list[str]:
    """The files of flows/ that do not begin with an underscore."""
    modules = pkgutil.iter_modules(importlib.import_module("flows").__path__)
    return sorted(found.name for found in modules if not found.name.startswith("_"))


def default_config(flow: str) -> str:
    """What a deployment runs unless it is given a config: configs/FLOW.yaml, else the first of that flow."""
    own = f"configs/{flow}.yaml"
    if (root() / own).is_file():
        return own
    naming = re.compile(rf"^flow: *{flow} *(#|$)", re.MULTILINE)
    for path in sorted(configs().glob("*.yaml")):
        with suppress(OSError, UnicodeDecodeError):
            if naming.search(path.read_text(encoding="utf-8")):
                return f"configs/{path.name}"
    return own


def load_pipeline(name: str) -> Pipeline[Any, Any]:
    """Raises ConfigError with file and line of the mistake."""
    try:
        found = getattr(importlib.import_module(f"flows.{name}"), name, None)
    except Exception as error:
        said = error.msg if isinstance(error, SyntaxError) else f"{error}{_moved(error)}"
        raise ConfigError(f"{place_of(name, error)}: {type(error).__name__}: {said}") from error
    if not isinstance(found, Pipeline):
        raise ConfigError(f"flows/{name}.py: expected a @pipeline called {name!r}")
    _ = found.experiment
    return found


def place_of(name: str, error: Exception) -> str:
    """FILE:LINE where a flow failed, in it or in a task."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(Path(error.filename))}:{error.lineno}"
    folders = [folder for top in ("flows", "tasks") for folder in importlib.import_module(top).__path__]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if any(Path(frame.filename).is_relative_to(folder) for folder in folders):
            return f"{shown(Path(frame.filename))}:{frame.lineno}"
    return f"flows/{name}.py"


def _moved(error: Exception) -> str:
    """A hint where a name that cannot be imported is one that docs/upgrading.md lists."""
    page = INSTALLED / "docs" / "upgrading.md"
    asked = re.search(r"'([\w.]+)'", str(error))
    if not isinstance(error, ImportError) or asked is None or not page.is_file():
        return ""
    listed = " ".join(re.findall(r"^\| (`.*?) \|", page.read_text(encoding="utf-8"), re.MULTILINE))
    known = re.search(rf"(?<!\w){re.escape(asked[1])}(?!\w)", listed)
    return "; docs/upgrading.md lists the names that moved" if known else ""
