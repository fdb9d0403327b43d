"""One table of csv files: its columns, and the frame over all its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from overnight.data.content import CleaningCounts
from overnight.data.readers._columns import Column
from overnight.data.readers._csv import Layout, Source, too_long
from overnight.data.readers._inference import Inference
from overnight.data.readers._lines import Facts
from overnight.errors import DataError, file_error

BAD = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "row": pl.String}
ROW = "\0row"


@dataclass
class Table:
    """The rows of one or several files, matched by the names of their columns."""

    sources: Sequence[Source]
    layout: Layout
    cleaned: CleaningCounts
    columns: list[Column] = field(default_factory=list)
    bad_rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BAD))

    @property
    def rows(self) -> int:
        """How many the frame has."""
        return sum(source.facts.rows for source in self.sources) - self._dropped

    @cached_property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for source in self.sources for name in source.names))

    def types(self) -> dict[str, str]:
        """Of every column, as an entry states it."""
        return {c.name: f"{c.kind} {c.form}".rstrip() for c in self.columns}

    @cached_property
    def facts(self) -> Facts:
        """Of all files, as far as values are concerned."""
        every = [source.facts for source in self.sources]
        return Facts(
            rows=sum(facts.rows for facts in every),
            signs=any(facts.signs for facts in every),
            exponents=any(facts.exponents for facts in every),
            far_exponents=any(facts.far_exponents for facts in every),
            many_digits=any(facts.many_digits for facts in every),
            points=any(facts.points for facts in every),
            zeros=any(facts.zeros for facts in every),
        )

    def scan(self, types: Mapping[str, Any]) -> pl.LazyFrame:
        """The columns that `types` has no type for are text."""
        frames = [self._aligned(source, types) for source in self.sources]
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical")

    def _aligned(self, source: Source, types: Mapping[str, Any]) -> pl.LazyFrame:
        frame = source.scan(types)
        if source.names == tuple(self.names):
            return frame
        missing = [name for name in self.names if name not in source.names]
        nothing = [pl.lit(None, types.get(name, pl.String)).alias(name) for name in missing]
        return frame.with_columns(nothing).select(self.names)

    def settle(self) -> None:
        """Give every column its type, and check what the frame will not. Raises DataError."""
        inference = Inference(self.scan({}), self.facts)
        try:
            stated = [replace(self.layout.column(name), points=self.facts.points) for name in self.names]
            self.columns = inference.columns(stated)
        except ValueError as error:
            raise file_error(self.sources[0].file, str(error)) from None
        for remark in inference.remarks:
            self.cleaned[remark] += 1
        words = sum(source.facts.null_words for source in self.sources)
        if words:
            named = " or ".join(null for null in self.layout.nulls if null)
            self.cleaned[f"{named} read as missing"] += words
        if self.layout.quarantine:
            self._set_aside()
        self._check_numbers()
        self._check_clocks()

    def frame(self) -> pl.LazyFrame:
        """A value that is not of its type fails the query; `misfit` then names it."""
        if self._dropped:
            good = self.scan({}).filter(~pl.any_horizontal(self._wrong(self.names)))
            return good.with_columns(c.value(strict=True) for c in self.columns)
        frame = self.scan({c.name: c.dtype for c in self.columns if c.is_native})
        others = [c.value(strict=True) for c in self.columns if not c.is_native]
        return frame.with_columns(others) if others else frame

    def misfit(self) -> DataError | None:
        """The first row that is too long, or value that is not of its column's type, if there is one."""
        for source in self.sources:
            problem = None if self.layout.quarantine else _too_long(source)
            if problem:
                return problem
        for source in self.sources:
            own = [c for c in self.columns if c.name in source.names and c.kind != "text"]
            found = None if self.layout.quarantine else self._first_wrong(source, own)
            if found:
                return found
        return None

    def _first_wrong(self, source: Source, columns: Sequence[Column]) -> DataError | None:
        wrong = {c.name: c.wrong(self.facts) for c in columns}
        if not wrong:
            return None
        rows = source.scan({}).with_row_index(ROW).filter(pl.any_horizontal(*wrong.values())).head(1)
        found = rows.collect(engine="streaming")
        if not found.height:
            return None
        flags = found.select(flag.alias(name) for name, flag in wrong.items()).row(0, named=True)
        column = next(c for c in columns if flags[c.name])
        why = "its entry says; correct the file or the type, or set the entry's bad_rows: quarantine"
        return source.error(
            int(found[ROW][0]),
            f"column {column.name!r}, row {found[ROW][0] + 1} (after the header): {found[column.name][0]!r} "
            f"is not {column.described}, as {why}",
        )

    def _wrong(self, names: Sequence[str]) -> list[pl.Expr]:
        return [c.wrong(self.facts) for c in self.columns if c.kind != "text" and c.name in names]

    @property
    def _dropped(self) -> int:
        """Rows that are left out for their values."""
        return int((self.bad_rows["reason"].str.starts_with("column")).sum())

    def _set_aside(self) -> None:
        """Fill `bad_rows`."""
        found = [self._misshapen(source) for source in self.sources if source.even]
        found += [self._of_wrong_values(source) for source in self.sources]
        self.bad_rows = pl.concat([self.bad_rows, *found]).sort("file", "line")
        self.cleaned["row with a value of another type set aside"] += self._dropped

    def _misshapen(self, source: Source) -> pl.DataFrame:
        wanted = source.lines.columns
        rows = [
            (source.file.name, line, f"{fields} fields instead of {wanted}", text)
            for line, fields, text in source.lines.uneven()
        ]
        return pl.DataFrame(rows, schema=BAD, orient="row")

    def _of_wrong_values(self, source: Source) -> pl.DataFrame:
        columns = [c for c in self.columns if c.kind != "text" and c.name in source.names]
        if not columns:
            return pl.DataFrame(schema=BAD)
        flags = [c.wrong(self.facts) for c in columns]
        reasons = [
            pl.when(flag).then(pl.lit(f"column {c.name!r} is not {c.described}"))
            for flag, c in zip(flags, columns, strict=True)
        ]
        texts = [pl.col(name).fill_null("") for name in source.names]
        bad = source.scan({}).with_row_index(ROW).filter(pl.any_horizontal(flags)).select(
            ROW,
            pl.concat_str(reasons, separator="; ", ignore_nulls=True).alias("reason"),
            pl.concat_str(texts, separator=self.layout.delimiter).alias("row"),
        )  # fmt: skip
        found = bad.collect(engine="streaming")
        lines = source.lines.line_of(found[ROW].to_list(), source.even)
        return found.select(
            pl.lit(source.file.name).alias("file"), pl.Series("line", lines, pl.Int64), "reason", "row"
        )

    def _check_numbers(self) -> None:
        """Ask of given numbers what the scan does not ask. Raises DataError."""
        given = [c for c in self.columns if c.given and c.kind in ("int", "float")]
        changes = self.facts.far_exponents or self.facts.many_digits
        if changes and any(c.kind == "float" for c in given):
            problem = self.misfit()
            if problem:
                raise problem
        if self.facts.signs and given:
            counts = self.scan({}).select(c.notation() for c in given).collect(engine="streaming")
            for name, count in counts.row(0, named=True).items():
                self._mended(
                    f"number of column {name!r} with a plus or leading zeros read as its value", count
                )

    def _check_clocks(self) -> None:
        """Count local times that the clock shows twice or never."""
        local = [c for c in self.columns if c.is_local]
        if not local:
            return
        query = self.scan({}).select(change for c in local for change in c.clock_changes())
        counts = query.collect(engine="streaming").row(0, named=True)
        for c in local:
            self._mended(
                f"time of {c.name!r} that {c.zone} has twice read as the earlier", counts[f"twice {c.name}"]
            )
            self._mended(
                f"time of {c.name!r} that {c.zone} leaves out counts as missing", counts[f"never {c.name}"]
            )

    def _mended(self, rule: str, count: int | None) -> None:
        """Raises DataError in strict mode."""
        if count and self.layout.strict:
            raise file_error(
                self.sources[0].file, f"strict is set, but there is: {rule}: {count}; mend the file"
            )
        self.cleaned[rule] += count or 0


def _too_long(source: Source) -> DataError | None:
    columns = source.lines.columns
    for line, fields, _ in source.lines.uneven():
        if fields > columns:
            return too_long(source.file, line, fields, columns, source.layout)
    return None


def matched(sources: Sequence[Source], union: str) -> Sequence[Source]:
    """Raises DataError when a file has other columns than the first; union `fill` lets them be missing."""
    first = sources[0]
    for source in sources[1:] if union == "same" else ():
        lacks = [name for name in first.names if name not in source.names]
        more = [name for name in source.names if name not in first.names]
        if lacks or more:
            said = [f"lacks {', '.join(lacks)}"] if lacks else []
            said += [f"has {', '.join(more)} besides"] if more else []
            raise file_error(
                source.file,
                f"{' and '.join(said)}, unlike {Path(first.file).name}; set the table's union: fill, so that "
                "what a file lacks counts as missing",
            )
    return sources
