"""A table of thousands of columns costs memory as its bytes do, not as its columns times its columns."""

import os
import subprocess
import sys

CHILD = """
from overnight.data.dataset import Dataset
data = Dataset(name="wide", kind="table", reader="csv", options={"tables": {"wide": "wide.csv"}})
found = data.load()
print(found.frames["wide"].select(found.frames["wide"].collect_schema().names()[:3]).collect().dtypes)
"""
COLUMNS, ROWS, LIMIT_MIB = 2000, 40, 900  # of which Python, Polars and its threads take 150


def test_decimals_of_unequal_length_in_every_column(tmp_path):
    (tmp_path / "wide").mkdir()
    names = ",".join(f"c{i}" for i in range(COLUMNS))
    rows = (",".join(f"{i % 9}.{row % 7}{'0' * (row % 3)}" for i in range(COLUMNS)) for row in range(ROWS))
    (tmp_path / "wide" / "wide.csv").write_text("\n".join([names, *rows]) + "\n")
    settings = {**os.environ, "OVERNIGHT_DATA": str(tmp_path), "POLARS_MAX_THREADS": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], env=settings, stdout=subprocess.PIPE, text=True
    ) as child:
        printed = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert printed == "[Float64, Float64, Float64]\n"
    assert used.ru_maxrss / 1024 < LIMIT_MIB
