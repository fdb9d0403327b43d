"""Downloads from a server that misbehaves, and archives that do."""

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from overnight.dataset import Entry, fetch, load_entry
from overnight.errors import DataError, DiskFull
from overnight.fetch import download
from overnight.unpack import _explained, copy, unpack

DATA = bytes(range(256)) * 4000  # about 1 MB


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def quiet(*_: object) -> None:
    """No progress."""


class Server:
    """Serves `files`; `breaks` holds after how many bytes the next answers break off, `answers` the next status codes."""

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
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        data = self.files.get(request.path.lstrip("/"))
        code = self.answers.pop(0) if self.answers else 200 if data is not None else 404
        if self.redirect or code != 200 or data is None:
            request.send_response(302 if self.redirect else code)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges and self._same(request) else 0
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
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.thread.join()
    found.http.server_close()


def get(server: Server, target: Path, **more) -> None:
    download(server.url("f"), target, progress=quiet, pause_s=0, **more)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------------------------------------ download


def test_a_download_arrives_whole_and_reports(server, tmp_path) -> None:
    server.files["f"] = DATA
    seen: list[tuple[str, int, int | None]] = []
    download(server.url("f"), tmp_path / "sub" / "x", [sha(DATA)], len(DATA), lambda *s: seen.append(s))
    assert (tmp_path / "sub" / "x").read_bytes() == DATA
    assert seen[-1] == ("x", len(DATA), len(DATA))
    assert left(tmp_path / "sub") == ["x"]


@pytest.mark.parametrize("digest", [[sha(DATA)], []])
def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path, digest) -> None:
    server.files["f"], server.breaks = DATA, [300_000, 200_000, 0]
    get(server, tmp_path / "x", sha256=digest)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-"]
    assert left(tmp_path) == ["x"]


def test_a_later_call_goes_on_and_nothing_half_looks_whole(server, tmp_path) -> None:
    server.files["f"], server.breaks = DATA, [300_000] + [0] * 9
    with pytest.raises(DataError, match="300000 of 1024000 bytes; try again later"):
        get(server, tmp_path / "x", sha256=[sha(DATA)])
    assert left(tmp_path) == ["x.part", "x.part.tag"]
    server.breaks = []
    get(server, tmp_path / "x", sha256=[sha(DATA)])
    assert server.asked[-1] == "bytes=300000-"
    assert (tmp_path / "x").read_bytes() == DATA


def test_without_a_digest_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path) -> None:
    server.files["f"], server.breaks = b"old" + DATA, [300_000] + [0] * 9
    with pytest.raises(DataError):
        get(server, tmp_path / "x")
    server.files["f"], server.breaks, server.tag = DATA, [], "v2"
    get(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_server_that_cannot_resume_sends_everything_again(server, tmp_path) -> None:
    server.files["f"], server.breaks, server.ranges = DATA, [300_000], False
    get(server, tmp_path / "x", sha256=[sha(DATA)])
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path) -> None:
    server.files["f"] = DATA
    (tmp_path / "x.part").write_bytes(DATA + b"more")
    get(server, tmp_path / "x", sha256=[sha(DATA)])
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_part_that_is_whole_already_is_not_asked_for(server, tmp_path) -> None:
    (tmp_path / "x.part").write_bytes(DATA)
    get(server, tmp_path / "x", sha256=[sha(DATA)], size=len(DATA))
    assert server.asked == []
    assert left(tmp_path) == ["x"]


@pytest.mark.parametrize("more", [{"sha256": ["0" * 64]}, {"size": 7}, {"size": len(DATA) + 1}])
def test_what_is_not_what_the_entry_says_does_not_stay(server, tmp_path, more) -> None:
    server.files["f"] = DATA
    with pytest.raises(DataError, match=r"not what the entry says|the entry says 7"):
        get(server, tmp_path / "x", **more)
    assert not (tmp_path / "x").exists()
    if "sha256" in more:
        assert left(tmp_path) == []


def test_passing_troubles_are_waited_out_and_refusals_are_not(server, tmp_path) -> None:
    server.files["f"], server.answers = DATA, [503, 429, 500]
    get(server, tmp_path / "x", sha256=[sha(DATA)])
    assert len(server.asked) == 4
    server.asked.clear()
    for code in (404, 403):
        server.answers = [code]
        with pytest.raises(DataError, match=rf"the server answers {code} .*put it at .*y"):
            get(server, tmp_path / "y")
    assert len(server.asked) == 2
    server.answers = [503] * 20
    with pytest.raises(DataError, match="the server answers 503"):
        get(server, tmp_path / "y")


