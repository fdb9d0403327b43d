"""Data sets that are fetched, and archives that unpack to what they should or not at all."""

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from overnight.data.archives import _explained, copy, unpack
from overnight.data.dataset import Dataset, fetch, load_entry
from overnight.errors import DataError, DiskFull


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------------------------------------ data sets


TEXT = """\
kind: table
reader: csv
options: {{tables: {{t: sub/t.csv}}}}
"""


def write(checkout: Path, text: str) -> None:
    (checkout / "datasets" / "made.yaml").write_text(text)


def rows(name: str = "made") -> list[tuple]:
    return load_entry(name).load().frames["t"].collect().rows()


def entry_text(server, data: bytes) -> str:
    return (
        TEXT.format()
        + f"files: [{{path: sub/t.csv, url: '{server.url('t.csv')}', bytes: {len(data)}, sha256: "
        f"{sha(data)}}}]\n"
    )


def test_loading_fetches_what_is_missing_once(server, checkout) -> None:
    server.files["t.csv"] = b"a\n1\n"
    write(checkout, entry_text(server, b"a\n1\n"))
    assert [rows(), rows()] == [[(1,)], [(1,)]]
    assert len(server.asked) == 1
    assert fetch("made") == "datasets/made"
    assert len(server.asked) == 1


def test_fetch_replaces_a_damaged_file(server, checkout) -> None:
    server.files["t.csv"] = b"a\n1\n"
    write(checkout, entry_text(server, b"a\n1\n"))
    (checkout / "datasets" / "made" / "sub").mkdir(parents=True)
    (checkout / "datasets" / "made" / "sub" / "t.csv").write_bytes(b"a\n2\n")
    with pytest.raises(DataError, match="`overnight data fetch made` gets it anew"):
        rows()
    fetch("made")
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


def archive_text(server, data: bytes, more: str = "") -> str:
    return TEXT.format() + (
        f"archives: [{{url: '{server.url('a.bin')}', sha256: {sha(data)}, inside: '*/in'{more}}}]\nfiles: "
        f"[{{path: sub/t.csv}}, {{path: d/}}]\n"
    )


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz", ""])
def test_files_come_out_of_an_archive(server, checkout, kind: str) -> None:
    data = packed(
        kind, {"x-1/in/sub/t.csv": b"a\n7\n", "x-1/in/d/e/f": b"f", "x-1/other": b"o", "x-1/in/more": b"m"}
    )
    server.files["a.bin"] = data
    write(checkout, archive_text(server, data))
    assert rows() == [(7,)]
    home = checkout / "datasets" / "made"
    assert sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()) == [
        ".lock",
        "d/e/f",
        "sub/t.csv",
    ]
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
    return {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil"])
def test_names_that_lead_out_are_refused(tmp_path, kind: str, name: str) -> None:
    with pytest.raises(DataError, match="would be written elsewhere"):
        unpacked(tmp_path, packed(kind, {"fine": b"1", name: b"2"}))
    assert left(tmp_path) == ["archive"]


def test_links_and_devices_are_left_out(tmp_path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (
            ("soft", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ):
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
            Dataset.model_validate(
                {"name": "x", "kind": "table", "reader": "csv", "files": [{"path": "f", "url": url}]}
            )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_while_unpacking_is_called_so(tmp_path) -> None:
    with (
        pytest.raises(DiskFull, match="the disk is full"),
        _explained(tmp_path / "a", tmp_path / "out"),
        Path("/dev/full").open("wb") as sink,
    ):
        copy(io.BytesIO(b"x"), sink, 10, tmp_path / "a")
