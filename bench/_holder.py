"""One process that holds a part of the card again and again, by our ledger or by a bare limit of Prefect, and
writes down when.

`python _holder.py LOG JSON`; lines of LOG: asks, has, gave or broke, with the seconds of CLOCK_MONOTONIC,
which all processes share.
"""

import importlib
import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

MIB_PER_SLOT = 1024


def hold(asked: dict[str, Any]) -> AbstractContextManager[object]:
    """A grant of so many slots of 1 GiB, from the arm that keeps them."""
    if asked["arm"] == "ours":
        from overnight.gpu.ledger.ledger import Ledger

        return Ledger(Path(asked["folder"]), 12 * MIB_PER_SLOT).acquire(asked["slots"] * MIB_PER_SLOT)
    from prefect.concurrency.sync import concurrency

    lease = {"lease_duration": asked["lease_s"]} if "lease_s" in asked else {}
    return concurrency(asked["limit"], occupy=asked["slots"], strict=True, **lease)


def main(log: Path, asked: dict[str, Any]) -> None:
    importlib.import_module(
        "overnight.gpu.ledger.ledger" if asked["arm"] == "ours" else "prefect.concurrency.sync"
    )  # before the clock starts

    def write(word: str, more: str = "") -> None:
        with log.open("a") as file:
            file.write(f"{word} {time.monotonic():.6f} {more}\n")

    for _ in range(asked.get("rounds", 1)):
        time.sleep(max(0.0, asked.get("not_before", 0.0) - time.monotonic()))
        write("asks")
        try:
            with hold(asked):
                write("has")
                until = time.monotonic() + asked.get("hold_s", 0.0)
                while time.monotonic() < until or not Path(asked.get("until", "/")).exists():
                    time.sleep(0.05)  # short: Prefect can end a holder only between two lines of Python
                write("ends")
        except BaseException as error:
            write("broke", type(error).__name__)
            raise
        write("gave")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
