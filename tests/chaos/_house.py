"""A checkout of its own with its services, real flows on the virtual card, and what is asked of them from outside."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from overnight import locks, services
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.processes import Identity
from overnight.services import definitions
from overnight.services.flow_processes import flow_run_of
from overnight.services.settings import read_state, supervisor_lock
from tests.chaos.case import ROOT
from tests.support.checkouts import OURS, free_port, make_checkout
from tests.test_end_to_end import ENTRY, stripes

BUDGET_MIB = 100  # a step of these flows asks for 64: a second one has to wait
PATIENCE_S = 180.0
OPEN = ("RUNNING", "PENDING", "CANCELLING")
TRAINING = "flow: vision\ndata: made\ncnn: {{epochs: {epochs}, batch: 16, channels: 8, blocks: 1}}\n"

NIGHT = """flow: nightly
experiments:
  - {flow: vision, name: one, data: made, cnn: {epochs: 500, batch: 16, channels: 8, blocks: 1, checkpoint_s: 1}}
  - {flow: vision, name: two, data: made, cnn: {epochs: 2, batch: 16, channels: 8, blocks: 1}}
"""


class House:
    """The checkout; its variables are those of this process, too, so that `overnight.services` speaks of it."""

    def __init__(self) -> None:
        self.root = make_checkout(Path(tempfile.mkdtemp(prefix="overnight-chaos-")))
        (self.root / "datasets").mkdir()
        (self.root / "datasets" / "made.yaml").write_text(ENTRY)
        stripes(self.root / "datasets" / "made", 40)
        for name in (*OURS, "OVERNIGHT_DATA", "OVERNIGHT_CARD_DIR", "OVERNIGHT_CPU"):
            os.environ.pop(name, None)
        ours = {"ROOT": str(self.root), "MLFLOW_PORT": str(free_port()), "VIRTUAL_MIB": str(BUDGET_MIB)}
        os.environ |= {f"OVERNIGHT_{name}": value for name, value in ours.items()} | {"OMP_NUM_THREADS": "1"}
        for name, epochs in (("short", 2), ("some", 600), ("outage", 1200), ("long", 100_000)):
            (self.root / "configs" / f"{name}.yaml").write_text(TRAINING.format(epochs=epochs))
        (self.root / "configs" / "night.yaml").write_text(NIGHT)
        self.ledger = Ledger(self.root / ".overnight" / "cards" / "virtual", BUDGET_MIB)
        self.started: list[subprocess.Popen[str]] = []

    def up(self) -> None:
        """Services that are well, however many of them were killed."""
        services.up()

    def run(self, config: str, *overrides: str) -> "subprocess.Popen[str]":
        """`overnight run` from a shell of its own."""
        log = (self.root / "runs.log").open("a")
        command = [sys.executable, "-m", "overnight.cli.main", "run", config, *overrides]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True)
        log.close()
        self.started.append(process)
        return process

    def deploy(self, config: str, *overrides: str, flow: str = "vision") -> str:
        """The same by the worker; the id of the flow run."""
        (found,) = self.prefect("/deployments/filter", {"deployments": {"name": {"any_": [flow]}}})
        parameters = {"config": f"configs/{config}.yaml", "overrides": list(overrides)}
        made: str = self.prefect(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})[
            "id"
        ]
        return made

    # ---------------------------------------------------------------------------------------- what is the case

    def holders(self) -> list[Request]:
        return [r for r in self.ledger.requests() if r.holds]

    def pid_of(self, service: str) -> int:
        return next(int(r["pid"]) for r in read_state()["rows"] if r["service"] == service)

    def supervisor(self) -> int:
        holder = locks.holder(supervisor_lock())
        return holder.pid if holder else 0

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of this checkout, but this one; with every one of *words* in their command."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = (
                    process.environ().get("OVERNIGHT_ROOT") == str(self.root)
                    and process.status() != psutil.STATUS_ZOMBIE
                )
                if (
                    ours
                    and process.pid != os.getpid()
                    and "_observer" not in "".join(process.cmdline())
                    and all(w in " ".join(process.cmdline()) for w in words)
                ):
                    found.append(process)
        return found

    def flow_process(self, flow_run_id: str) -> int:
        """Of a run that the worker has started."""
        return next((p.pid for p in self.processes("prefect.engine") if flow_run_of(p.pid) == flow_run_id), 0)

    def prefect(self, path: str, body: Any = None) -> Any:
        return again(lambda: definitions.ask_prefect(services.settings(), path, body or {}))

    def mlflow(self, path: str, body: Any) -> Any:
        return again(lambda: definitions.ask(f"{services.settings().mlflow}/api/2.0/mlflow{path}", body))

    def flow_runs(self) -> list[dict[str, Any]]:
        """Those that have begun; the others are nights to come."""
        return [
            r
            for r in self.prefect("/flow_runs/filter", {"sort": "START_TIME_DESC"})
            if r["state_type"] != "SCHEDULED"
        ]

    def mlflow_runs(self) -> list[dict[str, Any]]:
        experiments = [
            e["experiment_id"]
            for e in self.mlflow("/experiments/search", {"max_results": 100}).get("experiments", [])
        ]
        found = self.mlflow("/runs/search", {"experiment_ids": experiments, "max_results": 1000}).get(
            "runs", []
        )
        return [
            {**r["info"], "tags": {t["key"]: t["value"] for t in r["data"].get("tags", [])}} for r in found
        ]

    def open_runs(self) -> list[str]:
        """What is said to run and has no process."""
        wanted = {"flow_runs": {"state": {"type": {"any_": OPEN}}}}
        dead = [
            r
            for r in self.prefect("/flow_runs/filter", wanted)
            if not alive(r.get("labels") or {}) and not self.flow_process(r["id"])
        ]
        tasks = self.prefect("/task_runs/filter", {"task_runs": {"state": {"type": {"any_": OPEN}}}})
        ended = {r["id"] for r in self.flow_runs() if r["state_type"] not in OPEN} | {r["id"] for r in dead}
        logged = [r for r in self.mlflow_runs() if r["status"] == "RUNNING" and not alive(r["tags"])]
        return [
            *(f"flow run {r['name']} is {r['state_type']}" for r in dead),
            *(f"task run {t['name']} is {t['state_type']}" for t in tasks if t["flow_run_id"] in ended),
            *(f"MLflow run {r['run_name']} is {r['status']}" for r in logged),
        ]

    # ---------------------------------------------------------------------------------------- the end

    def quiet(self) -> None:
        """End what the last kill has left running, politely."""
        for process in self.started:
            process.send_signal(signal.SIGTERM) if process.poll() is None else None
        for process in self.processes("prefect.engine"):
            with suppress(psutil.Error):
                process.terminate()
        wait(
            lambda: not self.processes("prefect.engine") and all(p.poll() is not None for p in self.started),
            "the runs to end",
        )
        self.started.clear()

    def close(self) -> None:
        with suppress(Exception):
            self.quiet()
        services.down(force=True)
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.root, ignore_errors=True)


def alive(said: dict[str, Any]) -> bool:
    identity = Identity.from_tags(said)
    return identity is not None and identity.alive()


def again(ask: Callable[[], Any]) -> Any:
    """Ask a server that may be starting."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except (OSError, ValueError, KeyError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def wait(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """What the condition says when it is true at last; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)
    return found


@contextmanager
def observed(ledger: Ledger) -> Iterator[dict[str, float]]:
    """A process that only looks, and says the most that was held at any moment."""
    said: dict[str, float] = {}
    command = [sys.executable, "tests/chaos/_observer.py", str(ledger.folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield said
    finally:
        looks, most = map(int, process.communicate("\n")[0].split())
        said |= {"looks": looks, "most_mib": most, "over_mib": max(0, most - ledger.budget_mib)}
