"""What real shells and disks do: a database that is removed, read-only or on a full disk, before, during and after a run.

The folder of MLflow's database is a file system of its own; who may not mount one plays the case as root of a namespace.
"""

import itertools
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from overnight import services
from overnight.gpu.ledger.ledger import Ledger
from overnight.services.settings import read_state
from tests.chaos import flows_kill
from tests.chaos._house import House, wait
from tests.chaos.case import RESULTS, ROOT, Case, Measured, finished
from tests.chaos.flows_outage import trained
from tests.test_end_to_end import ENTRY

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


def _steps(home: House, seed: int) -> list[Path]:
    """The attempts at the training with this seed, the oldest first."""
    steps = sorted((home.root / ".overnight" / "steps").glob("*train_cnn*"))
    return [step for step in steps if f'"seed": {seed},' in (step / "spec.json").read_text()]


def _models(home: House, seed: int) -> int:
    """How many models the training with this seed has saved."""
    return sum(any(step.rglob("*.safetensors")) for step in _steps(home, seed))


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


class Shell:
    """What a person types in a shell of his own, and everything that it answers."""

    def __init__(self, home: House, **variables: str) -> None:
        self.home = home
        self.env = {**os.environ, **variables}
        self.env.pop("OVERNIGHT_VIRTUAL_MIB")  # a card that counts is not what these are about
        self.output = ""

    def __call__(self, *words: str, cwd: Path = ROOT, limit_s: float = 900, **variables: str) -> int:
        command = [sys.executable, "-m", "overnight.cli.main", *words]
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        self.output += done.stdout + done.stderr
        return done.returncode

    def measured(self, **found: float) -> Measured:
        """With the tracebacks of what was typed; the whole is printed when there is one."""
        tracebacks = self.output.count("Traceback")
        if tracebacks:
            print(self.output, flush=True)
        return {**found, "tracebacks": tracebacks}

    def trains(self, **variables: str) -> Measured:
        """A clean start of the services and a short training in this shell, then `down`."""
        codes = [
            self("down", "--force"),
            self("run", "short", f"seed={next(numbers)}", **variables),
            self("down", "--force"),
        ]
        return self.measured(exit_codes=sum(codes))


def proxy(home: House) -> Measured:
    return Shell(home, ALL_PROXY="socks5://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1").trains()


def certificates(home: House) -> Measured:
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PREFECT_API_SSL_CERT_FILE",
             "MLFLOW_TRACKING_SERVER_CERT_PATH")  # fmt: skip
    return Shell(home, **dict.fromkeys(names, "/not/there")).trains()


def no_proxy(home: House) -> Measured:
    return Shell(home, no_proxy="[::1],fd00::/8", NO_PROXY="[::1]").trains()


def old_environment(home: House) -> Measured:
    """Services that failed in one shell are started by the next one, without `down`."""
    shell = Shell(home)
    shell("down", "--force")
    broken = {"PREFECT_SERVER_DATABASE_TIMEOUT": "no number"}
    first = shell("up", **broken)
    again = [shell("up"), shell("run", "short", f"seed={next(numbers)}")]
    return {**shell.measured(exit_codes=sum(again), refused=float(first == 2)), "tracebacks": 0}


