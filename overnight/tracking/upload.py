"""`python -m overnight.tracking.upload`: tells MLflow what killed runs have left in their spools. Started by the supervisor, in a process of its own.

Exit code 0 when nothing is left to tell, 1 when a server was away: then it is started again later.
"""

import sys
from pathlib import Path

from overnight import locks
from overnight.tracking import backlog
from overnight.tracking.client import Tracker, mlflow_error
from overnight.tracking.record import Record
from overnight.tracking.uploader import Away, Shipper

PATIENCE_S = 10.0  # the next try comes soon enough


def main() -> int:
    """Ship every folder that nobody ships."""
    left = [step for step in backlog.debts() if not told(step)]
    return 1 if left else 0


def told(step: Path) -> bool:
    """Whether all of a folder is told now, with the end of its run where that is known."""
    record = Record.read(step)
    if (
        record is None
    ):  # a full disk, or a machine that went down in that moment: nobody can know where it belongs
        print(f"{step.name}: has no readable record; what its spool holds stays there", flush=True)
        backlog.settle(step)
        return True
    try:
        shipper = Shipper(Tracker(record.uri, record.experiment), step, record)
        done = shipper.conclude(PATIENCE_S)
    except (OSError, Away, locks.Held, mlflow_error()) as error:
        print(f"{step.name}: {error}", flush=True)
        return False
    print(
        f"{step.name}: {'told' if done else f'{shipper.left()} events still wait'}",
        *shipper.refused,
        sep="\n  ",
        flush=True,
    )
    shipper.release()
    return done


if __name__ == "__main__":
    sys.exit(main())
