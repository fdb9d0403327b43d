"""A table of thousands of columns costs memory as its bytes do, not as its columns times its columns."""

import os
import subprocess
import sys

CHILD = """
from pathlib import Path
from overnight.data.dataset import Dataset
data = Dataset(name="wide", kind="table", reader="csv", options={"tables": {"wide": "wide.csv"}})
frame = data.load().frames["wide"]
print(frame.select(frame.collect_schema().names()[:3]).collect().dtypes)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
COLUMNS, ROWS, LIMIT_MIB = 2000, 40, 900  # of which Python, Polars and its threads take 150


def test_decimals_of_unequal_length_in_every_column(tmp_path):
    (tmp_path / "wide").mkdir()
    names = ",".join(f"c{i}" for i in range(COLUMNS))
    rows = (",".join(f"{i % 9}.{row % 7}{'0' * (row % 3)}" for i in range(COLUMNS)) for row in range(ROWS))
    (tmp_path / "wide" / "wide.csv").write_text("\n".join([names, *rows]) + "\n")
    settings = {**os.environ, "OVERNIGHT_DATA": str(tmp_path), "POLARS_MAX_THREADS": "2"}
    printed = subprocess.run(
        [sys.executable, "-c", CHILD], env=settings, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    types, peak_kib = printed.splitlines()
    assert types == "[Float64, Float64, Float64]"
    assert int(peak_kib) / 1024 < LIMIT_MIB
