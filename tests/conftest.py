"""What several test files share."""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.progress import FileProgress

ROOT = Path(__file__).resolve().parent.parent


# folders whose tests keep a core busy
COMPUTING = {"gpu", "memory", "no_card", "orchestration", "tasks", "training"}
OWN_SETTINGS = ("OVERNIGHT_", "PREFECT_", "MLFLOW_")


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no setting of the user's shell; the process that shows the results names each file as it ends."""
    for name in list(os.environ):
        if name.startswith(OWN_SETTINGS) and name != "OVERNIGHT_DATA":
            del os.environ[name]
    if not hasattr(config, "workerinput") and config.get_verbosity() == 0:
        config.pluginmanager.register(FileProgress(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Light files first; then those that wait for servers, spread among those that compute."""
    files = list(dict.fromkeys(item.path for item in items))
    waiting = {item.path for item in items if item.get_closest_marker("services")}
    computing = {path for path in files if COMPUTING & set(path.relative_to(ROOT).parts)} - waiting
    places = dict.fromkeys(files, 0.0)
    for group in (waiting, computing):
        # whole chains, which lie at the root, take longest: started last, one worker would play them alone
        ordered = sorted((path for path in files if path in group), key=lambda path: len(path.parts))
        places |= {path: (number + 0.5) / len(ordered) for number, path in enumerate(ordered)}
    items.sort(key=lambda item: (places[item.path], files.index(item.path)))


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real data, with $OVERNIGHT_DATA set to it; skips where there is none."""
    places = [
        Path(given) for given in (os.environ.get("OVERNIGHT_DATA"), ROOT.parent / "shared" / "data") if given
    ]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        pytest.skip("the real data are not here (neither $OVERNIGHT_DATA nor ../shared/data is a folder)")
    monkeypatch.setenv("OVERNIGHT_DATA", str(found))
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread, whatever OMP_NUM_THREADS says: the same sums in the same order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout of one's own: entries, data and state are below it."""
    root = tmp_path / "checkout"
    (root / "datasets").mkdir(parents=True)
    monkeypatch.setenv("OVERNIGHT_ROOT", str(root))
    monkeypatch.delenv("OVERNIGHT_DATA", raising=False)
    return root


@pytest.fixture
def folder(checkout: Path) -> Path:
    """Where the files of the data set called "made" belong."""
    place = checkout / "datasets" / "made"
    place.mkdir()
    return place


@pytest.fixture
def load(folder: Path) -> Callable[..., object]:
    """Load the data set "made" as `load(reader, options, kind=..., ...)` from files written to `folder`."""
    from overnight.data.dataset import Dataset

    kinds = {
        "csv": "table",
        "voc": "boxes",
        "edge_list": "graph",
        "planetoid": "graph",
        "text": "text",
        "text_lines": "text",
        "chats": "chats",
        "pairs": "pairs",
    }

    def load_made(reader: str, options: dict[str, object], **more: object) -> object:
        values = {
            "name": "made",
            "kind": kinds.get(reader, "images"),
            "reader": reader,
            "options": options,
            **more,
        }
        return Dataset.model_validate(values).load()

    return load_made


class Server:
    """Serves `files`; `breaks`: bytes after which the next answers break off; `answers`: the next codes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.answers: list[int] = []
        self.asked: list[str | None] = []
        self.ranges, self.redirect, self.tag = True, "", "v1"
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                """Silence."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        data = self.files.get(request.path.lstrip("/"))
        code = 404 if data is None else 200
        if self.answers:
            code = self.answers.pop(0)
        if self.redirect or code != 200 or data is None:
            request.send_response(302 if self.redirect else code)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = (
            int(wanted.removeprefix("bytes=").rstrip("-"))
            if wanted and self.ranges and self._same(request)
            else 0
        )
        if start >= len(data) and start:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("ETag", f'"{self.tag}"')
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : start + self.breaks.pop(0)] if self.breaks else data[start:])

    def _same(self, request: BaseHTTPRequestHandler) -> bool:
        return request.headers.get("If-Range", f'"{self.tag}"') == f'"{self.tag}"'


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on this machine that misbehaves when told to."""
    found = Server()
    yield found
    found.http.shutdown()
    found.thread.join()
    found.http.server_close()


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow's, made once, since that takes seconds: tests share it, each with names of its own."""
    from overnight.tracking.client import Tracker

    folder = tmp_path_factory.mktemp("mlflow")
    with contextlib.chdir(folder):  # artifacts lie below it
        tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "made")
        assert tracker.experiment_id
    return tracker.uri


@pytest.fixture(autouse=True, scope="module")
def _small_collections() -> None:
    """Leave what is imported by now out of garbage collections, which trainings that run out of memory ask for."""
    gc.collect()
    gc.freeze()
