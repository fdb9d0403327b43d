"""Data that ships in an installed package: its files, read by another reader, or what one of its functions returns."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from overnight.config import Source, Values, validate
from overnight.content import Content, Graph, Handled, ImageItem, Images
from overnight.errors import ConfigError, DataError
from overnight.readers import reader

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from overnight.dataset import Entry


class Options(Values):
    """Either `reader` with its `options` over files of the package, or a `function` to call."""

    module: str
    reader: str | None = Field(None, description="of the files; the package is found without being imported")
    folder: str = Field("", description="below the package's own folder")
    options: dict[str, Any] = Field({}, description="of that reader")
    function: str | None = Field(None, description="returns images and target (scikit-learn), or a networkx graph")
    arguments: dict[str, Any] = {}
    label: str | None = Field(None, description="the node attribute that is the class")
    maximum: float | None = Field(None, gt=0, description="the value that means white; the largest that occurs when left out")

    @model_validator(mode="after")
    def _one_way(self) -> "Options":
        if (self.reader is None) == (self.function is None):
            raise ValueError("give either reader or function")
        if self.reader:
            try:
                validate(reader(self.reader).Options, self.options, Source(Path("options")))
            except ConfigError as error:
                raise ValueError("; ".join(error.problems)) from None
        return self


def read(folder: Path, options: Options, entry: "Entry") -> Content:
    """The package's data as the entry's kind."""
    if options.reader:
        inner = reader(options.reader)
        return inner.read(folder, inner.Options.model_validate(options.options), entry)
    found = _call(options)
    if hasattr(found, "adjacency"):
        return _graph(found, options)
    return _images(found, options)


def home(options: Mapping[str, Any]) -> Path:
    """The folder of an installed package, found without importing it (some take seconds); raises DataError when it is not installed."""
    module = str(options["module"])
    spec = find_spec(module.partition(".")[0])
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise DataError(f"package {module!r} is not installed here; `pip install` the package that brings it")
    return Path(places[0]) / str(options.get("folder", ""))


def release(options: Mapping[str, Any]) -> str:
    """Name and version of the package."""
    top = str(options["module"]).partition(".")[0]
    names = packages_distributions().get(top, [])
    return " ".join(f"{name} {version(name)}" for name in sorted(set(names))) or top


def _call(options: Options) -> Any:
    function = getattr(import_module(options.module), options.function or "", None)
    if not callable(function):
        raise DataError(f"package {options.module!r} has no function {options.function!r}; check the entry's options")
    return function(**options.arguments)


def _images(found: Any, options: Options) -> Images:
    """(N, H, W) or (N, H, W, 3) of any range as 8-bit images."""
    import numpy as np

    pixels, labels = np.asarray(found["images"], dtype=np.float64), np.asarray(found["target"]).astype(int)
    bytes_NHW = np.rint(pixels * (255 / (options.maximum or pixels.max()))).clip(0, 255).astype(np.uint8)
    names = found.get("target_names")
    classes = tuple(str(n) for n in (names if names is not None else range(labels.max() + 1)))
    items = [
        ImageItem(f"{options.function}/{i}", _opener(image), int(label))
        for i, (image, label) in enumerate(zip(bytes_NHW, labels, strict=True))
    ]
    return Images(classes, {"train": items})


def _opener(image: "np.ndarray") -> Any:
    def decode() -> "Image":
        from PIL import Image

        return Image.fromarray(image)

    return decode


def _graph(found: Any, options: Options) -> Graph:
    """Nodes in the graph's order, with one attribute as their class."""
    import numpy as np

    from overnight.readers._graph import cleaned_edges

    index, handled = {node: i for i, node in enumerate(found.nodes)}, Handled()
    edges = np.array([[index[a], index[b]] for a, b in found.edges()], dtype=np.int64).reshape(-1, 2).T
    names = [None if options.label is None else data.get(options.label) for _, data in found.nodes(data=True)]
    classes = tuple(sorted({str(n) for n in names if n is not None}))
    labels = np.array([-1 if n is None else classes.index(str(n)) for n in names], dtype=np.int64)
    handled["unlabelled node kept"] += int((labels < 0).sum()) if options.label else 0
    return Graph(cleaned_edges(edges, len(index), handled, options.module), len(index), None, labels, classes, {}, handled)
