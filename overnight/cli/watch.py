"""`overnight watch`: the table of a run that somebody else started, as its own terminal shows it."""

import time
from pathlib import Path

from overnight.errors import BadInput
from overnight.files import read_json
from overnight.orchestration.terminal import ROWS, Display
from overnight.paths import steps
from overnight.processes import Identity
from overnight.tracking.backlog import Record

POLL_S = 0.5
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


def _find(wanted: str) -> Path:
    found = dict[Path, set[str]]()
    for folder in sorted(steps().glob("*"), key=lambda f: f.stat().st_mtime, reverse=True):
        record = Record.read(folder)
        if record and not record.parent and (folder / "resolved.json").exists():
            tags = record.tags
            names = (record.experiment, tags.get("prefect.name", ""), tags.get("prefect.flow_run_id", ""))
            found[folder] = {*names} - {""}
    matching = [folder for folder, names in found.items() if not wanted or wanted in names]
    if not matching:
        known = sorted({name for names in list(found.values())[:5] for name in names})
        raise BadInput(
            f"no run is called {wanted!r}; there are {', '.join(known)}" if known else "there is no run"
        )
    alive = [folder for folder in matching if _read(folder)["state"] == "running"]
    return (alive or matching)[0]
