"""Which kind a failure is: exceptions that are really raised, ends of real processes, and texts of libraries."""

import csv
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import traceback
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import requests
import yaml
from PIL import Image
from safetensors import safe_open

from overnight.data.download import download
from overnight.errors import (
    ConfigError,
    DataError,
    Diverged,
    DoesNotFit,
    OutOfMemory,
    OvernightError,
    Stopped,
)
from overnight.files import atomic_write
from overnight.night.failures import Failure, classify, names_of
from overnight.orchestration.child import _reason
from overnight.orchestration.launcher import Stop, _result
from overnight.orchestration.protocol import StepResult

BAR = 0.95


def result_of(error: BaseException) -> StepResult:
    """As a step's process hands it on."""
    if isinstance(error, OvernightError):
        return StepResult(code=error.child_code, error=str(error), raised=names_of(error))
    return _reason(error)


def caught(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - every kind is wanted
        return error
    raise AssertionError("nothing was raised")


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def full_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        file.write(b"1")


def refused() -> None:
    socket.create_connection(("127.0.0.1", refused_port()), 5)


def hidden_cause() -> None:
    try:
        refused()
    except OSError as error:
        raise RuntimeError("the tokenizer cannot be loaded") from error


def silent_server() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        urllib.request.urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.05)


def no_tls() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname(), 5)
        peer, _ = listener.accept()
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.close()
        ssl.create_default_context().wrap_socket(client, server_hostname="localhost")


def oom_error() -> None:
    raise OutOfMemory("the lease of 2000 MiB was too small")


def never_fits() -> None:
    raise DoesNotFit("one sample at a time does not fit 2000 MiB of the card")


def stopped() -> None:
    raise Stopped("stopped at 3 of 10 epochs")


def bad_data() -> None:
    raise DataError("datasets/made/labels.csv: row 7: 'x' is no number")


def bad_value() -> None:
    raise ConfigError("agent.env: 'CartPol-v1' is unknown; did you mean 'CartPole-v1'?")


def diverged() -> None:
    raise Diverged("the loss of optimizer step 5 (epoch 1, batch 5) is 3.2e+09: training has diverged")


def truncated_picture(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        folder / "a.png"
    )
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    Image.open(folder / "a.png").load()


def broken_zip(folder: Path) -> None:
    (folder / "a.zip").write_bytes(b"<html>not found</html>")
    zipfile.ZipFile(folder / "a.zip")


def broken_tensors(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"\xff" * 100)
    safe_open(folder / "a.safetensors", framework="numpy")


