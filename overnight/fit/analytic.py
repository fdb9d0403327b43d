"""Memory that needs no trace: tables by their bytes."""

from overnight.dataset import Entry
from overnight.errors import OvernightError

MIB = 2**20
PACKED = 8  # at most, of text in a zip or gz
JOIN = 3  # tables are read, sorted by key and gathered into the result
ENDINGS = (".zip", ".gz", ".bz2", ".xz", ".zst", ".parquet")


def joined(data: Entry) -> tuple[float, float] | None:
    """(low, high) MiB of joining the tables of a data set on the card; None when nobody knows how large they are."""
    sizes = {file.path: file.bytes for file in data.files}
    if not sizes or None in sizes.values():
        sizes = _on_disk(data)
    if not sizes:
        return None
    plain = sum(size or 0 for size in sizes.values())
    unpacked = sum((size or 0) * (PACKED if path.endswith(ENDINGS) else 1) for path, size in sizes.items())
    return plain / MIB, JOIN * unpacked / MIB


def _on_disk(data: Entry) -> dict[str, int | None]:
    """The files that are here; none when the set is not."""
    try:
        home = next(iter(data.found()), None)
    except OvernightError:
        return {}
    return {str(path): path.stat().st_size for path in home.rglob("*") if path.is_file()} if home else {}