def shadowed(home: House) -> Measured:
    for name in ("tasks", "flows"):
        (home.root / "shadow" / name).mkdir(parents=True, exist_ok=True)
        (home.root / "shadow" / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    return Shell(home, PYTHONPATH=str(home.root / "shadow")).trains()


def wrong_server(home: House) -> Measured:
    shell = Shell(home)
    shell("down", "--force")
    code = shell("run", "short", MLFLOW_TRACKING_URI="databricks")
    named = "MLFLOW_TRACKING_URI=databricks" in shell.output
    return shell.measured(exit_code=code, named=float(named), processes=len(home.processes()))


def up_and_down(home: House) -> Measured:
    """Six at once: none quotes the log of another start, and the end is one set of services or none."""
    shells = [Shell(home) for _ in range(6)]
    log = home.root / ".overnight" / "logs" / "supervisor.log"
    log.parent.mkdir(exist_ok=True, parents=True)
    with log.open("a") as file:
        file.write("what an earlier start said\n")
    words = [("up",) if number % 2 else ("down", "--force") for number in range(len(shells))]
    threads = [threading.Thread(target=shell, args=word) for shell, word in zip(shells, words, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quoted = sum("an earlier start" in shell.output for shell in shells)
    last = Shell(home)
    code = last("up")
    last.output += "".join(shell.output for shell in shells)
    return last.measured(exit_code=code, quoted=quoted)


def copied(home: House) -> Measured:
    """Inside a copy of the checkout, the command says whose code answers."""
    copy = home.root / "copy"
    shutil.copytree(ROOT / "overnight", copy / "overnight", dirs_exist_ok=True)
    shell = Shell(home)
    shell.env.pop("OVERNIGHT_ROOT")
    done = subprocess.run([Path(sys.executable).with_name("overnight"), "ls"], cwd=copy, env=shell.env, capture_output=True,
                          text=True, check=False)  # fmt: skip
    shell.output = done.stdout + done.stderr
    return shell.measured(exit_code=done.returncode, named=float("this is the checkout" in done.stderr))


def closed_terminal(home: House) -> Measured:
    """A training whose terminal is closed saves a checkpoint and ends by name; the same command goes on."""
    home.up()
    seed = next(numbers)
    command = [sys.executable, "-m", "overnight.cli.main", "run", "some", f"seed={seed}"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(command[0], command)
    reader = threading.Thread(target=_drain, args=(terminal,), daemon=True)
    reader.start()
    flows_kill.granted(home, seed)
    time.sleep(5)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    log = home.root / ".overnight" / "logs" / "closed-terminal.log"
    said = log.read_text() if log.exists() else ""
    shell = Shell(home)
    code = shell("run", "some", f"seed={seed}")
    shell.output += said
    (_first, second) = _steps(home, seed)[-2:]
    went_on = "goes on after optimizer step" in (second / "events.jsonl").read_text()
    return shell.measured(ended=float(os.WEXITSTATUS(status) == 1), named=float("its terminal was closed" in said),
                          exit_code=code, went_on=float(went_on))  # fmt: skip


def _drain(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def waiting(home: House) -> Measured:
    """Behind others for a place on the machine, the row says so."""
    home.up()
    slots = Ledger(
        home.root / ".overnight" / "slots", max(2, (os.cpu_count() or 2) // 2), "of the places on this host"
    )
    log = home.root / "runs.log"
    before = log.read_text().count("Traceback") if log.exists() else 0
    with slots.acquire(slots.budget_mib, {"step": "somebody else"}):
        run = home.run("short", f"seed={next(numbers)}")
        wait(lambda: "behind somebody else" in log.read_text(), "the reason in the row")
    return {"exit_code": run.wait(), "tracebacks": log.read_text().count("Traceback") - before}


def missing_data(home: House) -> Measured:
    (home.root / "datasets" / "away.yaml").write_text(ENTRY)
    shell = Shell(home)
    steps = len(list((home.root / ".overnight" / "steps").glob("*")))
    code = shell("run", "short", "data=away")
    begun = len(list((home.root / ".overnight" / "steps").glob("*"))) - steps
    return shell.measured(exit_code=code, named=float("datasets/away" in shell.output), steps_begun=begun)


def prefect_removed(home: House) -> Measured:
    """The database of Prefect is removed while a run trains: it ends with its model, and the next run is as ever."""
    home.up()
    seed = next(numbers)
    run = home.run("some", f"seed={seed}")
    flows_kill.granted(home, seed, run)
    for file in (home.root / ".overnight" / "services" / "prefect").glob("prefect.db*"):
        file.unlink()
    shown = "since its database was removed"
    wait(
        lambda: any(shown in r["note"] for r in services.status() if r["service"] == "prefect"),
        "the new database",
    )
    code = run.wait()
    shell = Shell(home)
    second = shell("run", "short", f"seed={next(numbers)}")
    shell.output += (home.root / "runs.log").read_text()
    return shell.measured(exit_code=code, models=_models(home, seed), next_exit_code=second)


def _described(home: House) -> Measured:
    """A run that finished while the disk was full is not said to be dead, then or later."""
    dead = [
        r
        for r in home.mlflow_runs()
        if r["status"] == "FINISHED" and "is gone" in r["tags"].get("mlflow.note.content", "")
    ]
    return {"wrong_words": len(dead), "tracebacks": 0}


SHELL: dict[str, tuple[Callable[[House], Measured], str, dict[str, str]]] = {
    "B1 proxy": (proxy, "a socks proxy that is not there", {"exit_codes": "== 0"}),
    "B2 certificates": (certificates, "certificate files that are not there", {"exit_codes": "== 0"}),
    "B3 no_proxy": (no_proxy, "addresses that a client cannot read", {"exit_codes": "== 0"}),
    "B4 old environment": (
        old_environment,
        "a variable that was wrong is right again",
        {"exit_codes": "== 0"},
    ),
    "B5 shadowed": (shadowed, "packages tasks and flows on PYTHONPATH", {"exit_codes": "== 0"}),
    "B6 prefect": (
        prefect_removed,
        "prefect.db removed during a run",
        {"exit_code": "== 0", "models": "== 1", "next_exit_code": "== 0"},
    ),
    "B8 wrong server": (
        wrong_server,
        "MLFLOW_TRACKING_URI=databricks",
        {"exit_code": "== 2", "named": "== 1", "processes": "== 0"},
    ),
    "B9 up and down": (up_and_down, "both at once", {"exit_code": "== 0", "quoted": "== 0"}),
    "B10 copied": (copied, "a copied checkout", {"exit_code": "== 0", "named": "== 1"}),
    "B11 closed terminal": (
        closed_terminal,
        "SIGHUP",
        {"ended": "== 1", "named": "== 1", "exit_code": "== 0", "went_on": "== 1"},
    ),
    "B12 waiting": (waiting, "no place on the machine", {"exit_code": "== 0"}),
    "B13 missing data": (
        missing_data,
        "data that nothing can fetch",
        {"exit_code": "== 2", "named": "== 1", "steps_begun": "== 0"},
    ),
    "B7 words about the dead": (
        _described,
        "after all that was done to the database",
        {"wrong_words": "== 0"},
    ),
}

_disk: list[Disk] = []


def _case(harm: str, moment: str) -> Case:
    name = f"shell: database {harm} {moment} a run"

    def run(seed: int) -> Measured:
        if os.geteuid():
            return in_namespace(name, seed)
        home = flows_kill.house()
        if not _disk:
            services.down(force=True)
            _disk.append(Disk(home))
        return play(home, _disk[0], harm, moment)

    return Case(
        name, "the training ends with its model; MLflow has all after the cure", run, BARS, limit_s=1800
    )


def in_namespace(name: str, seed: int) -> Measured:
    """The same case, played by root of a namespace of its own; KeyError when it broke off."""
    command = ["unshare", "-rm", sys.executable, "-m", "tests.chaos", name, "--seed", str(seed)]
    subprocess.run(command, cwd=ROOT, check=False)
    return finished(RESULTS)[name, seed].measured


def _shell_case(name: str) -> Case:
    do, what, bars = SHELL[name]
    return Case(
        f"shell: {name}",
        what,
        lambda _seed: do(flows_kill.house()),
        {**bars, "tracebacks": "== 0"},
        limit_s=1800,
    )


def cases() -> list[Case]:
    harmed = [_case(harm, moment) for harm in HARM for moment in ("before", "during", "after")]
    return [*harmed, *map(_shell_case, SHELL)]  # B6 are those of the database


def close() -> None:
    flows_kill.close()
    for disk in _disk:
        disk.close()
