"""Which parts of the ETL cudf-polars translates: `python -m bench.rapids_translates FOLDER`, without a card.

FOLDER holds cudf_polars, unpacked from its wheel (requirements-rapids.lock). Its own translator is asked with
plans of the installed Polars; libcudf is not installed, so stand-ins take its place: types, their traits and
the casts that libcudf documents. A plan that translates was not run. Prints a table and writes
bench/out/rapids_translates.json; docs/card.md repeats it in words.
"""

import datetime as dt
import enum
import importlib.abc
import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import polars as pl

from tasks.tabular import columns

OUT = Path(__file__).resolve().parent / "out" / "rapids_translates.json"
ROOTS = {"pylibcudf", "rmm", "nvtx", "cuda", "rapidsmpf", "kvikio"}
TYPES = (
    "EMPTY INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 FLOAT32 FLOAT64 BOOL8 TIMESTAMP_DAYS "
    "TIMESTAMP_SECONDS TIMESTAMP_MILLISECONDS TIMESTAMP_MICROSECONDS TIMESTAMP_NANOSECONDS DURATION_DAYS "
    "DURATION_SECONDS DURATION_MILLISECONDS DURATION_MICROSECONDS DURATION_NANOSECONDS DICTIONARY32 STRING "
    "LIST DECIMAL32 DECIMAL64 DECIMAL128 STRUCT NUM_TYPE_IDS"
)
TypeId = enum.IntEnum("TypeId", TYPES.split(), start=0)
TRAITS = {
    "boolean": ("BOOL",),
    "duration": ("DURATION",),
    "timestamp": ("TIMESTAMP",),
    "fixed_point": ("DECIMAL",),
    "floating_point": ("FLOAT",),
    "integral": ("INT", "UINT", "BOOL"),
    "integral_not_bool": ("INT", "UINT"),
    "unsigned": ("UINT",),
    "nested": ("LIST", "STRUCT"),
    "numeric_not_bool": ("INT", "UINT", "FLOAT"),
    "numeric": ("INT", "UINT", "FLOAT", "BOOL"),
    "chrono": ("TIMESTAMP", "DURATION"),
}
SQL = (
    "EXTRACT(dow FROM u)",
    "EXTRACT(hour FROM u)",
    "EXTRACT(dow FROM CAST(CAST(u AS BIGINT) - 18000000000 AS TIMESTAMP))",
    "u - INTERVAL '5h'",
    "DATE(s, '%Y-%m-%d')",
    "CASE WHEN s LIKE 'AIRBUS%' THEN 'Airbus' WHEN s = 'x' THEN 'B' ELSE s END",
    "s IN ('a', 'b')",
    "i - j",
    "i > 0",
    "LN(i) + 1",
    "ABS(i)",
    "ROUND(f, 1)",
    "AVG(f)",
    "STDDEV(f)",
    "UPPER(s)",
    "SUBSTR(s, 1, 2)",
    "CAST(i AS DOUBLE)",
)


class StandIn(type):
    """A class of libcudf of which nothing is known but its name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        content = {
            "__init__": lambda _self, *_a, **_k: None,
            "__class_getitem__": classmethod(lambda c, _i: c),
        }
        found = StandIn(name, (object,), content) if name[0].isupper() else MagicMock(name=name)
        setattr(self, name, found)
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, _path: Any, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".", maxsplit=1)[0] in ROOTS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        made = Module(spec.name)
        made.__path__ = []
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs: its content is made when it is asked for."""


class DataType:
    def __init__(self, number: int, scale: int = 0) -> None:
        self.known = (TypeId(number), scale)

    def id(self) -> int:
        return self.known[0]

    def scale(self) -> int:
        return self.known[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataType) and self.known == other.known

    def __hash__(self) -> int:
        return hash(self.known)


def is_a(trait: str, dtype: DataType) -> bool:
    return TypeId(dtype.id()).name.startswith(TRAITS[trait])


def can_cast(a: DataType, b: DataType) -> bool:
    """As libcudf documents it: between numbers, between times, and between whole numbers and times."""
    numbers = [is_a("numeric", dtype) or is_a("fixed_point", dtype) for dtype in (a, b)]
    times = [is_a("chrono", dtype) for dtype in (a, b)]
    same = (
        all(numbers) or all(is_a("timestamp", d) for d in (a, b)) or all(is_a("duration", d) for d in (a, b))
    )
    return same or (any(times) and any(is_a("integral_not_bool", dtype) for dtype in (a, b)))


