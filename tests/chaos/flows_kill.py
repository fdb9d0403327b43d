"""kill -9 of everything that takes part in real flows on the virtual card: no double grant, nothing stuck, nothing left open."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from overnight.files import read_json
from tests.chaos._house import OPEN, House, observed, wait
from tests.chaos.case import Case, Measured

ROUNDS = 4
CLOSE_S = 60.0  # from the kill, or from the start of services where none were left
BARS = {
    "kills": f">= {ROUNDS}",
    "over_mib": "== 0",
    "stuck_mib": "== 0",
    "open_runs": "== 0",
    "wrong_ends": "== 0",
    "free_s": "<= 2",
    "close_s": f"<= {CLOSE_S:.0f}",
}
CRASHED, FAILED, COMPLETED = ("CRASHED", "KILLED"), ("FAILED", "FAILED"), ("COMPLETED", "FINISHED")
_house: House | None = None


def house() -> House:
    """One set of services for all cases; what a case has killed, it starts again."""
    global _house  # noqa: PLW0603 - made when the first case needs it, closed after the last
    if _house is None:
        _house = House()
        _house.up()
    return _house


def close() -> None:
    global _house  # noqa: PLW0603
    if _house is not None:
        _house.close()
    _house = None


@dataclass
class Tally:
    """What came of the kills of one case."""

    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    free_s: float = 0.0
    close_s: float = 0.0

    def freed(self, home: House, pids: set[int], since: float) -> None:
        """Wait until the dead hold nothing."""
        wait(lambda: not pids & {r.pid for r in home.holders()}, "what the dead held")
        self.free_s = max(self.free_s, time.monotonic() - since)

    def closed(self, home: House, since: float) -> None:
        """Wait until nothing dead is said to run, no longer than the bar and a bit."""
        while (left := home.open_runs()) and time.monotonic() - since < CLOSE_S + 15:
            time.sleep(1)
        self.open += left
        self.close_s = max(self.close_s, time.monotonic() - since)

    def ended(self, home: House, seed: int, expected: tuple[str, str]) -> None:
        """Compare how a run ended, in Prefect and in MLflow, with how it should have; it may have been killed before it was known."""
        flows = [r for r in home.flow_runs() if f"seed={seed}" in r["parameters"].get("overrides", [])]
        ids = {r["id"] for r in flows}
        runs = [
            r
            for r in home.mlflow_runs()
            if r["tags"].get("mlflow.prefect.flow_run_id") in ids and "mlflow.parentRunId" not in r["tags"]
        ]
        found = [(r["state_type"], expected[0], "Prefect") for r in flows] + [
            (r["status"], expected[1], "MLflow") for r in runs
        ]
        self.wrong += [
            f"seed={seed} is {is_} in {where}, not {should}" for is_, should, where in found if is_ != should
        ]


def kill(*pids: int) -> float:
    """SIGKILL to all at once; the moment."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def granted(home: House, seed: int, process: "subprocess.Popen[str] | None" = None) -> int:
    """Wait until the run with this seed trains; the pid of its step."""

    def found() -> int:
        if process is not None and process.poll() is not None:
            raise RuntimeError(
                f"the run ended with {process.returncode} before it was killed; see {home.root}/runs.log"
            )
        return next((r.pid for r in home.holders() if _seed_of(r.pid) == str(seed)), 0)

    pid: int = wait(found, f"the grant of seed={seed}")
    return pid


def _seed_of(step: int) -> str:
    """Of the run that a step belongs to, from its parent's words; a flow of the worker has them in its variables' run, so by its folder."""
    try:
        spec = psutil.Process(step).cmdline()[-1] + "/spec.json"
        with open(spec) as file:  # noqa: PTH123 - a path out of a command line
            return file.read().partition('"seed":')[2].partition(",")[0].strip()
    except (psutil.Error, OSError, IndexError):
        return ""


# ------------------------------------------------------------------------------------------------ one kill each


