"""Two checkouts of the project and one card: each imports its own code, both find the same ledger, one budget
holds.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.chaos._workers import BUDGET, Hold, Workers, most, start_workers
from tests.chaos.case import ROOT, Case, Measured

HOLDS = 25
SCRIPT = """
import json, sys, time
import overnight
from overnight.gpu.card import find
clock = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
card, holds = find(cpu=True), []
for mib, seconds in json.loads(sys.argv[1]):
    with overnight.lease(mib, card=card, on_wait=lambda *_: None) as held:  # 150 lines of who waits for whom tell nobody anything
        began = clock()
        time.sleep(seconds)
        holds.append([held.grant.request.ticket, began, clock(), mib])
print(json.dumps([overnight.__file__, str(card.folder), holds]))
"""


def cases() -> list[Case]:
    return [
        Case("card_checkouts", "two checkouts, one card: three scripts of each", _both,
             {"above_budget_mib": "== 0", "folders": "== 1", "checkouts": "== 2", "grants": f"== {6 * HOLDS}"}, 200),
    ]  # fmt: skip


def _both(seed: int) -> Measured:
    choose = random.Random(seed)
    with start_workers() as workers:
        places = [_checkout(workers.notes.parent / name) for name in ("one", "two")]
        scripts = [_start(place, workers, [(choose.randint(500, BUDGET), choose.random() * 0.05) for _ in range(HOLDS)])
                   for place in places for _ in range(3)]  # fmt: skip
        output = [json.loads(script.communicate()[0]) for script in scripts]
    holds = [Hold(*hold, pid=n) for n, (_, _, found) in enumerate(output) for hold in found]
    return {
        "above_budget_mib": max(0, most(holds) - BUDGET),
        "folders": len({folder for _, folder, _ in output}),
        "checkouts": len({Path(code).parent for code, _, _ in output}),
        "grants": len(holds),
        "most_mib": most(holds),
    }


def _checkout(place: Path) -> Path:
    shutil.copytree(ROOT / "overnight", place / "overnight", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def _start(place: Path, workers: Workers, amounts: list[tuple[int, float]]) -> "subprocess.Popen[str]":
    ours = {"PYTHONPATH": str(place), "OVERNIGHT_ROOT": str(place), "OVERNIGHT_CARD_DIR": str(workers.card), "OVERNIGHT_VIRTUAL_MIB": str(BUDGET)}  # fmt: skip
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(amounts)]
    return subprocess.Popen(command, env={**os.environ, **ours}, cwd=place, stdout=subprocess.PIPE, text=True)
