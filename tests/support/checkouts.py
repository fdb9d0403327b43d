"""Checkouts of a test's own, with services on ports that were free."""

import json
import os
import random
import shutil
import socket
import sqlite3
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from overnight import paths, services
from overnight.services import definitions

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = (
    "PREFECT_API_URL",
    "PREFECT_HOME",
    "PREFECT_PROFILE",
    "MLFLOW_TRACKING_URI",
    "OVERNIGHT_PREFECT_PORT",
    "OVERNIGHT_MLFLOW_PORT",
)
Found = TypeVar("Found")


def free_port() -> int:
    """Below the range that outgoing connections take: a server that is started again finds it free."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def make_checkout(folder: Path) -> Path:
    """What services need of a checkout: the deployments, and where Prefect is."""
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    toml = (REPOSITORY / "prefect.toml").read_text()
    assert ":4207/" in toml
    (folder / "prefect.toml").write_text(toml.replace(":4207/", f":{free_port()}/"))
    (folder / "configs").mkdir()
    (folder / "configs" / "nightly.yaml").write_text("flow: nightly\n")
    (folder / "configs" / "vision.yaml").write_text("flow: vision\n")
    return folder


@contextmanager
def living_in(root: Path) -> Iterator[Path]:
    """Inside, this process and those it starts belong to that checkout; its services are gone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*OURS, "OVERNIGHT_DATA"):
            patch.delenv(name, raising=False)
        patch.setenv("OVERNIGHT_ROOT", str(root))
        patch.setenv("OVERNIGHT_MLFLOW_PORT", str(free_port()))
        yield root
        services.down(force=True)


def until(condition: Callable[[], Found], what: str = "the state", seconds: float = 300) -> Found:
    """Waits for a state; the seconds are a ceiling for slow machines."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


def answered(call: Callable[[], Any]) -> Any:
    """What a request returns; repeated while the server's database is busy (503) or the machine is slow."""
    answers = list[Any]()

    def has_answered() -> bool:
        try:
            answers.append(call())
        except TimeoutError:
            return False
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return False
        return True

    until(has_answered, "an answer")
    return answers[0]


def processes(root: Path) -> list[psutil.Process]:
    """Every living process that belongs to a checkout, but this one."""
    found = []
    for process in psutil.process_iter():
        try:
            belongs = (
                process.environ().get("OVERNIGHT_ROOT") == str(root)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            continue
        if belongs and process.pid != os.getpid():
            found.append(process)
    return found


def prefect(path: str, body: object, method: str = "POST") -> Any:
    """Prefect's answer to a request with a body."""
    return answered(lambda: definitions.ask_prefect(services.settings(), path, body, method))


def prefect_get(path: str) -> Any:
    """Prefect's answer to a request without one."""
    return answered(lambda: definitions.get(f"{services.settings().prefect}{path}"))


def backdate(runs: Sequence[dict[str, Any]], days: Sequence[int]) -> None:
    """The nights of the last days, as the database has them when the machine was off."""
    database = paths.services() / "prefect" / "prefect.db"
    dates = [datetime.now(UTC) - timedelta(days=day, hours=1) for day in days]
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for run, when in zip(runs, dates, strict=True):
            (details,) = connection.execute(
                "SELECT state_details FROM flow_run_state WHERE id = ?", [run["state_id"]]
            ).fetchone()
            stored = json.dumps({**json.loads(details), "scheduled_time": when.isoformat()})
            connection.execute(
                "UPDATE flow_run_state SET state_details = ? WHERE id = ?", [stored, run["state_id"]]
            )
            text = when.strftime("%Y-%m-%d %H:%M:%S.%f")
            connection.execute(
                "UPDATE flow_run SET expected_start_time = ?, next_scheduled_start_time = ?,"
                " idempotency_key = ? WHERE id = ?",  # else the scheduler takes it for the night to come
                [text, text, f"past {run['id']}", run["id"]],
            )
