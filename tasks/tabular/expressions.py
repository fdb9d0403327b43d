"""SQL expressions over the columns of a table: parsed, checked by the schema, without silent overflow."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import polars as pl
import polars.selectors as cs

from overnight.errors import DataError, did_you_mean, one_line

Node = Any  # of an expression as JSON
WHOLE_OPERATORS = {"Plus", "Minus", "Multiply", "FloorDivide", "Modulus"}
OVERFLOW = "conversion from `i128` to `i64` failed"
SKIP = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*"
NO_ARITHMETIC = re.compile(rf"{SKIP}|SELECT\s+(?:DISTINCT\s+)?\*|\(\s*\*\s*\)|\.\*|,\s*\*", re.IGNORECASE)
ARITHMETIC = re.compile(r"[-+*/%]|\b(?:SUM|ABS|POW|POWER|SIGN|MOD|DIV|GCD|LCM)\s*\(", re.IGNORECASE)
FEW_BITS = "EXTRACT|DATE_PART|[A-Z]*_?LENGTH|LEN|STRPOS|POSITION|YEAR|MONTH|DAY|HOUR|MINUTE|SECOND"
NARROW = re.compile(rf"(?P<skip>{SKIP})|\b(?:{FEW_BITS})\s*\(", re.IGNORECASE)
MOST_NAMED = 30
THERE_ARE = "there are "


@dataclass(frozen=True)
class Expressions:
    """How texts become expressions.

    wide: whole numbers are computed in 128 bits and must fit into 64 afterwards, else the query fails; the
    card has no such type: there, in 64 bits
    """

    wide: bool = True

    def parse(self, text: str, where: str, schema: pl.Schema, nan_is_missing: bool = False) -> pl.Expr:
        """Raises DataError, naming `where`, for what is no SQL expression over these columns."""
        with asking(where, text):
            plain = pl.sql_expr(text)
            roots = plain.meta.root_names()
            unknown = [name for name in roots if name not in schema]
            if unknown:
                raise DataError(f"{where}: {text!r} names {columns_there(unknown, schema)}")
            known = {name: schema[name] for name in roots}
            tree = json.loads(plain.meta.serialize(format="json"))
            rows = pl.DataFrame(schema=known).lazy()
            changed = self._checked(tree, rows)
            if nan_is_missing:
                changed = _without_nan(changed, {name for name, dtype in known.items() if dtype.is_float()})
            found = plain if changed == tree else _expression(changed)
            rows.select(found).collect_schema()
        return found

    def query(self, text: str, frames: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
        """A query over these tables. Whole numbers that are computed beyond 64 bits fail it when it runs."""
        whole = cs.signed_integer() | cs.unsigned_integer()
        computes = ARITHMETIC.search(NO_ARITHMETIC.sub(" ", text)) is not None
        if not computes:
            return pl.SQLContext(dict(frames), eager=False).execute(text)
        wide = pl.Int128 if self.wide else pl.Int64
        widened = {name: frame.with_columns(whole.cast(wide)) for name, frame in frames.items()}
        found = pl.SQLContext(widened, eager=False).execute(
            _with_wide_parts(text, "INT128" if self.wide else "BIGINT")
        )
        return found.with_columns(cs.by_dtype(pl.Int128).cast(pl.Int64))

    def _checked(self, node: Node, rows: pl.LazyFrame) -> Node:
        """Operations on whole numbers, in a type that is wide enough.

        The type of one operand may be as small as 8 bits: that of EXTRACT(hour ...).
        """
        if isinstance(node, list):
            return [self._checked(child, rows) for child in node]
        if isinstance(node, dict):
            return self._operation({key: self._checked(child, rows) for key, child in node.items()}, rows)
        return node

    def _operation(self, node: Node, rows: pl.LazyFrame) -> Node:
        match node:
            case {"BinaryExpr": {"left": left, "op": str(op), "right": right} as body} if (
                op in WHOLE_OPERATORS
            ):
                changed = {**body, "left": self._widened(left), "right": self._widened(right)}
                return self._narrowed(node, {"BinaryExpr": changed}, rows)
            case {"Function": {"input": [value], "function": "Abs"} as body}:
                return self._narrowed(node, {"Function": {**body, "input": [self._widened(value)]}}, rows)
            case {"Function": {"input": [base, *rest], "function": {"Pow": _}} as body}:
                return {"Function": {**body, "input": [_cast(base, "Float64"), *rest]}}
            case {"Agg": {"Sum": value}}:
                return self._narrowed(node, {"Agg": {"Sum": self._widened(value)}}, rows)
        return node

    def _widened(self, node: Node) -> Node:
        return _cast(node, "Int128" if self.wide else "Int64")

    def _narrowed(self, node: Node, changed: Node, rows: pl.LazyFrame) -> Node:
        """The changed one where the result is a whole number, else as it is."""
        whole = rows.select(_expression(node)).collect_schema().dtypes()[0].is_integer()
        return _cast(changed, "Int64") if whole else node


def _with_wide_parts(text: str, wide: str) -> str:
    """The query with what gives whole numbers of few bits as a type that holds products of them."""
    done, rest = "", text
    while found := NARROW.search(rest):
        if found["skip"]:
            done, rest = done + rest[: found.end()], rest[found.end() :]
            continue
        end = _closing(rest, found.end())
        call = f"{rest[found.start() : found.end()]}{_with_wide_parts(rest[found.end() : end], wide)}"
        done, rest = f"{done}{rest[: found.start()]}CAST({call} AS {wide})", rest[end:]
    return done + rest


def _closing(text: str, start: int) -> int:
    """Where the bracket that is open at `start` has been closed; the end of a text that does not close it."""
    depth, at = 1, start
    for found in re.finditer(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[()]", text[start:]):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        at = start + found.end()
        if not depth:
            return at
    return len(text)


def _cast(node: Node, dtype: str) -> Node:
    return {"Cast": {"expr": node, "dtype": {"Literal": dtype}, "options": "Strict"}}


def _expression(tree: Node) -> pl.Expr:
    return pl.Expr.deserialize(StringIO(json.dumps(tree)), format="json")


def _without_nan(node: Node, floats: set[str]) -> Node:
    """With nan as null in the columns of floats."""
    if isinstance(node, list):
        return [_without_nan(child, floats) for child in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("Column"), str) and node["Column"] in floats:
        return json.loads(pl.col(node["Column"]).fill_nan(None).meta.serialize(format="json"))
    return {key: _without_nan(child, floats) for key, child in node.items()}


@contextmanager
def asking(where: str, text: str) -> Iterator[None]:
    """What Polars says about an expression or a query, without its plan, as a DataError."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        said = str(error).strip().splitlines()[0][:300]
        if text == where:
            raise DataError(f"{where}: does not work on these tables: {said}") from None
        kind = "an SQL expression" if "SELECT" not in text.upper() else "a query"
        raise DataError(f"{where}: {text!r} is not {kind} over these columns: {said}") from None


