"""Files that are written whole or not at all, JSON that may be missing, digests."""

import gc
import hashlib
import threading
from pathlib import Path

import pytest

from overnight.files import atomic_write, file_sha256, read_json, source_sha256, syntax_tree, tree_sha256


@pytest.mark.parametrize("durable", [False, True])
def test_content_is_text_bytes_or_a_writer(tmp_path, durable) -> None:
    path = tmp_path / "file"
    for content in ("größe", "größe".encode(), lambda file: file.write("größe".encode())):
        path.unlink(missing_ok=True)
        atomic_write(path, content, durable)
        assert path.read_text(encoding="utf-8") == "größe"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_unreadable_json_is_empty(tmp_path, content) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) == {}
    atomic_write(path, '{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_digests(tmp_path) -> None:
    for name in ("a", "b/c"):
        atomic_write_in(tmp_path / name)
    one, other = tmp_path / "a", tmp_path / "b" / "c"
    assert file_sha256(one) == hashlib.sha256(b"a").hexdigest()
    assert source_sha256([one, other]) != source_sha256([other, one])
    listed = f"a\0{file_sha256(one)}\nb/c\0{file_sha256(other)}\n"
    assert tree_sha256(tmp_path) == hashlib.sha256(listed.encode()).hexdigest()


def atomic_write_in(path) -> None:
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, path.name)


class Cycle:
    """Garbage whose end lets another thread run."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        threading.Event().wait(0)


def test_threads_parse_code_at_once() -> None:
    """With ast.parse it breaks: a collection inside it lets another thread parse, too."""
    text = Path(__file__).read_bytes()
    broken = list[str]()

    def parse() -> None:
        for _ in range(20):
            _garbage = [Cycle() for _ in range(50)]
            try:
                syntax_tree(text)
            except SystemError as error:
                broken.append(str(error))

    before = gc.get_threshold()
    gc.set_threshold(200)
    try:
        threads = [threading.Thread(target=parse) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
    assert broken == []
