"""What a logged metric costs: the child, the parent's upload and the server, beside MLflow's log_metric."""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench._rows import Row, bar, interval, kept
from bench._server import serving
from overnight.run import EventLogRun
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import Uploader

PACED = 140  # metrics between two shipments: 35 optimizer steps a second, two metrics each, shipped every 2 s


def server_s(server: psutil.Process) -> float:
    used = server.cpu_times()
    return float(used.user + used.system)


def spooled(place: Path, tracker: Tracker, server: psutil.Process, metrics: int, between: int) -> Row:
    """CPU-milliseconds per metric, `between` of them to an upload, two to a line; what MLflow has then."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    uploader = Uploader(tracker, place, Record(uri=tracker.uri, experiment="bench", label="spooled"))
    uploader.upload()
    run, child, parent, before = EventLogRun(place), 0.0, 0.0, server_s(server)
    for start in range(0, metrics // 2, between // 2):
        began = time.process_time()
        for step in range(start, start + between // 2):
            run.metrics({"train/loss": 1 / (1 + step), "train/lr": 0.1 - 1e-7 * step}, step)
        wrote = time.process_time()
        uploader.upload()
        child, parent = child + wrote - began, parent + time.process_time() - wrote
    took = server_s(server) - before
    found = sum(
        len(tracker.client.get_metric_history(uploader.run_id, name)) for name in ("train/loss", "train/lr")
    )
    return {"child": child, "parent": parent, "server": took, "sent": metrics, "found": found}


def synchronous(tracker: Tracker, server: psutil.Process | None, metrics: int) -> Row:
    """The same by log_metric."""
    run_id, before = tracker.open("synchronous", {}), server_s(server) if server else 0.0
    began = time.process_time()
    for step in range(metrics // 2):
        tracker.client.log_metric(run_id, "train/loss", 1 / (1 + step), step=step)
        tracker.client.log_metric(run_id, "train/lr", 0.1 - 1e-7 * step, step=step)
    client = time.process_time() - began
    return {"client": client, "server": server_s(server) - before if server else 0.0, "sent": metrics}


def logged(options: argparse.Namespace) -> bool:
    """CPU of one logged metric, interleaved with MLflow's log_metric by the same server, and on sqlite."""
    place = Path(tempfile.mkdtemp(prefix="overnight-bench-"))
    os.environ["OVERNIGHT_ROOT"] = str(place)
    with serving(place) as (uri, server):
        tracker, alone = Tracker(uri, "bench"), Tracker(f"sqlite:///{place}/alone.db", "bench")
        arms: dict[str, Callable[[], Row]] = {
            "paced": lambda: spooled(place / "paced", tracker, server, 15 * PACED, PACED),
            "full": lambda: spooled(place / "full", tracker, server, 3000, 1000),
            "server": lambda: synchronous(tracker, server, 100),
            "alone": lambda: synchronous(alone, None, 100),
        }
        for arm in arms.values():
            arm()  # imports, tables, connections
        rows = kept(
            "training-logged",
            range(options.pairs),
            options.fresh,
            lambda n: {a: arms[a]() for a in sorted(arms, reverse=bool(n % 2))},
        )
    return judged_costs(rows)


def judged_costs(rows: list[Row]) -> bool:
    """The table of the costs; the bar is for the same server on sqlite: its CPU counts on both sides."""

    def each(arm: str, *parts: str) -> list[float]:
        return [
            1e3
            * sum(row[arm][part] for part in parts or row[arm].keys() - {"sent", "found"})
            / row[arm]["sent"]
            for row in rows
        ]

    for arm in rows[0]:
        parts = ", ".join(
            f"{part} {statistics.median(each(arm, part)):.4f}"
            for part in rows[0][arm]
            if part not in ("sent", "found")
        )
        print(f"| CPU-ms per metric, {arm} | {statistics.median(each(arm)):.4f} ({parts}) | | |")
    good = bar(
        "points read back",
        "all",
        "all",
        all(row[arm]["found"] == row[arm]["sent"] for row in rows for arm in ("paced", "full")),
    )
    for peer, ours in (("server", "paced"), ("server", "full")):
        ratio, low, high = interval(each(peer), each(ours))
        good &= bar(
            f"log_metric by the {peer}, over ours {ours}",
            f"{ratio:.1f} [{low:.1f}, {high:.1f}]",
            ">= 40",
            ratio >= 40,
        )
    for ours in ("paced", "full"):
        for parts, what in (
            ((), "the server's CPU in ours alone"),
            (("child", "parent"), "no server in either"),
        ):
            ratio, low, high = interval(each("alone"), each(ours, *parts))
            print(
                f"| log_metric on sqlite without a server, over ours {ours}, {what} "
                f"| {ratio:.1f} [{low:.1f}, {high:.1f}] | | |"
            )
    return good