def columns_there(unknown: list[str], schema: Mapping[str, object]) -> str:
    """The unknown names, what there is, and the nearest."""
    have = [name for name in schema if not name.startswith("\0")]
    more = f" and {len(have) - MOST_NAMED} more" if len(have) > MOST_NAMED else ""
    hints = "".join(did_you_mean(name, have) for name in unknown[:3])
    names = ", ".join(map(repr, unknown))
    return f"{names}; {THERE_ARE}{', '.join(have[:MOST_NAMED])}{more}{hints}"


def failed(named: Mapping[str, tuple[str, pl.LazyFrame, pl.Expr]]) -> DataError | None:
    """What fails in words, naming the expression whose values do; None when it is none of them.

    named: {where: (text, the rows it is computed on, expression)}
    """
    for where, (text, frame, expression) in named.items():
        found = _failure(frame, [expression.alias("\0value")])
        if found and not _failure(frame, [pl.col(list(dict.fromkeys(expression.meta.root_names())))]):
            said = one_line(str(found).splitlines()[0])
            if OVERFLOW not in said:
                return DataError(f"{where}: {text!r} fails: {said}")
            value = said.rpartition(": ")[2].strip("[]")
            return DataError(
                f"{where}: {text!r} gives whole numbers that do not fit into 64 bits, such as {value}; "
                "compute with decimals: CAST(column AS DOUBLE)"
            )
    return None


def _failure(frame: pl.LazyFrame, wanted: list[pl.Expr]) -> Exception | None:
    try:
        frame.select(wanted).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        return error
    return None
