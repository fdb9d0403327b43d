"""A table larger than the memory it may take: streamed, with the same result as all at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_MIB = 320  # of memory that is no copy of a file's pages: those the kernel takes back when it must
CHILD = """
import sys
from pathlib import Path
from overnight import RecordingRun
from overnight.data.dataset import Dataset
from tasks.tabular.join import join_tables
from tasks.tabular.tables import TableParams
types = {"id": "int", "shop": "int", "price": "float", "text": "text"}
tables = {"sales": {"file": "sales.csv", "types": types}, "shops": "shops.csv"}
data = Dataset(name="large", kind="table", reader="csv", options={"tables": tables})
join = {"table": "shops", "by": ["shop"]}
params = TableParams(fact="sales", joins=[join], derive={"twice": "price * 2"}, engine=sys.argv[2])
print(join_tables.body(RecordingRun(Path(sys.argv[1])), params, data).digest)
"""


def peak_mib(child: subprocess.Popen[str]) -> float:
    """Of the memory that a process allocates, while it runs."""
    most = 0.0
    while child.poll() is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        if "RssAnon:" in status:
            most = max(most, int(status.partition("RssAnon:")[2].split()[0]) / 1024)
        time.sleep(0.02)
    return most


@pytest.mark.slow
def test_a_csv_four_times_the_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    shops = "".join(f"{i},name {i}\n" for i in range(1000))
    (folder / "shops.csv").write_text(f"shop,name\n{shops}")
    block = "".join(
        f"{i},{i % 1000},{i / 4},{'text of a row; ' * 30}{i % 7}\n" for i in range(10_000)
    ).encode()
    with (folder / "sales.csv").open("wb") as file:
        file.write(b"id,shop,price,text\n")
        while file.tell() < 4 * LIMIT_MIB * 2**20:
            file.write(block)
    digests, peaks = list[str](), list[float]()
    settings = {"OVERNIGHT_DATA": str(tmp_path), "POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"}
    for engine in ("streaming", "in-memory"):
        run = tmp_path / engine
        run.mkdir()
        command = [sys.executable, "-c", CHILD, str(run), engine]
        with subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
        ) as child:
            peaks.append(peak_mib(child))
            assert child.stdout is not None
            digests.append(child.stdout.read())
        assert child.returncode == 0
    assert digests[0] == digests[1] != ""
    assert peaks[0] < LIMIT_MIB < peaks[1]
