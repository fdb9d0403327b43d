"""Memory of the card that tables take: joined by their bytes, fitted by their shape."""

from collections.abc import Sequence
from typing import Any

from overnight.data.entry import Entry
from overnight.errors import OvernightError
from overnight.memory.formulas import MIB, Formula

PACKED = 8  # largest compression of text in a zip or gz
JOIN = 3  # tables are read, sorted by key and gathered into the result
ENDINGS = (".zip", ".gz", ".bz2", ".xz", ".zst", ".parquet")
SOLVER = 4  # times the matrix: itself, the copies of the solver, and its products
FLOAT = 4
WIDTHS = {"bool": 1, "int": 8, "float": 8, "date": 4, "datetime": 8}  # bytes of a value
WIDE = 24  # of a text with its offset


def joined(data: Entry, tables: Sequence[str] = ()) -> Formula:
    """By rows and columns in the data set's entry, else by bytes of its files."""
    held = _columns(data, tables)
    if held:
        mib = sum(held.values())
        return _join(mib, mib, f"{len(held)} tables of {mib:,.0f} MiB by their rows and columns")
    sizes = {file.path: file.bytes for file in data.files}
    if not sizes or None in sizes.values():
        sizes = _on_disk(data)
    if not sizes:
        unknown = "the size of its tables is unknown: "
        unknown += "get the data, or write `bytes`, or counts and types, into the set's entry"
        return Formula(needs="cudf_polars", unknown=unknown)
    plain = sum(size or 0 for size in sizes.values()) / MIB
    packed = sum(size or 0 for path, size in sizes.items() if path.endswith(ENDINGS)) / MIB
    unpacked = plain + (PACKED - 1) * packed
    return _join(plain, unpacked, f"files of {plain:,.1f} MiB, at most {unpacked:,.0f} unpacked")


def _join(low: float, read: float, why: str) -> Formula:
    parts = {"data": read, "workspace": (JOIN - 1) * read}
    return Formula(low, JOIN * read, "cudf_polars", parts=parts, why=f"{why}; read, sorted by key, gathered")


def _columns(data: Entry, tables: Sequence[str]) -> dict[str, float]:
    """MiB of each table; empty when the rows or the columns of one are unknown."""
    options: Any = data.options
    inner = options.get("options")
    described = options.get("tables") or (inner.get("tables") if isinstance(inner, dict) else None)
    described = described if isinstance(described, dict) else {}
    found = dict[str, float]()
    for name in tables or described:
        rows = data.expected.counts.get(name)
        table = described.get(name)
        types = table.get("types") if isinstance(table, dict) else None  # else the name of its file alone
        if not rows or not types:
            return {}
        found[name] = rows * sum(WIDTHS.get(kind, WIDE) for kind in types.values()) / MIB
    return found


def _on_disk(data: Entry) -> dict[str, int | None]:
    try:
        home = next(iter(data.found()), None)
    except OvernightError:
        return {}
    return {str(path): path.stat().st_size for path in home.rglob("*") if path.is_file()} if home else {}


def fitted(rows: int, features: int, filled: int, classes: int) -> Formula:
    """A linear model on a sparse float32 matrix; filled: most values of a row."""
    matrix = rows * (2 * FLOAT * filled + FLOAT) / MIB  # values, columns, and where each row begins
    scores = rows * classes * FLOAT / MIB
    weights = features * classes * FLOAT / MIB
    workspace = (SOLVER - 1) * matrix + 2 * scores
    parts = {"data": matrix, "workspace": workspace, "optimizer": 20 * weights}  # L-BFGS keeps ten steps
    why = f"a sparse matrix of {rows:,} rows, at most {filled:,} of {features:,} features in each"
    return Formula(matrix, sum(parts.values()), "cuml", parts=parts, why=why)
