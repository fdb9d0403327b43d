"""Whether a table is still like it was: what of two profiles differs by more than chance and a margin.

Two samples of one population differ by chance, the more so the smaller they are. A difference counts when it
is larger than a margin that matters and than what chance gives once in a thousand columns: the
Kolmogorov-Smirnov distance for numbers, the population stability index for values, a difference of shares for
what is missing.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping

from overnight.data.profile import ColumnProfile, TableProfile

KS, KS_CHANCE = 0.1, 1.95  # margin; what D * sqrt(n m / (n + m)) exceeds once in a thousand
PSI, PSI_CHANCE = 0.2, 4.0  # margin; times what chance alone gives on average
SHARE, SHARE_CHANCE = 0.05, 4.0  # margin; standard errors
NEW_SHARE = 0.01  # of the rows, of a value that was not there
GROWTH = 1.67  # of the number of rows, either way
BEYOND = 0.5  # of the range that a column had
UNIQUE = 0.9  # distinct values of all rows, which are counted about
DAYS_BEYOND = 400 * 86400.0  # the clock goes on


def drift(before: Mapping[str, TableProfile], now: Mapping[str, TableProfile]) -> list[str]:
    """A sentence for each difference."""
    found = [f"table {name!r} is not there any more" for name in before if name not in now]
    for table, profile in now.items():
        if table in before:
            found += [f"{table}: {line}" for line in _of_table(before[table], profile)]
    return found


def _of_table(before: TableProfile, now: TableProfile) -> Iterator[str]:
    ratio = now.rows / max(before.rows, 1)
    if not 1 / GROWTH <= ratio <= GROWTH:
        yield f"{now.rows:,} rows; there were {before.rows:,}"
    for name in before.columns:
        if name not in now.columns:
            yield f"the column {name!r} is not there any more"
    for name, column in now.columns.items():
        if name not in before.columns:
            yield f"the column {name!r} is new"
            continue
        yield from (f"{name}: {line}" for line in _of_column(before.columns[name], column))


def _of_column(before: ColumnProfile, now: ColumnProfile) -> Iterator[str]:
    if before.type != now.type:
        yield f"its type is {now.type}; it was {before.type}"
        return
    yield from _missing(before, now)
    if not before.sampled or not now.sampled or (_is_numbering(before) and _is_numbering(now)):
        return
    yield from _range(before, now)
    distance = _ks(before.quantiles, now.quantiles)
    chance = KS_CHANCE * math.sqrt(1 / before.sampled + 1 / now.sampled)
    if distance > max(KS, chance + 1 / max(len(before.quantiles), 1)):
        middle = [quantiles[len(quantiles) // 2] for quantiles in (before.quantiles, now.quantiles)]
        what = _described(now.type)
        yield (
            f"{what}are spread otherwise: median {middle[1]:.4g}, it was {middle[0]:.4g} (KS {distance:.2f})"
        )
    yield from _values(before, now)


def _is_numbering(column: ColumnProfile) -> bool:
    """Whole numbers that hardly repeat, such as ids: new rows have new ones."""
    return column.type.startswith(("Int", "UInt")) and column.distinct > UNIQUE * _rows(column)


def _described(dtype: str) -> str:
    if dtype == "String":
        return "the lengths of its texts "
    return "the minutes of its days " if dtype.startswith("Datetime") else "its values "


def _missing(before: ColumnProfile, now: ColumnProfile) -> Iterator[str]:
    n, m = _rows(before), _rows(now)
    middle = (before.nulls * n + now.nulls * m) / max(n + m, 1)
    error = math.sqrt(middle * (1 - middle) * (1 / max(n, 1) + 1 / max(m, 1)))
    if abs(now.nulls - before.nulls) > max(SHARE, SHARE_CHANCE * error):
        yield f"{now.nulls:.1%} are missing; it was {before.nulls:.1%}"


def _rows(column: ColumnProfile) -> float:
    return column.sampled / max(1 - column.nulls, 1e-9) if column.nulls < 1 else 1.0


def _range(before: ColumnProfile, now: ColumnProfile) -> Iterator[str]:
    if before.low is None or before.high is None or now.low is None or now.high is None:
        return
    is_time = before.type.startswith("Date")
    room = BEYOND * (before.high - before.low) or abs(before.high) or 1.0
    if now.low < before.low - room:
        yield f"goes down to {_shown(now.low, is_time)}; the least was {_shown(before.low, is_time)}"
    most = before.high + (max(room, DAYS_BEYOND) if is_time else room)
    middle = before.quantiles[len(before.quantiles) // 2] if before.quantiles else 0.0
    if (
        before.low > 0 and middle > 0 and not is_time
    ):  # a long tail: the largest of a sample varies by factors
        most = max(most, before.high * math.sqrt(before.high / middle))
    if now.high > most:
        yield f"goes up to {_shown(now.high, is_time)}; the most was {_shown(before.high, is_time)}"


def _shown(value: float, is_time: bool) -> str:
    if not is_time:
        return f"{value:.6g}"
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value)).date().isoformat()


def _ks(before: list[float], now: list[float]) -> float:
    """The largest distance of the distribution functions that the quantiles draw."""
    if not before or not now:
        return 0.0
    points = {*before, *now}
    return max(
        max(abs(_below(before, x) - _below(now, x)), abs(_until(before, x) - _until(now, x))) for x in points
    )


def _until(quantiles: list[float], x: float) -> float:
    """The share that is at most x."""
    right = bisect_right(quantiles, x)
    if right in (0, len(quantiles)):
        return float(right > 0)
    low, high = quantiles[right - 1], quantiles[right]
    return (right - 1 + (x - low) / (high - low)) / (len(quantiles) - 1)


def _below(quantiles: list[float], x: float) -> float:
    """The share that is below x."""
    return 1 - _until([-value for value in reversed(quantiles)], -x)


def _values(before: ColumnProfile, now: ColumnProfile) -> Iterator[str]:
    """Values that are new, and shares of the frequent ones."""
    floor = 5 / now.sampled
    is_known = sum(before.values.values()) > 1 - NEW_SHARE  # all that a column of classes had
    for value, share in now.values.items():
        had = before.values.get(value, 0.0)
        news = share > max(NEW_SHARE, floor) and had < share / 10 and before.sampled * share > 10
        if news and (is_known or share > 5 * NEW_SHARE or had == 0):
            yield f"{value!r} is in {share:.1%} of the rows; it was in {had:.1%}"
            return
    common = [v for v in {**before.values, **now.values} if _largest(before, now, v) >= NEW_SHARE]
    if not common:
        return
    index, parts = _psi(before, now, common)
    chance = PSI_CHANCE * (parts - 1) * (1 / before.sampled + 1 / now.sampled)
    if index > max(PSI, chance):
        value = max(common, key=lambda v: abs(now.values.get(v, 0.0) - before.values.get(v, 0.0)))
        shares = f"{now.values.get(value, 0.0):.1%}, it was {before.values.get(value, 0.0):.1%}"
        yield f"its values have other shares: {value!r} {shares} (PSI {index:.2f})"


def _largest(before: ColumnProfile, now: ColumnProfile, value: str) -> float:
    return max(before.values.get(value, 0.0), now.values.get(value, 0.0))


def _psi(before: ColumnProfile, now: ColumnProfile, common: list[str]) -> tuple[float, int]:
    """The population stability index over the frequent values and all the others, and of how many parts."""
    old = [before.values.get(value, 0.0) for value in common]
    new = [now.values.get(value, 0.0) for value in common]
    pairs = [*zip(old, new, strict=True), (1 - sum(old), 1 - sum(new))]
    lowest = 0.5 / before.sampled, 0.5 / now.sampled
    safe = [(max(p, lowest[0]), max(q, lowest[1])) for p, q in pairs if max(p, q) > 0]
    terms = [(q - p) * math.log(q / p) for p, q in safe]
    return sum(terms), len(terms)
