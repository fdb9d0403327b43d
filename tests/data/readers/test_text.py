"""Sentences with labels, and running text."""

import gzip

import pytest

from overnight.errors import ConfigError, DataError


def test_label_first(load, folder) -> None:
    (folder / "a.txt").write_bytes("\ufeff1 gut , sehr gut\r\n0 schlecht\r\n\r\n1  猫\u2028x\n".encode())
    content = load(
        "text_lines", {"splits": {"train": "a.txt"}, "classes": {"0": "neg", "1": "pos", "2": "never"}}
    )
    assert content.splits["train"] == [("gut , sehr gut", 1), ("schlecht", 0), ("猫\u2028x", 1)]
    assert content.classes == ("neg", "pos", "never")
    assert content.cleaned == {"blank line dropped": 1, "empty class kept": 1}


def test_tab_separated_with_a_header(load, folder) -> None:
    (folder / "a.tsv").write_text("sentence\tid\tlabel\na b\t1\tham\nc\t2\tspam\n")
    options = {"splits": {"train": "a.tsv"}, "separator": "\t", "label": 2, "text": 0, "header": True}
    content = load("text_lines", options)
    assert (content.splits["train"], content.classes) == ([("a b", 0), ("c", 1)], ("ham", "spam"))
    assert content.cleaned == {}


def test_splits_are_cut_by_the_entry(load, folder) -> None:
    (folder / "a.txt.gz").write_bytes(gzip.compress("".join(f"{i % 2} s{i}\n" for i in range(20)).encode()))
    content = load("text_lines", {"splits": {"train": "a.txt.gz"}}, splits={"test": 0.2})
    assert {split: len(rows) for split, rows in content.splits.items()} == {"train": 16, "test": 4}
    assert sorted(label for _, label in content.splits["test"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "the file is empty"),
        (b"1 fine\n0\n", r"line 2: expected a label and a sentence, found '0'"),
        (b"2 odd\n", r"label '2' is not among '0', '1'"),
        (b"1 \xff\n", "expected text in utf-8; byte 2 is not"),
        (b"<html>\n", "found a web page"),
    ],
)
def test_text_lines_errors(load, folder, written: bytes, said: str) -> None:
    (folder / "a.txt").write_bytes(written)
    with pytest.raises(DataError, match=said) as caught:
        load("text_lines", {"splits": {"train": "a.txt"}, "classes": {"0": "n", "1": "p"}})
    assert "a.txt" in str(caught.value)


def test_running_text_is_cut_by_position(load, folder) -> None:
    (folder / "a.txt").write_bytes("äb\r\nc".encode() * 25)
    content = load("text", {"splits": {"train": "a.txt"}, "parts": {"val": 0.1, "test": 0.2}})
    strings = {split: rows[0][0] for split, rows in content.splits.items()}
    assert {split: len(s) for split, s in strings.items()} == {"train": 70, "val": 10, "test": 20}
    assert strings["train"] + strings["val"] + strings["test"] == "äb\nc" * 25


def test_running_text_in_files(load, folder) -> None:
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    content = load("text", {"splits": {"train": ["b.txt", "a.txt"], "test": "a.txt"}})
    assert content.splits == {"train": [("b", -1), ("a", -1)], "test": [("a", -1)]}


def test_text_options_that_make_no_sense(load, folder) -> None:
    for reader, options in [
        ("text", {"splits": {"train": "a"}, "parts": {"val": 0.5, "test": 0.5}}),
        ("text", {"splits": {"test": "a"}, "parts": {"val": 0.5}}),
        ("text_lines", {"splits": {"train": "a"}, "label": 1, "text": 1}),
        ("text_lines", {"splits": {"train": "a"}, "separator": ",", "second": 1}),
        ("text_lines", {"splits": {"train": "a"}, "second": 2}),
    ]:
        with pytest.raises(ConfigError):
            load(reader, options)
