"""Servers that stop, hang, are started again or find their database locked while a run trains: the training does not notice, the view heals."""

import itertools
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from overnight import services
from overnight.files import read_json
from overnight.processes import Process
from overnight.services import definitions
from tests.chaos import flows_kill
from tests.chaos._house import House, observed, wait
from tests.chaos.case import Case, Measured
from tests.chaos.flows_kill import COMPLETED, Tally, granted

OUTAGE_S = 30.0
STOP_S = 25.0
BARS = {
    "exit_code": "== 0",
    "over_mib": "== 0",
    "stuck_mib": "== 0",
    "wrong_ends": "== 0",
    "open_runs": "== 0",
    "lost_metrics": "== 0",
    "longest_gap_s": "<= 5",  # between two epochs of the training; an outage that it noticed would be six times as long
    "limit_heals_s": "<= 60",
}
Outage = Callable[[House], None]


def stopped(service: str) -> Outage:
    """It hangs: it takes connections and never answers."""

    def outage(home: House) -> None:
        process = Process.of(home.pid_of(service))
        assert process is not None
        process.signal(signal.SIGSTOP)
        time.sleep(OUTAGE_S)
        process.signal(signal.SIGCONT)

    return outage


def killed(service: str) -> Outage:
    """It dies and is started again, twice."""

    def outage(home: House) -> None:
        for _ in range(2):
            os.kill(home.pid_of(service), signal.SIGKILL)
            time.sleep(OUTAGE_S / 2)

    return outage


def locked(program: str) -> Outage:
    """Somebody else has its database for himself."""

    def outage(home: House) -> None:
        database = dict(definitions.databases(services.settings()))[program]
        with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(OUTAGE_S)
            connection.execute("ROLLBACK")

    return outage


def play(home: House, seed: int, outage: Outage) -> Measured:
    """One run that trains longer than the outage, which begins at some moment of it."""
    tally = Tally()
    run = home.run("outage", f"seed={seed}")
    granted(home, seed, run)
    time.sleep(random.Random(seed).uniform(0, 3))
    thread = threading.Thread(target=outage, args=(home,))
    thread.start()
    code = run.wait()
    thread.join()
    since = time.monotonic()
    home.up()
    wait(lambda: _limit(home) == (1, 0), "the limit to show the empty card")
    heals_s = time.monotonic() - since
    tally.closed(home, since)
    tally.ended(home, seed, COMPLETED)
    gap_s, lost = trained(home, seed)
    for line in tally.wrong + tally.open:
        print(f"outage: {line}", flush=True)
    return {
        "exit_code": code,
        "stuck_mib": home.ledger.held_mib(),
        "wrong_ends": len(tally.wrong),
        "open_runs": len(tally.open),
        "lost_metrics": lost,
        "longest_gap_s": gap_s,
        "limit_heals_s": heals_s,
    }


def _limit(home: House) -> tuple[int, int]:
    found = next((x for x in home.prefect("/v2/concurrency_limits/filter") if x["name"] == "gpu0-vram"), {})
    return int(found.get("limit", 0)), int(found.get("active_slots", -1))


def trained(home: House, seed: int) -> tuple[float, int]:
    """The longest time between two epochs, and how many of the values that the step wrote MLflow does not have."""
    (folder,) = [
        p.parent
        for p in (home.root / ".overnight" / "steps").glob("*train_cnn*/spec.json")
        if f'"seed": {seed},' in p.read_text()
    ]
    times = [event["at"] for event in _epochs(folder)]
    longest_s = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    return longest_s, values_lost(home, [folder])


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """The events of a training that tell how good an epoch has made it."""
    file = folder / "events.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []  # killed before its first event
    events = [json.loads(line) for line in lines]
    return [event for event in events if event["event"] == "metrics" and "val/accuracy" in event["values"]]


def accuracies(folder: Path) -> set[tuple[int, float]]:
    """(epoch, val/accuracy) of each epoch of a training."""
    return {(event["step"], round(event["values"]["val/accuracy"], 6)) for event in _epochs(folder)}


