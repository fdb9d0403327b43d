"""What `overnight run cora` costs beside its two bare bodies in one process, in CPU-seconds a step.

    overnight up
    python -m bench.overhead_run [--pairs N]

Pairs are interleaved; all processes of the run count, the services do not. The first run is the one in a
checkout whose services just started. Prints a table, writes bench/out/overhead_run.json, and exits 1 when a
bar is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._rows import OUT, bar, machine, write

STEPS = 2
FIRST_BAR = 6.0
REPEATED_BAR = 4.0
BARE = """
import sys
from pathlib import Path
from overnight.data.dataset import load_entry
from overnight.run import RecordingRun
from tasks.graphs.load import GraphParams, load_graph
from tasks.graphs.nodes import GnnParams, train_gnn

def run(name):
    return RecordingRun(Path(sys.argv[1], name))

graph = load_graph.body(run("load"), GraphParams(), load_entry("cora"))
train_gnn.body(run("train"), GnnParams(weight_decay=5e-4), graph)
"""


def took(command: list[str]) -> dict[str, float]:
    """CPU-seconds of a command and of all that it waited for, and wall seconds. Raises SystemExit."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace"))
    return {"cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.monotonic() - began}


def pair() -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
        bare = took([sys.executable, "-c", BARE, folder])
    run = took([str(Path(sys.executable).with_name("overnight")), "run", "cora", "--fresh"])
    return {"bare": bare, "run": run}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4, help="2 or more; the first is judged by itself")
    pairs = []
    for _ in range(parser.parse_args().pairs):
        pairs.append(pair())
        print({name: {key: round(x, 2) for key, x in found.items()} for name, found in pairs[-1].items()})
    write(OUT / "overhead_run.json", {"machine": machine(), "load": os.getloadavg()[0], "pairs": pairs})
    more = [(one["run"]["cpu_s"] - one["bare"]["cpu_s"]) / STEPS for one in pairs]
    repeated = statistics.median(more[1:])
    print(f"{machine()}\n| CPU-s more a step | measured | bar | |\n| --- | --- | --- | --- |")
    met = [
        bar("first run", f"{more[0]:.2f}", f"<= {FIRST_BAR}", more[0] <= FIRST_BAR),
        bar("repeated runs, median", f"{repeated:.2f}", f"<= {REPEATED_BAR}", repeated <= REPEATED_BAR),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