def test_nobody_listens(server, tmp_path) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match=r"refused; try again later"):
        get(server, tmp_path / "x")


def test_a_redirect_away_from_https_is_refused(server, tmp_path) -> None:
    server.redirect = "http://far.example/f"
    with pytest.raises(DataError, match=r"redirects to http://far\.example/f, which is not https"):
        get(server, tmp_path / "x")


def test_a_download_larger_than_the_disk_is_refused_before_it_begins(server, tmp_path) -> None:
    server.files["f"] = DATA
    server.answer = lambda request: (  # type: ignore[method-assign]
        request.send_response(200), request.send_header("Content-Length", str(10**18)), request.end_headers()
    )  # fmt: skip
    with pytest.raises(DiskFull, match="MB are free; make room"):
        get(server, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_while_unpacking_is_called_so(tmp_path) -> None:
    with (
        pytest.raises(DiskFull, match="the disk is full"),
        _explained(tmp_path / "a", tmp_path / "out"),
        Path("/dev/full").open("wb") as sink,
    ):
        copy(io.BytesIO(b"x"), sink, 10, tmp_path / "a")


# ------------------------------------------------------------------------------------------------ data sets


TEXT = """\
kind: table
reader: csv
options: {{tables: {{t: sub/t.csv}}}}
"""


def write(checkout: Path, text: str) -> None:
    (checkout / "datasets" / "made.yaml").write_text(text)


def rows(name: str = "made") -> list[tuple]:
    return load_entry(name).load(quiet).frames["t"].collect().rows()


def entry_text(server: Server, data: bytes) -> str:
    return TEXT.format() + f"files: [{{path: sub/t.csv, url: '{server.url('t.csv')}', bytes: {len(data)}, sha256: {sha(data)}}}]\n"


def test_loading_fetches_what_is_missing_once(server, checkout) -> None:
    server.files["t.csv"] = b"a\n1\n"
    write(checkout, entry_text(server, b"a\n1\n"))
    assert [rows(), rows()] == [[(1,)], [(1,)]]
    assert len(server.asked) == 1
    assert fetch("made", quiet) == "datasets/made"
    assert len(server.asked) == 1


def test_fetch_replaces_a_damaged_file(server, checkout) -> None:
    server.files["t.csv"] = b"a\n1\n"
    write(checkout, entry_text(server, b"a\n1\n"))
    (checkout / "datasets" / "made" / "sub").mkdir(parents=True)
    (checkout / "datasets" / "made" / "sub" / "t.csv").write_bytes(b"a\n2\n")
    with pytest.raises(DataError, match="`overnight data fetch made` gets it anew"):
        rows()
    fetch("made", quiet)
    assert rows() == [(1,)]


def test_a_folder_that_cannot_be_made(server, checkout) -> None:
    write(checkout, entry_text(server, b"a\n1\n"))
    (checkout / "datasets" / "made").write_text("a file in the way")
    with pytest.raises(DataError, match=r"datasets/made: cannot be made for data set 'made': File exists"):
        rows()


def test_two_loads_at_once_fetch_once(server, checkout) -> None:
    server.files["t.csv"] = b"a\n1\n"
    write(checkout, entry_text(server, b"a\n1\n"))
    found: list[list[tuple]] = []
    threads = [threading.Thread(target=lambda: found.append(rows())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(1,)]] * 4
    assert len(server.asked) == 1


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{kind}") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def archive_text(server: Server, data: bytes, more: str = "") -> str:
    return TEXT.format() + (
        f"archives: [{{url: '{server.url('a.bin')}', sha256: {sha(data)}, inside: '*/in'{more}}}]\nfiles: [{{path: sub/t.csv}}, {{path: d/}}]\n"
    )


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz", ""])
def test_files_come_out_of_an_archive(server, checkout, kind: str) -> None:
    data = packed(kind, {"x-1/in/sub/t.csv": b"a\n7\n", "x-1/in/d/e/f": b"f", "x-1/other": b"o", "x-1/in/more": b"m"})
    server.files["a.bin"] = data
    write(checkout, archive_text(server, data))
    assert rows() == [(7,)]
    home = checkout / "datasets" / "made"
    assert sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()) == [".lock", "d/e/f", "sub/t.csv"]
    assert rows() == [(7,)]
    assert len(server.asked) == 1