def stand_in() -> None:
    """Put the stand-ins where cudf-polars looks for libcudf."""
    sys.meta_path.insert(0, Finder())
    import pylibcudf
    import pylibcudf.io
    import pylibcudf.traits
    import pylibcudf.types
    import pylibcudf.unary

    for place in (pylibcudf, pylibcudf.types):
        vars(place).update(TypeId=TypeId, DataType=DataType)
    pylibcudf.types.SIZE_TYPE = DataType(TypeId.INT32)
    for trait in TRAITS:
        setattr(pylibcudf.traits, f"is_{trait}", lambda dtype, trait=trait: is_a(trait, dtype))
    others = ("STRING", "LIST", "STRUCT", "EMPTY")
    pylibcudf.traits.is_fixed_width = lambda dtype: not TypeId(dtype.id()).name.startswith(others)
    pylibcudf.unary.is_supported_cast = can_cast
    local = {"_is_remote_uri": staticmethod(lambda _path: False)}
    pylibcudf.io.SourceInfo = type("SourceInfo", (), local)


def plans(folder: Path) -> dict[str, pl.LazyFrame]:
    """The parts of the ETL, each as a plan of its own."""
    base = pl.DataFrame({"i": [1, 2, 3], "j": [1, 1, 2], "f": [1.5, 2, None], "s": ["1", " 2", "x"]})
    at = pl.lit(dt.datetime(2024, 1, 1, tzinfo=dt.UTC))
    base = base.with_columns(at.dt.convert_time_zone("UTC").alias("u"))
    base.drop("u").write_csv(folder / "t.csv")
    base.write_parquet(folder / "t.parquet")
    rows, shops = base.lazy(), pl.LazyFrame({"k": [1, 2, 2], "c": ["a", "b", "c"]})
    csv, parquet = pl.scan_csv(folder / "t.csv", infer_schema=False), pl.scan_parquet(folder / "t.parquet")
    found = {f"sql {text}": rows.select(pl.sql_expr(text).alias("x")) for text in SQL}
    for kind in ("int", "float", "text", "bool", "date", "datetime"):
        cast = columns.cast("s", pl.String(), kind)
        if cast is not None:
            found[f"type {kind} of text"] = rows.select(cast.alias("x"))
    for order in ("left", "left_right"):
        found[f"left join, order {order}"] = rows.join(
            shops, left_on=["i"], right_on=["k"], how="left", maintain_order=order
        )
    no = pl.lit(None, pl.UInt16)
    first = pl.when(pl.col("i").is_null()).then(pl.lit(0, pl.UInt16))
    return found | {
        "first of its key": shops.unique(subset=["k"], keep="first", maintain_order=True),
        "reason of a dropped row": rows.with_columns(pl.coalesce([first, no]).alias("r")),
        "counts": rows.select((pl.col("i") == 1).sum().alias("n"), pl.len().alias("rows")),
        "scan CSV": csv,
        "count CSV": csv.select(pl.len()),
        "scan Parquet": parquet,
        "count Parquet": parquet.select(pl.len()),
        "write Parquet": parquet.sink_parquet(folder / "out.parquet", row_group_size=131_072, lazy=True),
    }


def main() -> int:
    sys.path.insert(0, sys.argv[1])
    stand_in()
    import cudf_polars
    from cudf_polars.dsl.translate import Translator

    engine = pl.GPUEngine(executor="in-memory", raise_on_fail=True)
    asked = list[list[str]]()

    def execute_with_cudf(plan: Any, _duration: Any, *, config: pl.GPUEngine) -> None:
        """Translate, and leave the plan to the processor."""
        translator = Translator(plan, config)
        translator.translate_ir()
        asked.append([str(error) for error in translator.errors])

    cudf_polars.execute_with_cudf = execute_with_cudf
    found = dict[str, list[str]]()
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in plans(Path(folder)).items():
            asked.clear()
            try:
                plan.collect(engine=engine)
            except pl.exceptions.PolarsError as error:  # of the values above, after the translation
                print(f"     {str(error).splitlines()[0][:90]}")
            found[name] = sorted(set(asked[0]))
            print(f"{'no' if found[name] else 'yes':4} {name:80} {'; '.join(found[name])}")
    versions = {"cudf_polars": cudf_polars.__version__, "polars": pl.__version__}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"versions": versions, "refused": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
