"""What watching the card costs: CPU time of the monitor's thread while a step holds a lease, beside a thread
that only wakes as often.

    python bench/monitor.py [SECONDS]

The hardest case: the step's use changes at every look, two neighbours speak, another program is there. Prints
a table and a line of JSON; exits 1 when the monitor takes 0.5 % of a core or more.
"""

import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

from overnight.gpu.card import Card, find
from overnight.gpu.lease import lease
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.monitor import SAMPLE_S, watch
from overnight.run import EventLogRun

BAR_PERCENT = 0.5


class Restless:
    """A process whose use never stays."""

    overhead_mib = 0
    looks = 0

    def use_mib(self) -> float:
        self.looks += 1
        return 500.0 + 5 * (self.looks % 50)

    def peak_mib(self) -> float:
        return 800.0 + self.looks


def watched(card: Card, seconds: float) -> tuple[float, int]:
    """CPU seconds of the monitor, and how many looks it took."""
    own = Restless()
    neighbours = Ledger(card.folder, card.budget_mib)
    with (
        tempfile.TemporaryDirectory() as folder,
        lease(1024, card, {"step": "bench"}) as held,
        neighbours.acquire(512) as one,
        neighbours.acquire(512),
    ):
        one.update(use_mib=100, peak_mib=300)
        if card.virtual:
            (card.folder / "other_processes").write_text("300 game\n")
        with watch(EventLogRun(Path(folder)), card, held, own) as monitor:
            time.sleep(seconds)
    return monitor.cpu_s, own.looks


def idle(seconds: float) -> float:
    """CPU seconds of a thread that wakes as often and does nothing."""
    done, took = threading.Event(), list[float]()

    def body() -> None:
        while not done.wait(SAMPLE_S):
            pass
        took.append(time.thread_time())

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(seconds)
    done.set()
    thread.join()
    return took[0]


def main(seconds: float) -> int:
    """Measure, print, compare with the bar."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OVERNIGHT_CARD_DIR"] = folder
        card = find()
        cpu_s, looks = watched(card, seconds)
        waking_s = idle(seconds)
    percent = 100 * cpu_s / seconds
    print(
        f"{card}\nmonitor {percent:.3f} % of a core ({1e6 * cpu_s / looks:.0f} us per look), "
        f"waking alone {100 * waking_s / seconds:.3f} %"
    )
    found = {
        "card": card.name,
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "seconds": seconds,
    }
    print(
        json.dumps(
            {
                **found,
                "looks": looks,
                "cpu_s": cpu_s,
                "waking_cpu_s": waking_s,
                "percent": percent,
                "bar_percent": BAR_PERCENT,
            }
        )
    )
    return int(percent >= BAR_PERCENT)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
