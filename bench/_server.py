"""A real MLflow server on sqlite, as the pipeline starts it, for the time of a measurement."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from overnight.services.definitions import answers

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def serving(place: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and its process; its database is kept below `place`."""
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "overnight.services.server", "mlflow", "--port", str(port)]
    command += ["--database", str(place / "mlflow.db"), "--artifacts", str(place / "artifacts")]
    with (place / "mlflow.log").open("ab") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None:
                raise SystemExit((place / "mlflow.log").read_text()[-2000:])
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()