def test_an_archive_that_somebody_put_there_is_used_and_kept(server, checkout, tmp_path, monkeypatch) -> None:
    data = packed("zip", {"x-1/in/sub/t.csv": b"a\n7\n", "x-1/in/d/e": b"f"})
    write(checkout, archive_text(server, data))
    with pytest.raises(DataError, match=r"404.*put it at datasets/made/a\.bin"):
        rows()
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path / "shared"))
    (tmp_path / "shared" / "made").mkdir(parents=True)
    (checkout / "datasets" / "made" / "a.bin").write_bytes(b"another archive")
    (tmp_path / "shared" / "made" / "a.bin").write_bytes(data)
    assert rows() == [(7,)]
    assert (tmp_path / "shared" / "made" / "a.bin").exists()


def test_an_archive_that_lacks_a_file_is_an_error(server, checkout) -> None:
    data = packed("zip", {"x/in/sub/t.csv": b"a\n7\n"})
    server.files["a.bin"] = data
    write(checkout, archive_text(server, data))
    with pytest.raises(DataError, match="datasets/made/d: there is no such file"):
        rows()


@pytest.mark.parametrize("spoil", [lambda d: d[:-200], lambda d: b"<html>no</html>", lambda d: b""])
def test_a_damaged_archive_is_not_kept(server, checkout, spoil) -> None:
    data = packed("gz", {"x/in/sub/t.csv": b"a\n7\n" * 1, "x/in/d/e": os.urandom(5000)})
    spoiled = spoil(data)
    server.files["a.bin"] = spoiled
    write(checkout, archive_text(server, spoiled))
    with pytest.raises(DataError, match="the archive is damaged or of another format"):
        rows()
    assert left(checkout / "datasets" / "made") == [".lock"]


def test_an_archive_that_unpacks_to_more_than_it_may(server, checkout) -> None:
    data = packed("zip", {"x/in/sub/t.csv": b"0" * 5_000_000})
    server.files["a.bin"] = data
    write(checkout, archive_text(server, data, ", limit: 1000000"))
    with pytest.raises(DataError, match="unpacks to more than"):
        rows()
    assert left(checkout / "datasets" / "made") == [".lock"]


# ------------------------------------------------------------------------------------------------ archives


def unpacked(tmp_path: Path, data: bytes, inside: str = "") -> dict[str, bytes]:
    (tmp_path / "archive").write_bytes(data)
    unpack(tmp_path / "archive", tmp_path / "out", inside)
    return {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil"])
def test_names_that_lead_out_are_refused(tmp_path, kind: str, name: str) -> None:
    with pytest.raises(DataError, match="would be written elsewhere"):
        unpacked(tmp_path, packed(kind, {"fine": b"1", name: b"2"}))
    assert left(tmp_path) == ["archive"]


def test_links_and_devices_are_left_out(tmp_path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("file")
        info.size, info.mode = 1, 0o4777
        tar.addfile(info, io.BytesIO(b"x"))
    assert unpacked(tmp_path, stream.getvalue()) == {"file": b"x"}
    assert not (tmp_path / "out" / "file").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


def test_links_in_a_zip_are_left_out(tmp_path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("file", "x")
    assert unpacked(tmp_path, stream.getvalue()) == {"file": b"x"}


def test_nothing_below_the_folder_asked_for(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no file below 'b'"):
        unpacked(tmp_path, packed("zip", {"a/f": b"1"}), "b")


def test_an_encrypted_zip_is_called_damaged(tmp_path) -> None:
    data = bytearray(packed("zip", {"f": b"1"}))
    data[6] |= 1  # the flag in the file's header, and in the directory's
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="damaged or of another format"):
        unpacked(tmp_path, bytes(data))


def test_urls_must_be_https() -> None:
    for url in ("http://far.example/f", "ftp://x/f", "file:///etc/passwd", "http://127.0.0.1.far.example/f"):
        with pytest.raises(ValueError, match="url"):
            Entry.model_validate({"name": "x", "kind": "table", "reader": "csv", "files": [{"path": "f", "url": url}]})