def os_error(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/data/x")

    return fail


def recursion() -> None:
    recursion()


def with_errors() -> None:
    with np.errstate(all="raise"):
        np.log(np.zeros(1))


RAISED: list[tuple[str, str, Callable[[], object]]] = [
    ("disk", "a device without room", full_disk),
    ("disk", "EDQUOT", os_error(errno.EDQUOT)),
    ("disk", "EROFS", os_error(errno.EROFS)),
    ("disk", "EIO", os_error(errno.EIO)),
    ("disk", "EACCES", os_error(errno.EACCES)),
    ("disk", "a file below /proc", lambda: atomic_write(Path("/proc/x"), "1")),
    ("network", "nothing listens", refused),
    (
        "network",
        "nothing listens, urllib",
        lambda: urllib.request.urlopen(f"http://127.0.0.1:{refused_port()}"),
    ),
    (
        "network",
        "nothing listens, requests",
        lambda: requests.get(f"http://127.0.0.1:{refused_port()}", timeout=5),
    ),
    (
        "network",
        "nothing listens, httpx",
        lambda: httpx.get(f"http://127.0.0.1:{refused_port()}", trust_env=False),
    ),
    ("network", "no answer in time", silent_server),
    ("network", "no TLS there", no_tls),
    ("network", "the cause is hidden", hidden_cause),
    (
        "network",
        "no such name",
        lambda: (_ for _ in ()).throw(socket.gaierror(-2, "Name or service not known")),
    ),
    ("network", "ENETUNREACH", os_error(errno.ENETUNREACH)),
    ("network", "EHOSTUNREACH", os_error(errno.EHOSTUNREACH)),
    ("network", "ETIMEDOUT", os_error(errno.ETIMEDOUT)),
    ("network", "ECONNRESET", os_error(errno.ECONNRESET)),
    ("network", "no address", lambda: requests.get("example.org/file.zip", timeout=5)),
    ("out of memory", "a lease", oom_error),
    ("out of memory", "MemoryError", lambda: bytearray(1 << 62)),
    ("out of memory", "numpy", lambda: np.zeros((1 << 40, 1 << 10))),
    ("out of memory", "ENOMEM", os_error(errno.ENOMEM)),
    ("does not fit", "one sample", never_fits),
    ("stopped", "asked to", stopped),
    ("stopped", "Ctrl-C", lambda: (_ for _ in ()).throw(KeyboardInterrupt())),
    ("not a number", "diverged", diverged),
    ("not a number", "numpy", with_errors),
    ("not a number", "linear algebra", lambda: np.linalg.svd(np.full((3, 3), np.nan))),
    ("bad data", "of our own", bad_data),
    ("bad data", "a value", bad_value),
    ("bad data", "bytes that are no text", lambda: b"\xff\xfe".decode("utf-8")),
    ("bad data", "json", lambda: json.loads("{")),
    ("bad data", "yaml", lambda: yaml.safe_load("a: [")),
    ("bad data", "gzip", lambda: gzip.decompress(b"nothing")),
    ("bad data", "zlib", lambda: zlib.decompress(b"nothing")),
    ("bad data", "lzma", lambda: lzma.decompress(b"nothing")),
    ("bad data", "tar", lambda: tarfile.TarFile(fileobj=io.BytesIO(b"nothing" * 99))),
    ("bad data", "csv", lambda: list(csv.reader(['"a'], strict=True))),
    ("bad data", "pickle", lambda: pickle.loads(b"\x80\x04\x95")),
    ("bad data", "struct", lambda: struct.unpack("<I", b"1")),
    ("bad data", "no file", lambda: Path("/nothing/there.csv").read_text()),
    ("bad data", "a folder", lambda: Path("/").read_text()),
    ("bad data", "a word for a number", lambda: float("n/a ")),
    ("bad data", "no picture", lambda: Image.open(io.BytesIO(b"nothing"))),
    ("bug", "a missing package", lambda: __import__("cupy_that_is_not_there")),
    ("bug", "a missing name", lambda: exec("from overnight.paths import nothing")),
    ("bug", "a missing attribute", lambda: np.no_such_function),
    ("bug", "a wrong type", lambda: len(3)),
    ("bug", "a wrong key", lambda: {}["cnn"]),
    ("bug", "a wrong index", lambda: "abc"[int("3")]),
    ("bug", "zero", lambda: 1 / 0),
    ("bug", "shapes", lambda: np.zeros((2, 3)) @ np.zeros((2, 3))),
    ("bug", "assertion", lambda: exec("assert 1 == 2, 'rows and labels'")),
    ("bug", "recursion", recursion),
    ("bug", "too many files", os_error(errno.EMFILE)),
    ("bug", "not written yet", lambda: (_ for _ in ()).throw(NotImplementedError("sparse inputs"))),
]
IN_FOLDER: list[tuple[str, str, Callable[[Path], object]]] = [
    ("bad data", "a picture that is cut", truncated_picture),
    ("bad data", "a page for a zip", broken_zip),
    ("bad data", "no tensors", broken_tensors),
]
PROCESSES = [  # kind, what, code that ends a process
    ("killed by the system", "SIGKILL", "import os; os.kill(os.getpid(), 9)"),
    ("killed by the system", "SIGTERM", "import os, signal; signal.raise_signal(signal.SIGTERM)"),
    ("killed by the system", "SIGXCPU", "import os; os.kill(os.getpid(), 24)"),
    ("killed by the system", "SIGHUP", "import os; os.kill(os.getpid(), 1)"),
    ("stopped", "SIGINT", "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"),
    ("bug", "SIGSEGV", "import ctypes; ctypes.string_at(0)"),
    ("bug", "abort", "import os; os.abort()"),
    ("bug", "a damaged heap", "import os; os.write(2, b'corrupted size vs. prev_size\\n'); os.abort()"),
    ("bug", "a double free", "import os; os.write(2, b'free(): invalid next size (fast)\\n'); os.abort()"),
    ("bug", "SIGFPE", "import os; os.kill(os.getpid(), 8)"),
    ("bug", "an import at the start", "import nothing_of_this_name"),
    ("bug", "an exit", "import sys; sys.exit(3)"),
    ("out of memory", "at the start", "raise MemoryError"),
    ("disk", "at the start", "open('/dev/full', 'wb', buffering=0).write(b'1')"),
    ("network", "at the start", "import socket; socket.create_connection(('127.0.0.1', 9), 5)"),
    ("bad data", "at the start", "open('/nothing/there.csv')"),
]
SAID = [  # kind and text, as libraries and programs print it
    line.replace("\\n", "\n").replace("\\t", "\t").split(" | ", 1)
    for line in Path(__file__).with_name("failures.txt").read_text(encoding="utf-8").splitlines()
]
TRACE = 'Traceback (most recent call last):\n  File "/home/me/overnight/tasks/vision/load.py", line 12, in load\n    read()\n'
LASTING = {"no address", "no TLS there", "EROFS", "EIO", "EACCES", "a file below /proc"}


def misses(found: list[tuple[str, str, Failure]]) -> list[str]:
    return [f"{what!r}: {f.kind}, not {kind}" for kind, what, f in found if f.kind != kind]


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> list[tuple[str, str, Failure]]:
    """Every case, as a step's process or its parent has it, and those that were raised also as a log has them."""
    found = []
    cases = [(kind, what, caught(call)) for kind, what, call in RAISED]
    cases += [(k, w, caught(lambda c=c: c(tmp_path_factory.mktemp("case")))) for k, w, c in IN_FOLDER]
    for kind, what, error in cases:
        found.append((kind, what, classify(result_of(error))))
        if not isinstance(error, OvernightError):
            log = "epoch 1\n" + "".join(traceback.format_exception(error))
            found.append((kind, f"{what}, in a log", classify(StepResult(code=1, error="exit code 1"), log)))
    folder = tmp_path_factory.mktemp("none")
    for kind, what, code in PROCESSES:
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        found.append((kind, what, classify(_result(folder, made.returncode, Stop()), made.stderr)))
        how = "ended with exit code {}" if made.returncode > 0 else "was ended by signal {}"
        said = f"the command {how.format(abs(made.returncode))}; its output is in log.txt"
        program = StepResult(code=1, error=said, raised=("overnight.errors.OvernightError",))
        found.append((kind, f"{what} of a program", classify(program, made.stderr)))
        if made.returncode < 0:  # as a shell says it
            shell = StepResult(code=128 - made.returncode, error="")
            found.append((kind, f"{what} of a shell", classify(shell, made.stderr)))
    for kind, text in SAID:
        name = text.partition(":")[0]
        is_python = " " not in name and name != name.lower()
        log = f"{TRACE if is_python else ''}{text}\n"
        found.append((kind, f"log: {text[:50]}", classify(StepResult(code=1, error=""), log)))
        error = StepResult(code=1, error=text)
        found.append((kind, f"error: {text[:50]}", classify(error)))
    return found


def test_failures_are_told_apart(judged):
    missed = misses(judged)
    assert len(judged) >= 60
    assert 1 - len(missed) / len(judged) >= BAR, "\n".join(missed)
    kinds = {kind for kind, _what, _failure in judged}
    for kind in kinds:  # of none is more than one in five mistaken
        own = [one for one in judged if one[0] == kind]
        assert len(misses(own)) <= len(own) / 5, "\n".join(misses(own))


def test_each_failure_has_something_to_do_and_what_shows_it(judged):
    for _kind, what, failure in judged:
        assert failure.fix, what
        assert failure.evidence or what.startswith("SIG") or "of a shell" in what, what
        assert len(failure.evidence) <= 5


def test_only_what_may_pass_is_tried_again(judged):
    transient = {(f.kind, w.partition(",")[0]) for _k, w, f in judged if f.transient}
    assert {kind for kind, _what in transient} == {"network", "disk"}
    assert not {what for _kind, what in transient} & LASTING


def test_a_server_that_refuses_is_not_asked_again_and_one_in_trouble_is(server, tmp_path):
    server.files["a"] = b"1"
    found = {}
    for code in (401, 403, 404, 429, 500, 503):
        kinds = []
        for get in (
            lambda: urllib.request.urlopen(server.url("a")),
            lambda: requests.get(server.url("a"), timeout=5).raise_for_status(),
            lambda: httpx.get(server.url("a"), trust_env=False).raise_for_status(),
        ):
            server.answers = [code]
            failure = classify(result_of(caught(get)))
            assert failure.kind == "network"
            kinds.append(failure.transient)
        found[code] = kinds
    assert found == {
        401: [False] * 3,
        403: [False] * 3,
        404: [False] * 3,
        429: [True] * 3,
        500: [True] * 3,
        503: [True] * 3,
    }
    for answers, transient in (([404], False), ([503] * 9, True)):
        server.answers = answers
        error = caught(lambda: download(server.url("a"), tmp_path / "a", pause_s=0))
        assert (classify(result_of(error)).kind, classify(result_of(error)).transient) == (
            "network",
            transient,
        )


def test_evidence_names_the_line_of_our_code_and_what_was_noted_last():
    log = f'{TRACE}  File "/x/site-packages/numpy/a.py", line 3, in b\n    c()\nValueError: odd\n'
    failure = classify(
        StepResult(code=1, error="ValueError: odd", raised=("ValueError",)), log, ["one", "two", "three"]
    )
    assert failure.kind == "bug"
    assert failure.evidence == (
        "ValueError: odd",
        "raised at /home/me/overnight/tasks/vision/load.py:12",
        "two",
        "three",
    )
    assert "tasks/vision/load.py:12" in failure.fix


def test_names_end_with_a_circle_of_causes():
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    assert names_of(one) == ("ValueError", "KeyError", "LookupError")