def step(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    run = home.run("long", f"seed={seed}")
    victim = granted(home, seed, run)
    neighbour = home.run("short", f"seed={seed + 1}")
    time.sleep(rng.uniform(0, 3))
    since = kill(victim)
    tally.freed(home, {victim}, since)
    _done(tally, run, 1)
    tally.closed(home, since)
    _done(tally, neighbour, 0)
    tally.ended(home, seed, FAILED)
    tally.ended(home, seed + 1, COMPLETED)


def parent(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """The process of `overnight run`: while it trains, and once (the last round) while it is only starting."""
    run = home.run("long", f"seed={seed}")
    starting = seed % (2 * ROUNDS) == 2 * (ROUNDS - 1)
    steps = set() if starting else {granted(home, seed, run)}
    time.sleep(rng.uniform(2, 7) if starting else rng.uniform(0, 3))
    neighbour = home.run("short", f"seed={seed + 1}")
    since = kill(run.pid)
    run.wait()
    tally.freed(home, steps, since)
    tally.closed(home, since)
    _done(tally, neighbour, 0)
    tally.ended(home, seed, CRASHED)
    tally.ended(home, seed + 1, COMPLETED)


def flow(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """The process that the worker has started for a run."""
    flow_run_id = home.deploy("long", f"seed={seed}")
    victim = wait(lambda: home.flow_process(flow_run_id), "the worker to start the run")
    starting = seed % (2 * ROUNDS) == 2 * (ROUNDS - 1)
    steps = set() if starting else {granted(home, seed)}
    time.sleep(rng.uniform(0, 5))
    since = kill(victim)
    tally.freed(home, steps, since)
    tally.closed(home, since)
    tally.ended(home, seed, CRASHED)


def worker(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    flow_run_id = home.deploy("long", f"seed={seed}")
    step_pid = granted(home, seed)
    time.sleep(rng.uniform(0, 3))
    since = kill(home.pid_of("worker"))
    wait(lambda: not home.flow_process(flow_run_id), "the orphan to end", CLOSE_S)
    tally.freed(home, {step_pid}, time.monotonic())
    tally.closed(home, since)
    tally.ended(home, seed, CRASHED)
    home.up()


def server(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """Prefect's: the run does not notice, and its end is told."""
    run = home.run("some", f"seed={seed}")
    granted(home, seed, run)
    time.sleep(rng.uniform(0, 3))
    kill(home.pid_of("prefect"))
    _done(tally, run, 0)
    home.up()
    tally.closed(home, time.monotonic())
    tally.ended(home, seed, COMPLETED)


def supervisor(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """Its services go with it; the run starts them again."""
    run = home.run("some", f"seed={seed}")
    granted(home, seed, run)
    time.sleep(rng.uniform(0, 3))
    kill(home.supervisor())
    _done(tally, run, 0)
    home.up()
    tally.closed(home, time.monotonic())
    tally.ended(home, seed, COMPLETED)


def everything(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """A power cut for one checkout: one run holds, one of the worker waits or starts."""
    run = home.run("long", f"seed={seed}")
    step_pid = granted(home, seed, run)
    flow_run_id = home.deploy("long", f"seed={seed + 1}")
    wait(lambda: home.flow_process(flow_run_id), "the worker to start the run")
    time.sleep(rng.uniform(0, 8))
    pids = [p.pid for p in home.processes()]
    since = kill(*pids)
    tally.freed(home, {step_pid, *pids}, since)
    run.wait()
    home.up()
    tally.closed(home, time.monotonic())
    tally.ended(home, seed, CRASHED)
    tally.ended(home, seed + 1, CRASHED)


def night(home: House, tally: Tally, rng: random.Random, seed: int) -> None:
    """A night of the worker goes on by itself: its process, the worker, or all is killed, `overnight up` follows."""
    first = home.deploy("night", f"seed={seed}", flow="nightly")
    granted(home, seed)
    wait(lambda: _checkpoints(home), "a checkpoint")
    time.sleep(rng.uniform(0, 2))
    victims = (
        lambda: [home.flow_process(first)],
        lambda: [home.pid_of("worker")],
        lambda: [p.pid for p in home.processes()],
    )
    kill(*victims[seed // 2 % 3]())
    wait(lambda: not home.flow_process(first), "the killed night to end", CLOSE_S)
    home.up()

    def runs() -> list[dict[str, Any]]:
        return [r for r in home.flow_runs() if f"seed={seed}" in r["parameters"].get("overrides", [])]

    wait(lambda: len(runs()) == 2, "the night to start again")
    wait(lambda: all(r["state_type"] not in OPEN for r in runs()), "its end", 600)
    tally.closed(home, time.monotonic())
    found = {r["id"]: r["state_type"] for r in runs()}
    crashed = found.pop(first)
    tally.wrong += (
        [] if (crashed, [*found.values()]) == ("CRASHED", ["COMPLETED"]) else [f"{crashed}, {found}"]
    )
    logs = list((home.root / ".overnight" / "steps").glob("*one-train_cnn*/events.jsonl"))
    resumed = [log for log in logs if "goes on after optimizer step" in log.read_text() and _is_of(log, seed)]
    tally.wrong += [] if resumed else [f"seed={seed}: no step went on from its checkpoint"]


def _checkpoints(home: House) -> list[Path]:
    return list((home.root / ".overnight" / "checkpoints").glob("*/*/*.json"))


def _is_of(log: Path, seed: int) -> bool:
    return bool(read_json(log.with_name("spec.json")).get("seed") == seed)


def _done(tally: Tally, run: "subprocess.Popen[str]", expected: int) -> None:
    code = run.wait()
    tally.wrong += [f"exit code {code}, not {expected}"] if code != expected else []


def _case(
    name: str, what: str, once: Callable[[House, Tally, random.Random, int], None], number: int
) -> Case:
    def run(seed: int) -> Measured:
        home, rng, tally = house(), random.Random(f"{name} {seed}"), Tally()
        with observed(home.ledger) as seen:
            for i in range(ROUNDS):
                once(home, tally, rng, 1000 * seed + 100 * number + 2 * i)
                tally.kills += 1
            home.quiet()
            wait(lambda: not home.processes("overnight.orchestration.child"), "the steps to end")
            stuck = home.ledger.held_mib()
        for line in tally.wrong + tally.open:
            print(f"{name}: {line}", flush=True)
        return {
            "kills": tally.kills,
            "stuck_mib": stuck,
            "open_runs": len(tally.open),
            "wrong_ends": len(tally.wrong),
            "free_s": tally.free_s,
            "close_s": tally.close_s,
            **seen,
        }

    return Case(f"flows: kill -9 {name}", what, run, BARS, limit_s=1800)


def cases() -> list[Case]:
    kinds = [
        ("step", "its run says so, the neighbour in line goes on", step),
        ("parent", "the run's own process: its step goes with it", parent),
        ("flow", "the process that the worker has started", flow),
        ("worker", "its orphan ends at a checkpoint", worker),
        ("server", "Prefect's: training goes on", server),
        ("supervisor", "all services go with it and come back", supervisor),
        ("everything", "at once, then `overnight up`", everything),
        ("night", "it is started again, and goes on from its checkpoint", night),
    ]
    return [_case(name, what, once, number) for number, (name, what, once) in enumerate(kinds, 1)]
