"""Data that ships in an installed package: its files, or what one of its functions returns."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, Content, Graph, Images, Tables
from overnight.data.file_set import Package
from overnight.data.readers import reader, schemas_of
from overnight.data.readers._common import cleaned_edges, image_items
from overnight.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import polars as pl


class Options(Values):
    """Either `reader` with its `options` over files of the package, or a `function` to call."""

    module: str
    reader: str | None = None  # of the files; the package is found without being imported
    folder: str = ""  # below the package's own folder
    options: dict[str, Any] = {}  # of that reader
    function: str | None = None  # returns images and target (scikit-learn), or a networkx graph
    arguments: dict[str, Any] = {}
    label: str | None = None  # the node attribute that is the class
    # the value that means white; the largest that occurs when left out
    maximum: float | None = Field(None, gt=0)

    @field_validator("options")
    @classmethod
    def _of_the_reader(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.data.get("reader"):
            reader(info.data["reader"]).Options.model_validate(options)
        return options

    @model_validator(mode="after")
    def _one_way(self) -> "Options":
        if (self.reader is None) == (self.function is None):
            raise ValueError("give either reader or function")
        return self


def read(folder: Path, options: Options, kind: str) -> Content:
    if options.reader:
        inner = reader(options.reader)
        return inner.read(folder, inner.Options.model_validate(options.options), kind)
    found = _call(options)
    convert = {"images": _images, "graph": _graph, "table": _tables}.get(kind)
    content = convert(found, options) if convert else None
    if content is None:
        raise DataError(
            f"package {options.module!r}: {options.function} returned a {type(found).__name__}, which is no "
            f"{kind}; expected a mapping with images and target, a networkx graph, or a data frame"
        )
    return content


def schemas(folder: Path, options: Options) -> "dict[str, tuple[pl.Schema, bool]]":
    """As those of its reader."""
    if options.reader is None:
        return {}
    return schemas_of(options.reader, folder, reader(options.reader).Options.model_validate(options.options))


def package(options: Mapping[str, Any]) -> Package:
    return Package(str(options["module"]), str(options.get("folder") or ""))


def _call(options: Options) -> Any:
    module = import_module(options.module)
    function = getattr(module, options.function or "", None)
    if not callable(function):
        hint = did_you_mean(options.function or "", dir(module))
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
    pixels = np.asarray(found["images"], dtype=np.float64)
    labels = np.asarray(found["target"]).astype(int)
    grey_NHW = np.rint(pixels * (255 / (options.maximum or pixels.max() or 1))).clip(0, 255).astype(np.uint8)
    names = found.get("target_names")
    classes = tuple(str(n) for n in (names if names is not None else range(labels.max() + 1)))
    return Images(classes, {"train": image_items(str(options.function), grey_NHW, labels)})


def _tables(found: Any, options: Options) -> Tables | None:
    """A data frame, or columns with feature_names beside a target; called like the function."""
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
    import numpy as np

    if not hasattr(found, "adjacency"):
        return None
    index = {node: i for i, node in enumerate(found.nodes)}
    cleaned = CleaningCounts()
    edges = np.array([[index[a], index[b]] for a, b in found.edges()], dtype=np.int64).reshape(-1, 2).T
    names = [None if options.label is None else data.get(options.label) for _, data in found.nodes(data=True)]
    classes = tuple(sorted({str(n) for n in names if n is not None}))
    labels = np.array([-1 if n is None else classes.index(str(n)) for n in names], dtype=np.int64)
    cleaned["unlabelled node kept"] += int((labels < 0).sum()) if options.label else 0
    edges = cleaned_edges(edges, len(index), cleaned, options.module)
    return Graph(edges, len(index), None, labels, classes, {}, cleaned)
