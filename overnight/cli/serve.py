"""`overnight serve NAME`: a model behind MLflow's scoring server, for this machine alone."""

import argparse
import base64
import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.cli.command import Command
from overnight.cli.find_model import NAME
from overnight.errors import BadInput, ServiceError

if TYPE_CHECKING:
    from overnight.predictor import Interface

PORT = 5107
GRACE_S = 10.0
POLL_S = 0.2
LINES = 15  # of its log, when it does not start


def _serve(arguments: argparse.Namespace) -> int:
    from overnight import predictor
    from overnight.cli.find_model import find
    from overnight.processes import port_is_free, port_listener

    if not 1024 <= arguments.port <= 65535:
        raise BadInput(f"--port {arguments.port}: expected a port between 1024 and 65535")
    if not port_is_free(arguments.port):
        taken = port_listener(arguments.port)
        raise ServiceError(f"--port {arguments.port} is taken by {taken}; stop that, or choose another port")
    artifact = find(arguments.name)
    interface = predictor.interface(artifact)
    folder = _place(artifact)
    return _run(_packed(artifact, folder), folder, interface, arguments.port)


def _place(artifact: Path) -> Path:
    """Of this model's served form and example."""
    from overnight.files import tree_sha256
    from overnight.paths import state

    return state() / "served" / tree_sha256(artifact)[:16]


def _packed(artifact: Path, folder: Path) -> Path:
    """The model in MLflow's format: as it was logged, else made here."""
    from overnight.tracking.models import pack

    logged = artifact.parents[1]
    if (logged / "MLmodel").is_file():
        return logged
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pack(artifact, folder / "mlflow_model")
    return folder / "mlflow_model"


def _run(packed: Path, folder: Path, interface: "Interface", port: int) -> int:
    """Until Ctrl-C, or SIGTERM."""
    from overnight.paths import log_file, shown
    from overnight.processes import Process, start_python, stop
    from overnight.services.definitions import answers

    log = log_file(f"serve-{port}")
    log.unlink(missing_ok=True)
    words = ["-m", "mlflow", "models", "serve", "-m", str(packed), "--env-manager", "local"]
    process = start_python([*words, "--host", "127.0.0.1", "--port", str(port)], log, _environment())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        while process.poll() is None and not answers(f"http://127.0.0.1:{port}/ping"):
            time.sleep(POLL_S)
        if process.poll() is None:
            print(interface.about)
            print(
                f"http://127.0.0.1:{port}/invocations answers until Ctrl-C; its log is {shown(log)}. Try:\n"
            )
            print(_curl(interface, folder, port), flush=True)
        while process.poll() is None:  # a signal may reach a thread of a library: a wait would not notice
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        me = Process.of(process.pid)
        stop([*me.children(), me] if me else [], GRACE_S)
        print("the server is down")
        return 0
    print(f"the server has ended; the end of {shown(log)}:", file=sys.stderr)
    print("\n".join(log.read_text(errors="replace").splitlines()[-LINES:]), file=sys.stderr)
    return 1


def _environment() -> dict[str, str]:
    """MLflow starts uvicorn by its name."""
    from overnight.services.settings import local_environment

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return local_environment(os.environ) | {"PATH": path}


def _curl(interface: "Interface", folder: Path, port: int) -> str:
    """A line that sends the model's example."""
    rows = [_with_file(dict(row), folder) for row in interface.example]
    body = json.dumps({"inputs": rows}, ensure_ascii=False)
    address = f"http://127.0.0.1:{port}/invocations"
    return f"curl -s {address} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _with_file(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An image that is text becomes a file, whose path is easier to read."""
    text = row.get("image")
    if not isinstance(text, str) or not text.startswith("data:image/"):
        return row
    head, _, encoded = text.partition(";base64,")
    path = folder / f"example.{head.rpartition('/')[2]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(encoded))
    return {**row, "image": str(path)}


COMMAND: Command = (
    _serve,
    "answer requests on this machine with a trained model, until Ctrl-C",
    {"name": NAME, "--port": {"type": int, "default": PORT, "help": f"{PORT} when left out"}},
)
