"""Data that ships in an installed package.

Its files, read by another reader, or what one of its functions returns.
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from overnight.config import Source, Values, validate
from overnight.data.content import CleaningCounts, Content, Graph, ImageItem, Images, Tables
from overnight.data.images import of_array
from overnight.data.readers import reader
from overnight.data.readers._graph import cleaned_edges
from overnight.errors import ConfigError, DataError


class Options(Values):
    """Either `reader` with its `options` over files of the package, or a `function` to call."""

    module: str
    reader: str | None = Field(None, description="of the files; the package is found without being imported")
    folder: str = Field("", description="below the package's own folder")
    options: dict[str, Any] = Field({}, description="of that reader")
    function: str | None = Field(
        None, description="returns images and target (scikit-learn), or a networkx graph"
    )
    arguments: dict[str, Any] = {}
    label: str | None = Field(None, description="the node attribute that is the class")
    maximum: float | None = Field(
        None, gt=0, description="the value that means white; the largest that occurs when left out"
    )

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


def read(folder: Path, options: Options, kind: str) -> Content:
    """The package's data as the entry's kind."""
    if options.reader:
        inner = reader(options.reader)
        return inner.read(folder, inner.Options.model_validate(options.options), kind)
    found = _call(options)
    convert = {"images": _images, "graph": _graph, "table": _tables}.get(kind)
    content = convert(found, options) if convert else None
    if content is None:
        raise DataError(
            f"package {options.module!r}: {options.function} returned a {type(found).__name__}, which is no "
            f"{kind}; "
            "expected a mapping with images and target, a networkx graph, or a data frame"
        )
    return content


def locate(options: Mapping[str, Any]) -> Path:
    """The folder of an installed package, found without importing it (some take seconds).

    Raises DataError when it is not installed.
    """
    module = str(options["module"])
    spec = find_spec(module.partition(".")[0])
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise DataError(f"package {module!r} is not installed here; `pip install` the package that brings it")
    return Path(places[0]) / str(options.get("folder") or "")


def identity(options: Mapping[str, Any]) -> dict[str, str]:
    """Name and version of the package."""
    top = str(options["module"]).partition(".")[0]
    names = packages_distributions().get(top, [])
    return {"package": " ".join(f"{name} {version(name)}" for name in sorted(set(names))) or top}


def source(options: Mapping[str, Any]) -> str:
    """What brings the files, for messages."""
    return f"package {options['module']}"


def _call(options: Options) -> Any:
    module = import_module(options.module)
    function = getattr(module, options.function or "", None)
    if not callable(function):
        close = difflib.get_close_matches(options.function or "", dir(module), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"package {options.module!r} has no function {options.function!r}{hint}")
    try:
        return function(**options.arguments)
    except TypeError as error:
        raise DataError(
            f"package {options.module!r}: {options.function} does not take these arguments: {error}"
        ) from None


def _images(found: Any, options: Options) -> Images | None:
    """(N, H, W) or (N, H, W, 3) of any range as 8-bit images."""
    import numpy as np

    if not isinstance(found, Mapping) or not {"images", "target"} <= set(found):
        return None
    pixels, labels = np.asarray(found["images"], dtype=np.float64), np.asarray(found["target"]).astype(int)
    grey_NHW = np.rint(pixels * (255 / (options.maximum or pixels.max() or 1))).clip(0, 255).astype(np.uint8)
    names = found.get("target_names")
    classes = tuple(str(n) for n in (names if names is not None else range(labels.max() + 1)))
    items = [
        ImageItem(f"{options.function}/{i}", of_array(grey_NHW[i]), int(label))
        for i, label in enumerate(labels)
    ]
    return Images(classes, {"train": items})


def _tables(found: Any, options: Options) -> Tables | None:
    """A data frame, or columns with feature_names beside a target; the table is called like the function."""
    import polars as pl

    frame = found.get("frame") if isinstance(found, Mapping) else found
    if isinstance(found, Mapping) and frame is None and {"data", "feature_names"} <= set(found):
        frame = pl.DataFrame(found["data"], schema=list(map(str, found["feature_names"])), orient="row")
        if "target" in found:
            names = found.get("target_names")
            target = found["target"] if names is None else [str(names[i]) for i in found["target"]]
            frame = frame.with_columns(pl.Series("target", target))
    if not hasattr(frame, "columns"):
        return None
    eager = frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame)
    return Tables({str(options.function): eager.lazy()})


def _graph(found: Any, options: Options) -> Graph | None:
    """Nodes in the graph's order, with one attribute as their class."""
    import numpy as np

    if not hasattr(found, "adjacency"):
        return None
    index, cleaned = {node: i for i, node in enumerate(found.nodes)}, CleaningCounts()
    edges = np.array([[index[a], index[b]] for a, b in found.edges()], dtype=np.int64).reshape(-1, 2).T
    names = [None if options.label is None else data.get(options.label) for _, data in found.nodes(data=True)]
    classes = tuple(sorted({str(n) for n in names if n is not None}))
    labels = np.array([-1 if n is None else classes.index(str(n)) for n in names], dtype=np.int64)
    cleaned["unlabelled node kept"] += int((labels < 0).sum()) if options.label else 0
    return Graph(
        cleaned_edges(edges, len(index), cleaned, options.module),
        len(index),
        None,
        labels,
        classes,
        {},
        cleaned,
    )
