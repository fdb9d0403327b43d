"""A server of a model, which lives as long as the step that started it."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from overnight.errors import BadInput, OvernightError
from overnight.paths import root, shown
from overnight.processes import Process, die_with_parent, start_python, stop

KEY = "OVERNIGHT_SERVER_KEY"  # variable that gives a server its key: arguments are for all to see
READY, LOG = "server.json", "server.log"
GRACE_S, POLL_S = 5.0, 0.1
LINES = 8  # of its log, when it does not start


@dataclass(frozen=True)
class Served:
    """url: with its /v1; key: which every request must give, so that no web page of a browser can."""

    url: str
    key: str
    process: "subprocess.Popen[bytes]"


@contextmanager
def llama_cpp(
    file: Path, folder: Path, context: int, parallel: int = 1, name: str = "", start_s: float = 600.0
) -> Iterator[Served]:
    """llama.cpp's own server for a GGUF, on the CPU, in a process of its own that ends with the block.

    folder: for its log; context: tokens of each of `parallel` conversations; name: of the model in answers.
    Raises OvernightError with the end of the log when it does not start.
    """
    key, ready, log = secrets.token_hex(16), folder / READY, folder / LOG
    ready.unlink(missing_ok=True)
    values = {"file": str(file), "ready": str(ready), "context": context, "parallel": parallel, "name": name}
    arguments = ["-m", "tasks.llm.llama_server", json.dumps(values)]
    process = start_python(arguments, log, {**os.environ, KEY: key})
    try:
        until = time.monotonic() + start_s
        while not ready.is_file():
            _check_alive(process, log)
            if time.monotonic() > until:
                raise OvernightError(
                    f"the server of {file.name} was not ready in {start_s:g} s: {shown(log)}"
                )
            time.sleep(POLL_S)
        yield Served(json.loads(ready.read_text())["url"], key, process)
    finally:
        _end(process)


@contextmanager
def own_command(command: Sequence[str], folder: Path, port: int) -> Iterator[Served]:
    """A server of the user's: {port} and {key} in its arguments are replaced; it ends with the block.

    Raises BadInput when it cannot be started.
    """
    key, log = secrets.token_hex(16), folder / LOG
    words = [word.replace("{port}", str(port)).replace("{key}", key) for word in command]
    die = partial(die_with_parent, os.getpid())
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                words,
                cwd=root(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die,  # noqa: PLW1509 - the step starts it from its main thread
            )
    except OSError as error:
        raise BadInput(f"command {command[0]!r}: cannot be started: {error.strerror}") from None
    try:
        yield Served(f"http://127.0.0.1:{port}/v1", key, process)
    finally:
        _end(process)


def check_alive(served: Served, folder: Path) -> None:
    """Raises OvernightError with the end of its log when the server has ended."""
    _check_alive(served.process, folder / LOG)


def _check_alive(process: "subprocess.Popen[bytes]", log: Path) -> None:
    if process.poll() is not None:
        said = " | ".join(log.read_text(errors="replace").splitlines()[-LINES:])
        raise OvernightError(f"the server ended with exit code {process.returncode}: {said}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all it started."""
    me = Process.of(process.pid)
    stop([*me.children(), me] if me else [], GRACE_S)
    process.wait()


def environment(variables: Mapping[str, str]) -> str:
    """The key that the server was given. Raises BadInput."""
    if KEY not in variables:
        raise BadInput(f"{KEY} is not set; a step starts this program")
    return variables[KEY]
