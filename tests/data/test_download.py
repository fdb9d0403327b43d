"""Downloads from a server that misbehaves."""

import hashlib
from pathlib import Path

import pytest

from overnight.data.download import download
from overnight.errors import DataError, DiskFull

DATA = bytes(range(256)) * 4000  # about 1 MB


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def quiet(*_: object) -> None:
    """No progress."""


def get(server, target: Path, **more) -> None:
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
