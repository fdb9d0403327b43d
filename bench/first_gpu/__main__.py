"""A first run on a card: `python -m bench.first_gpu` (make first-gpu), at most 8 minutes, no download.

Most dangerous assumption first. Each probe is a process of its own with a time limit; what the time does not
reach is the least dangerous. A lease that is exceeded stops everything: all else rests on it. Ends with a
table and bench/out/first_gpu.json, and with 1 when a probe found what should not be. DEVICE=cpu rehearses it.
Runs from a checkout with pydantic alone beside torch; what needs more (pytest, RAPIDS) is skipped in words.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "bench" / "out" / "first_gpu.json"
ALL_S = 480.0
STOP = "stop"
Found = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """limit_s: after which it is ended; wrong: what would be wrong."""

    name: str
    limit_s: float
    wrong: str


PROBES = (
    Probe("driver", 40, "torch does not take the card's UUID; the driver counts other than nvidia-smi"),
    Probe("lease", 100, "a lease is exceeded by more than 16 MiB"),
    Probe("small", 40, "test-time augmentation fails; a warp is rounded"),
    Probe(
        "steps", 110, "a body fails; precision is not bf16; the data of the classifier are not on the card"
    ),
    Probe("memory", 40, "an error that means memory is not recognised"),
    Probe("growth", 70, "more than 150 MiB beyond the context that the warm-up measures"),
    Probe("together", 60, "of two steps that start together the second measures twice the context"),
    Probe("segments", 60, "expandable segments fail"),
    Probe("rapids", 60, "a query does not run on the card, or keeps memory"),
    Probe("compile", 90, "a compiled net fails"),
    Probe("tests", 150, "a test of tests/on_card fails"),
)


def played(probe: Probe, limit_s: float, folder: str) -> list[Found]:
    """What the probe said, a line of JSON each; what it printed besides is shown when it breaks off."""
    environ = {**os.environ, "OVERNIGHT_CARD_DIR": folder, "OVERNIGHT_ROOT": folder, "PYTHONUNBUFFERED": "1"}
    environ.setdefault("OMP_NUM_THREADS", "4")
    command = [sys.executable, "-m", "bench.first_gpu.probes", probe.name]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        lines = output.read().splitlines()
    found = [json.loads(line[7:]) for line in lines if line.startswith("RESULT ")]
    if code:
        why = f"it was ended after {limit_s:.0f} s" if code < 0 else f"it ended with {code}"
        found.append({"key": "probe", "value": f"{why}: {' | '.join(lines[-3:])[:300]}", "ok": False})
    return found


def main() -> int:
    began = time.monotonic()
    report = list[Found]()
    stopped = False
    for probe in PROBES:
        left_s = ALL_S - (time.monotonic() - began)
        if stopped or left_s < 15:
            why = "a lease was exceeded" if stopped else "no time was left"
            report.append({"probe": probe.name, "key": "", "value": f"not run: {why}", "ok": None})
            continue
        with tempfile.TemporaryDirectory(prefix="first-gpu-") as folder:
            started = time.monotonic()
            print(f"{probe.name}: wrong if {probe.wrong}", flush=True)
            found = played(probe, min(probe.limit_s, left_s), folder)
        took_s = round(time.monotonic() - started, 1)
        report += [{"probe": probe.name, "took_s": took_s, **line} for line in found]
        stopped = any(line.get("ok") == STOP for line in found)
    _show(report, stopped, time.monotonic() - began)
    return 1 if stopped or any(line["ok"] is False for line in report) else 0


def _show(report: list[Found], stopped: bool, took_s: float) -> None:
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"took_s": round(took_s, 1), "results": report}, indent=1) + "\n")
    words = {True: "ok", False: "WRONG", None: "-", STOP: "STOP"}
    width = max(len(str(line["key"])) for line in report)
    print()
    for line in report:
        print(f"{words[line['ok']]:6} {line['probe']:9} {line['key']:{width}}  {str(line['value'])[:160]}")
    if stopped:
        print("\nSTOP: a process took more of the card than its lease. Use none until it is known why.")
    print(f"\n{took_s:.0f} s; {os.path.relpath(OUT, ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
