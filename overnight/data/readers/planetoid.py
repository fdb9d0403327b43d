"""A citation graph in one npz of plain arrays: edge_index, x (CSR or dense), y, and public masks."""

from pathlib import Path
from typing import TYPE_CHECKING

from overnight.config import Values
from overnight.data.archives import DAMAGED
from overnight.data.content import CleaningCounts, Features, Graph, as_float32
from overnight.data.readers._common import Classes, class_names, cleaned_edges, present
from overnight.errors import file_error
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np


MASKS = ("train_mask", "val_mask", "test_mask")
CSR = ("x_data", "x_indices", "x_indptr", "x_shape")
DIMENSIONS = {"edge_index": 2, "y": 1, "x": 2, **dict.fromkeys((*CSR, *MASKS), 1)}


class Options(Values):
    file: str
    classes: Classes = []  # in the order of their indices; numbers when left out


def read(folder: Path, options: Options, _kind: str) -> Graph:
    """Arrays as they stand, checked against one another; no pickles."""
    import numpy as np

    path, cleaned = present(folder, options.file), CleaningCounts()
    arrays = _load(path)
    labels = arrays["y"].astype(np.int64)
    nodes = len(labels)
    edges = cleaned_edges(arrays["edge_index"].astype(np.int64), nodes, cleaned, shown(path))
    if not edges.size:
        raise file_error(path, "there is no edge between two nodes; get the right file")
    fault = "y has the class {}, the entry names {} classes"
    classes = class_names(options.classes, labels.tolist(), path, cleaned, fault)
    cleaned["unlabelled node kept"] += int((labels < 0).sum())
    masks = {name.removesuffix("_mask"): arrays[name].astype(bool) for name in MASKS if name in arrays}
    if masks:
        shared = sum(mask.astype(np.int64) for mask in masks.values()) > 1
        cleaned["node in several masks kept in each"] += int(np.sum(shared))
    features = _features(arrays, nodes, path, cleaned)
    return Graph(edges, nodes, features, np.maximum(labels, -1), classes, masks, cleaned)


def _load(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            if file.zip.testzip():  # else numpy reads a damaged header before its checksum
                raise ValueError("a checksum is wrong")
            arrays = dict(file.items())
    except (*DAMAGED, ValueError, TypeError) as error:
        raise file_error(path, f"expected an npz file of plain arrays: {error}; get it anew") from None
    missing = {"edge_index", "y"} - set(arrays)
    if missing:
        raise file_error(
            path, f"no array {', '.join(sorted(missing))}; the file has: {', '.join(sorted(arrays))}"
        )
    odd = [
        f"{n} is {arrays[n].dtype} {arrays[n].shape}"
        for n in DIMENSIONS
        if n in arrays and not _is_plain(n, arrays[n])
    ]
    if odd:
        raise file_error(
            path,
            f"{'; '.join(odd)}; expected numbers: edge_index (2, E) and y (N,) whole, x (N, F) or CSR, "
            "masks (N,) of 0 and 1",
        )
    wrong = [n for n in MASKS if n in arrays and not _is_mask(arrays[n], arrays["y"])]
    wrong += [n for n in CSR if "x_indptr" in arrays and n not in arrays]
    if wrong or arrays["edge_index"].shape[:1] != (2,):
        raise file_error(
            path,
            f"{wrong[0] if wrong else 'edge_index'} has the wrong shape or values, or is missing; "
            "expected masks (N,) of 0 and 1, edges (2, E) and CSR",
        )
    return arrays


def _is_plain(name: str, array: "np.ndarray") -> bool:
    """Numbers of the right dimensions; all but features are whole, and masks are 0 or 1."""
    import numpy as np

    if array.ndim != DIMENSIONS[name] or array.dtype.kind not in "biuf":
        return False
    if name in ("x", "x_data"):
        return True
    return bool((np.isfinite(array) & (array == np.floor(array))).all())


def _is_mask(mask: "np.ndarray", labels: "np.ndarray") -> bool:
    return mask.shape == labels.shape and bool(((mask == 0) | (mask == 1)).all())


def _features(arrays: "dict[str, np.ndarray]", nodes: int, path: Path, cleaned: CleaningCounts) -> Features:
    """Dense, or CSR whose indices point inside."""
    import numpy as np

    found: Features = as_float32(arrays["x"], cleaned) if "x" in arrays else None
    shape = [nodes] if found is None else [len(arrays["x"])]
    if "x_indptr" in arrays:
        data = as_float32(arrays["x_data"], cleaned)
        indices = arrays["x_indices"].astype(np.int64)
        indptr = arrays["x_indptr"].astype(np.int64)
        shape = list(map(int, arrays["x_shape"]))
        whole = (
            len(shape) == 2
            and len(indptr) == shape[0] + 1 > 0
            and indptr[0] == 0
            and indptr[-1] == len(data) == len(indices)
            and not (np.diff(indptr) < 0).any()
            and not ((indices < 0) | (indices >= shape[1])).any()
        )
        if not whole:
            size = " rows and ".join(map(str, shape))
            raise file_error(path, f"x is no sparse matrix of {size} columns; get the file anew")
        found = data, indices, indptr, (shape[0], shape[1])
    if shape[0] != nodes:
        raise file_error(path, f"x has {shape[0]} rows and y {nodes}; expected one row for each node")
    return found
