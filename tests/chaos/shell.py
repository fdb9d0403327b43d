"""What real shells and disks do: a database that is removed, read-only or on a full disk, before, during and after a run.

The folder of MLflow's database is a file system of its own, which needs the right to mount: `unshare -rm make chaos NAME=shell` has it.
"""

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable

from overnight import services
from overnight.services.settings import read_state
from tests.chaos import flows_kill
from tests.chaos._house import House, wait
from tests.chaos.case import Case, Measured
from tests.chaos.flows_outage import trained

BARS = {
    "exit_code": "== 0",
    "models": "== 1",
    "lost_metrics": "== 0",
    "named_s": "<= 30",
    "tracebacks": "== 0",
}
numbers = itertools.count(5000)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


class Disk:
    """mlruns/ of a checkout as a file system of its own."""

    def __init__(self, home: House) -> None:
        self.folder = home.root / "mlruns"
        self.database = self.folder / "mlflow.db"
        self.folder.mkdir(exist_ok=True)
        self.is_protected = False
        _mount("-t", "tmpfs", "-o", "size=200m", "none", str(self.folder))

    def remove(self) -> None:
        self.database.unlink()

    def protect(self) -> None:
        """What holds it open keeps that; whatever is opened from now on is read-only."""
        _mount("--bind", str(self.folder), str(self.folder))
        _mount("-o", "remount,bind,ro", str(self.folder))
        self.is_protected = True

    def fill(self) -> None:
        with (self.folder / "filler").open("wb") as file:
            with_room = shutil.disk_usage(self.folder).free
            while with_room:
                try:
                    file.write(bytes(min(with_room, 1 << 20)))
                    file.flush()
                except OSError:
                    break
                with_room = shutil.disk_usage(self.folder).free

    def cure(self) -> None:
        if self.is_protected:
            subprocess.run(["umount", str(self.folder)], check=True)
        self.is_protected = False
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.cure()
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


def note() -> str:
    """What `overnight status` says of MLflow."""
    return next(str(r["note"]) for r in services.status() if r["service"] == "mlflow")


def named_s(words: str, before: str) -> float:
    """Seconds until `overnight status` names it."""
    began = time.monotonic()
    wait(lambda: words in note() and note() != before, f"status: {words}")
    return time.monotonic() - began


def well() -> bool:
    return any(r["service"] == "mlflow" and r["state"] == "ready" for r in read_state().get("rows", []))


HARM: dict[str, tuple[Callable[[Disk], None], str]] = {
    "removed": (Disk.remove, "removed"),
    "read-only": (Disk.protect, "read-only"),
    "full": (Disk.fill, "full"),
}


def _models(home: House, seed: int) -> int:
    """How many models the training with this seed has saved."""
    steps = (home.root / ".overnight" / "steps").glob("*train_cnn*")
    mine = [step for step in steps if f'"seed": {seed},' in (step / "spec.json").read_text()]
    return sum(any(step.rglob("*.safetensors")) for step in mine)


def play(home: House, disk: Disk, harm: str, moment: str) -> Measured:
    """One training; its database is harmed at that moment, and cured after the run."""
    do, words = HARM[harm]
    home.up()
    wait(well, "MLflow")
    seed = next(numbers)
    named = 0.0
    before = note()
    if moment == "before":
        do(disk)
        named = named_s(words, before)
    run = home.run("some" if moment == "during" else "short", f"seed={seed}")
    if moment == "during":
        flows_kill.granted(home, seed, run)
        do(disk)
        named = named_s(words, before)
    code = run.wait()
    if moment == "after":
        do(disk)
        named = named_s(words, before)
    disk.cure()
    wait(well, "MLflow after the cure")
    pending = home.root / ".overnight" / "services" / "backlog"
    wait(lambda: not list(pending.glob("*.step")), "what waits to be uploaded", 300)
    wait(lambda: all(r["status"] != "RUNNING" for r in home.mlflow_runs()), "the runs to be closed", 120)
    _gap_s, lost = trained(home, seed)
    logs = [home.root / "runs.log", *(home.root / ".overnight" / "logs").glob("supervisor.log")]
    return {
        "exit_code": code,
        "models": _models(home, seed),
        "lost_metrics": lost,
        "named_s": named,
        "tracebacks": sum(log.read_text().count("Traceback") for log in logs if log.exists()),
    }


_disk: list[Disk] = []


def _case(harm: str, moment: str) -> Case:
    def run(_seed: int) -> Measured:
        home = flows_kill.house()
        if not _disk:
            services.down(force=True)
            _disk.append(Disk(home))
        return play(home, _disk[0], harm, moment)

    return Case(f"shell: database {harm} {moment} a run", "the training ends with its model; MLflow has all after the cure",
                run, BARS)  # fmt: skip


def cases() -> list[Case]:
    return [_case(harm, moment) for harm in HARM for moment in ("before", "during", "after")]


def close() -> None:
    flows_kill.close()
    for disk in _disk:
        disk.close()