def values_lost(home: House, folders: Sequence[Path]) -> int:
    """How many values of these trainings MLflow does not have. What goes on in a night does so in one run, which names its last folder."""
    runs = {run["tags"].get("mlflow.overnight.folder"): run["run_id"] for run in home.mlflow_runs()}
    wanted: dict[str, set[tuple[int, float]]] = {}
    there: dict[str, set[tuple[int, float]]] = {}
    for folder in folders:
        key = str(read_json(folder / "spec.json")["key"])
        wanted.setdefault(key, set()).update(accuracies(folder))
        if str(folder) in runs:
            history = _history(home, runs[str(folder)], "val/accuracy")
            found = {(value["step"], round(value["value"], 6)) for value in history}
            there.setdefault(key, set()).update(found)
    return sum(len(values - there.get(key, set())) for key, values in wanted.items())


def _history(home: House, run_id: str, key: str) -> Iterator[dict[str, float]]:
    token = ""
    while True:
        more = f"&page_token={token}" if token else ""
        address = f"{services.settings().mlflow}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}{more}"
        said = definitions.get(address)
        yield from said.get("metrics", [])
        token = said.get("next_page_token", "")
        if not token:
            return


def _case(name: str, what: str, outage: Outage, number: int) -> Case:
    def run(seed: int) -> Measured:
        home = flows_kill.house()
        with observed(home.ledger) as seen:
            measured = play(home, 1000 * seed + 900 + number, outage)
        return {**measured, **seen}

    return Case(f"flows: {name}", what, run, BARS, limit_s=600)


def stop_while_hung(service: str, number: int) -> Case:
    """Ctrl-C while a server hangs: the step ends and gives the card back; what could not be told is told when the server is back."""

    def run(seed: int) -> Measured:
        home, tally, mark = flows_kill.house(), Tally(), 1000 * seed + 950 + number
        run = home.run("long", f"seed={mark}")
        granted(home, mark, run)
        process = Process.of(home.pid_of(service))
        assert process is not None
        process.signal(signal.SIGSTOP)
        since = time.monotonic()
        run.send_signal(signal.SIGINT)
        wait(lambda: not home.holders(), "the card")
        free_s = time.monotonic() - since
        ended = (
            wait(lambda: run.poll() is not None or time.monotonic() - since > STOP_S, "the run to end")
            and run.poll() is not None
        )
        stop_s = time.monotonic() - since
        process.signal(signal.SIGCONT)
        code = run.wait()
        home.up()
        back = time.monotonic()
        tally.closed(home, back)
        tally.ended(home, mark, ("CANCELLED", "KILLED"))
        for line in tally.wrong + tally.open:
            print(f"stop while {service} hangs: {line}", flush=True)
        measured = {
            "free_s": free_s,
            "stop_s": stop_s,
            "ended_while_hung": int(ended),
            "exit_code": code,
            "close_s": tally.close_s,
        }
        return {
            **measured,
            "wrong_ends": len(tally.wrong),
            "open_runs": len(tally.open),
            "stuck_mib": home.ledger.held_mib(),
        }

    bars = {
        "free_s": "<= 25",
        "exit_code": "== 1",
        "wrong_ends": "== 0",
        "open_runs": "== 0",
        "stuck_mib": "== 0",
        "close_s": "<= 60",
    }
    if service == "mlflow":  # Prefect's own client waits for its server before it lets a flow end
        bars["stop_s"] = f"<= {STOP_S:.0f}"
        bars["ended_while_hung"] = "== 1"
    return Case(
        f"flows: stop while {service} hangs",
        "Ctrl-C: the step ends, the card is free",
        run,
        bars,
        limit_s=600,
    )


def close() -> None:
    flows_kill.close()


def cases() -> list[Case]:
    kinds = [
        ("prefect hangs", f"its server is stopped for {OUTAGE_S:.0f} s (SIGSTOP)", stopped("prefect")),
        ("prefect killed", f"its server is killed twice within {OUTAGE_S:.0f} s", killed("prefect")),
        ("prefect locked", f"its database is locked for {OUTAGE_S:.0f} s", locked("prefect")),
        ("mlflow hangs", f"its server is stopped for {OUTAGE_S:.0f} s (SIGSTOP)", stopped("mlflow")),
        ("mlflow killed", f"its server is killed twice within {OUTAGE_S:.0f} s", killed("mlflow")),
        ("mlflow locked", f"its database is locked for {OUTAGE_S:.0f} s", locked("mlflow")),
    ]
    outages = [_case(name, what, outage, number) for number, (name, what, outage) in enumerate(kinds)]
    return [
        *outages,
        *(stop_while_hung(service, number) for number, service in enumerate(("mlflow", "prefect"))),
    ]
