"""`overnight watch`: the table of a run that somebody else started, as its own terminal shows it."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from overnight.errors import BadInput, did_you_mean
from overnight.files import read_json
from overnight.night.record import nights
from overnight.orchestration.terminal import ROWS, Display
from overnight.paths import steps
from overnight.processes import Identity
from overnight.tracking.backlog import Record

POLL_S = 0.5
NEWEST = 20  # runs that are looked at
GONE = "its process is gone: killed, or the machine went down"
CODES = {"done": 0, "does not fit": 3}


def watch(wanted: str = "") -> int:
    """Show the newest run, or the newest of this name, until its end; the exit code of `overnight run`.

    wanted: an experiment, or the name or id of a run in Prefect. Raises BadInput when there is none.
    """
    folder = _find(wanted)
    with Display() as display:
        saved = _read(folder)
        while True:
            display.show(saved)
            if saved["state"] != "running":
                break
            time.sleep(POLL_S)
            saved = _read(folder)
    display.console.print(display.summary())
    display.say(f"\n{saved['message']}\n{saved['link']}")
    return CODES.get(saved["state"], 1)


def _read(folder: Path) -> dict[str, str]:
    record = Record.read(folder)
    identity = Identity.from_tags(record.tags if record else {})
    is_alive = identity is not None and identity.alive()
    saved = {"state": "running", "message": "", "link": "", **read_json(folder / ROWS)}
    return saved if is_alive or saved["state"] != "running" else {**saved, "state": "failed", "message": GONE}


def is_begun(pid: int) -> bool:
    """Whether this process has begun a run."""
    identities = (Identity.from_tags(record.tags) for _folder, record in _runs())
    return any(one is not None and one.pid == pid and one.alive() for one in identities)


def rows_of(pid: int) -> list[dict[str, Any]]:
    """The steps of the newest run that this process has begun, as they were last shown."""
    for folder, record in _runs():
        identity = Identity.from_tags(record.tags)
        if identity is not None and identity.pid == pid and identity.alive():
            return list(read_json(folder / ROWS).get("rows", []))
    return []


def running() -> list[dict[str, Any]]:
    """A row of `overnight status` for each run that runs: since when, and when it is expected to end."""
    rows = list[dict[str, Any]]()
    for name, night in islice(nights(), NEWEST):
        if not night.alive:
            continue
        expected = read_json(steps() / name / ROWS).get("expected", "")
        since = time.strftime("%H:%M:%S", time.localtime(night.started))
        row = {
            "service": "run",
            "state": "running",
            "address": night.link,
            "pid": night.process["overnight.pid"],
        }
        rows.append({**row, "since": since, "note": ": ".join(filter(None, (night.experiment, expected)))})
    return rows


def _runs() -> Iterator[tuple[Path, Record]]:
    """The runs of experiments, the newest first."""
    for folder in sorted(steps().glob("*"), key=lambda f: f.stat().st_mtime, reverse=True):
        record = Record.read(folder)
        if record and not record.parent and (folder / "resolved.json").exists():
            yield folder, record


def _find(wanted: str) -> Path:
    keys = ("prefect.name", "prefect.flow_run_id")
    found = {folder: {r.experiment, *(r.tags.get(k, "") for k in keys)} - {""} for folder, r in _runs()}
    matching = [folder for folder, names in found.items() if not wanted or wanted in names]
    if not matching:
        known = list(dict.fromkeys(record.experiment for _folder, record in _runs()))
        hint = did_you_mean(wanted, known) or f"; the newest are {', '.join(known[:5])}"
        raise BadInput(f"no run is called {wanted!r}{hint}" if known else "there is no run yet")
    return next((folder for folder in matching if _read(folder)["state"] == "running"), matching[0])
