"""Rows as numbers that depend on their values alone, whatever library, version or order computes them."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl

AT_ONCE = 64  # columns
NO_NUMBER = 2**63 + 1  # in the place of a missing whole number


def row_hash(frame: "pl.DataFrame") -> np.ndarray:
    """Uint64 (n,) of the values of each row, whatever the order of the columns."""
    return _row_hash(frame, np.zeros(frame.height, np.uint64))


def file_hash(frame: "pl.LazyFrame", names: Sequence[str]) -> np.ndarray:
    """The same of these columns of a file, a few of them in memory at a time."""
    import polars as pl

    total = np.zeros(int(frame.select(pl.len()).collect().item()), np.uint64)
    for start in range(0, len(names), AT_ONCE):
        total = _row_hash(frame.select(sorted(names)[start : start + AT_ONCE]).collect(), total)
    return total


def _row_hash(frame: "pl.DataFrame", total: np.ndarray) -> np.ndarray:
    for name in sorted(frame.columns):
        total = mixed(total ^ _bits(frame[name]))
    return total


def _bits(column: "pl.Series") -> np.ndarray:
    """Uint64 (n,), equal for equal values; missing ones are all the same."""
    import polars as pl

    dtype = column.dtype
    if dtype.is_temporal():
        column = column.to_physical()
    if column.dtype.is_integer() and column.dtype not in (pl.Int128, pl.UInt128):
        wide = np.uint64 if column.dtype.is_unsigned_integer() else np.int64
        whole = column.fill_null(0).to_numpy().astype(wide).view(np.uint64)
        return mixed(np.where(column.is_null().to_numpy(), np.uint64(NO_NUMBER), whole))
    if column.dtype.is_numeric() or dtype == pl.Boolean:
        values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy() + 0.0  # of -0.0 comes 0.0
        return mixed(np.where(np.isnan(values), np.nan, values).view(np.uint64))
    texts = column.cast(pl.String).fill_null("\0missing")
    levels = texts.unique()
    digests = [hashlib.blake2b(level.encode(), digest_size=8).digest() for level in levels]
    codes = pl.DataFrame({"level": levels, "code": np.arange(len(levels))})
    found = texts.to_frame("level").join(codes, on="level", how="left", maintain_order="left")["code"]
    return np.asarray(np.frombuffer(b"".join(digests), np.uint64)[found.to_numpy()])


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every other."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
