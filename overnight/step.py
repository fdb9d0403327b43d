"""The two decorators. `@step` makes a task of a pure function; `@pipeline` makes a flow of straight code that calls steps."""

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
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

from overnight.artifact import Artifact, DataSpec
from overnight.config import Experiment, Params
from overnight.data.dataset import Entry
from overnight.gpu.card import Card
from overnight.run import Run

if TYPE_CHECKING:
    from overnight.memory.formulas import Formula
    from overnight.training.recipe import Recipe

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Artifact | None)


class Step(Generic[P, R]):
    """A task: `body(run, params, ...)` is the pure function; calling the step in a pipeline submits it.

    gpu: holds a lease while its body runs; vram_mib: what to ask when nothing better is known (0: the whole budget); recipe: how it trains;
    outside: it takes memory of the card that neither torch nor RMM allocates, so that it runs alone until that has been measured.
    spec(params, *given) -> shapes of what it hands on, peak(params, *given) -> a Formula or (low, high) MiB of the card, both before it
    runs, None where nobody knows; `given` are data set entries, and the shapes of upstream artifacts.
    probe(card, params, *given) -> the engine or library that it will choose on that card (None: the CPU), which is part of its key.
    """

    def __init__(
        self,
        body: Callable[Concatenate[Run, P], R],
        gpu: bool = False,
        recipe: "Callable[..., Recipe[Any]] | None" = None,
        vram_mib: int = 0,
        outside: bool = False,
        spec: "Callable[..., DataSpec | None] | None" = None,
        peak: "Callable[..., Formula | tuple[float, float] | None] | None" = None,
        probe: Callable[..., Mapping[str, str]] | None = None,
    ) -> None:
        self.probe = probe
        self.body, self.gpu, self.recipe, self.vram_mib, self.outside = body, gpu, recipe, vram_mib, outside
        self.spec, self.peak = spec, peak
        self.name = body.__name__
        self.__doc__ = body.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Submit to the pipeline that is being built. What comes back is a Pending, typed as what it will be."""
        from overnight.orchestration.pipeline import current

        return cast("R", current().submit(self, *args, **kwargs))

    @property
    def address(self) -> str:
        """Where a child finds it: module:function."""
        return f"{self.body.__module__}:{self.name}"

    @cached_property
    def hints(self) -> dict[str, Any]:
        """The body's argument types, without `run` and the result."""
        hints = get_type_hints(self.body)
        return {name: hints[name] for name in list(inspect.signature(self.body).parameters)[1:]}

    def choices(self, card: Card | None, arguments: Sequence[Any]) -> dict[str, str]:
        """The engine, library and precision that it will choose on this card (None: the CPU), by name."""
        found = dict(self.probe(card, *arguments)) if self.probe else {}
        if self.recipe and getattr(arguments[0], "precision", "") == "auto":
            found["precision"] = card.fast_precision() if card and not card.virtual else "fp32"
        return found

    def memory_key(self, arguments: Sequence[Any]) -> str:
        """What decides how much memory it needs at a given micro-batch: neither the seed nor the content of the data does."""
        parts = {
            "step": self.address,
            "source": self._source(),
            "torch": _torch(),
            "arguments": [_shape(a) for a in arguments],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _source(self) -> str:
        """Digest of the task's file, or of every file of its package."""
        file = Path(inspect.getfile(self.body))
        files = (
            sorted(file.parent.rglob("*.py"))
            if file.parent.name != "tasks" and (file.parent / "__init__.py").is_file()
            else [file]
        )
        return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def _shape(value: Any) -> Any:
    """An argument as what decides memory: shapes and counts."""
    if isinstance(value, Artifact):
        return {"artifact": value.kind, "spec": value.spec.model_dump(mode="json")}
    if isinstance(value, Entry):
        return value.model_dump(mode="json", include={"name", "kind", "reader", "options", "splits"})
    if isinstance(value, Params):
        return value.model_dump(mode="json", exclude={"micro_batch", "exclusive"})
    return value


@cache
def _torch() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


@overload
def step(body: Callable[Concatenate[Run, P], R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    gpu: bool = False,
    recipe: "Callable[..., Recipe[Any]] | None" = None,
    vram_mib: int = 0,
    outside: bool = False,
    spec: "Callable[..., DataSpec | None] | None" = None,
    peak: "Callable[..., Formula | tuple[float, float] | None] | None" = None,
    probe: Callable[..., Mapping[str, str]] | None = None,
) -> Callable[[Callable[Concatenate[Run, P], R]], Step[P, R]]: ...
def step(body: Any = None, /, **values: Any) -> Any:
    """`@step` or `@step(gpu=True, recipe=..., vram_mib=...)`: the function becomes a task of a pipeline."""

    def decorate(body: Callable[Concatenate[Run, P], R]) -> Step[P, R]:
        return Step(body, **values)

    return decorate(body) if body else decorate


class Builder:
    """What a flow's code builds while it runs: calls of steps arrive here, those of a part under its name."""

    part = ""

    def label(self, name: str) -> str:
        """A step's name in its part."""
        return f"{self.part}/{name}" if self.part else name

    @contextmanager
    def named(self, part: str) -> Iterator[None]:
        """Steps submitted in the block carry the part's name."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before


class Pipeline(Generic[P, T]):
    """A flow: straight code that calls steps. Inside another pipeline it runs as a part of that one."""

    def __init__(self, body: Callable[P, T]) -> None:
        self.body, self.name, self.__doc__ = body, body.__name__, body.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run as a part of the pipeline that is being built; a whole run enters by `overnight.orchestration.pipeline.execute`."""
        from overnight.orchestration.pipeline import current

        with current().named(self.name):
            return self.body(*args, **kwargs)

    def part(self, name: str, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, its steps carrying `name`: for a pipeline that runs another one more than once."""
        from overnight.orchestration.pipeline import current

        with current().named(name):
            return self.body(*args, **kwargs)

    @cached_property
    def experiment(self) -> type[Experiment]:
        """The Experiment subclass of its first argument."""
        first = next(iter(inspect.signature(self.body).parameters))
        hint: type[Experiment] = get_type_hints(self.body)[first]
        return hint


def pipeline(body: Callable[P, T]) -> Pipeline[P, T]:
    """`@pipeline` on `def vision(cfg: Vision, ...)`: the flow of that name, in the file of that name."""
    return Pipeline(body)
