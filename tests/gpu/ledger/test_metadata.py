"""What a file in a card's folder says of itself."""

import os

import pytest

from overnight.gpu.ledger import metadata


@pytest.fixture
def file(tmp_path):
    """A file, open."""
    path = tmp_path / "h-1-100-5"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, descriptor
    os.close(descriptor)


@pytest.mark.parametrize("length", [10, 400, 600, 3000])
def test_a_shorter_text_replaces_a_longer_one(file, length):
    path, descriptor = file
    for said in ({"step": "x" * length}, {"step": "x" * (length - 10)}, {"use_mib": 1.5}):
        metadata.write(descriptor, said)
        assert metadata.read(path) == said


@pytest.mark.parametrize("text", [b"", b"torn", b"[1]", b"\xff", b"[" * 60_000])
def test_a_file_that_says_nothing_is_still_there(file, text):
    path, descriptor = file
    os.write(descriptor, text)
    assert metadata.read_if_any(path) == {}


def test_what_is_no_file_is_not_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    found = [metadata.read_if_any(tmp_path / name) for name in ("folder", "link", "pipe", "missing")]
    os.close(writer)
    assert (found, metadata.read_if_any(tmp_path / "pipe"), metadata.read(tmp_path / "pipe")) == (
        [None] * 4,
        None,
        {},
    )


def test_what_is_too_long_is_left_out(file):
    path, descriptor = file
    metadata.write(descriptor, {"step": "train", "use_mib": 5, "notes": "y" * 70_000})
    assert metadata.read(path) == {"step": "train", "use_mib": 5}


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), -1, 10**400, "5", True, None, []])
def test_what_is_no_amount(odd):
    assert metadata.amount(odd) is None
    assert (metadata.amount(0), metadata.amount(1.5)) == (0, 1.5)
