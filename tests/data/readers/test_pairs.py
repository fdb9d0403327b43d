"""Pairs of texts: two files that belong together line by line, or columns of one."""

import gzip
import json

import pytest

from overnight.data.readers import pairs
from overnight.errors import DataError

FILES = {
    "two": (
        {"source": "a.de", "target": "a.en"},
        {"a.de": "ein Hund\neine Katze\n", "a.en": "a dog\na cat\n"},
        {},
    ),
    "tsv": ("a.tsv", {"a.tsv": "ein Hund\ta dog\neine Katze\ta cat\n"}, {}),
    "csv": (
        "a.csv",
        {"a.csv": 'id,en,de\n1,a dog,"ein Hund"\n2,a cat,eine Katze\n'},
        {"source": "de", "target": "en"},
    ),
    "jsonl": (
        "a.jsonl",
        {"a.jsonl": '{"de": "ein Hund", "en": "a dog"}\n\n{"en": "a cat", "de": "eine Katze"}'},
        {"source": "de", "target": "en"},
    ),
}


@pytest.fixture
def read(load, folder):
    def reading(split: object, files: dict[str, str], cut: dict[str, float] | None = None, **options: object):
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return load("pairs", {"splits": {"train": split}, **options}, splits=cut or {})

    return reading


@pytest.mark.parametrize("form", FILES)
def test_the_forms(read, form):
    split, files, options = FILES[form]
    found = read(split, files, **options)
    assert found.splits["train"] == [("ein Hund", "a dog"), ("eine Katze", "a cat")]
    assert not found.cleaned


def test_a_packed_file(tmp_path):
    for name, text in {"a.de.gz": "eins\n", "a.en.gz": "one\n"}.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    options = pairs.Options(splits={"train": {"source": "a.de.gz", "target": "a.en.gz"}})
    assert pairs.read(tmp_path, options, "pairs").splits["train"] == [("eins", "one")]


def test_odd_pairs_are_counted_with_their_line(read):
    files = {"a": "eins\n\nzwei\n \nTaxi\n", "b": "one\n\n\nfour\nTaxi\n"}
    found = read({"source": "a", "target": "b"}, files)
    assert found.splits["train"] == [("eins", "one"), ("Taxi", "Taxi")]
    assert found.cleaned == {
        "blank pair dropped": 1,
        "pair with one side dropped": 2,
        "pair of equal texts kept": 1,
    }
    assert found.cleaned.first["pair with one side dropped"] == "a:3"


def test_line_separators_inside_a_line_are_no_line_ends(read):
    files = {"a": "eins\u2028und\nzwei\n", "b": "one\x85and\ntwo\n"}
    assert len(read({"source": "a", "target": "b"}, files).splits["train"]) == 2


@pytest.mark.parametrize(
    ("split", "files", "options", "said"),
    [
        ({"source": "a", "target": "b"}, {"a": "1\n2\n3\n", "b": "1\n2\n"}, {}, "has 3 lines, b 2"),
        ({"source": "a", "target": "b"}, {"a": "\n\n", "b": "\n\n"}, {}, "holds no pair for train"),
        ({"source": "a", "target": "c"}, {"a": "1\n"}, {}, "no such file"),
        ("a.tsv", {"a.tsv": "1\t2\n3\n"}, {}, "line 2 has 1 columns, expected 2"),
        ("a.csv", {"a.csv": "de,en\n1,2\n"}, {"source": "fr", "target": "en"}, "has no column 'fr'"),
        (
            "a.jsonl",
            {"a.jsonl": json.dumps({"de": "x"})},
            {"source": "de", "target": "en"},
            "line 1: expected JSON",
        ),
        ("a.jsonl", {"a.jsonl": '{"de": 1, "en": "x"}'}, {"source": "de", "target": "en"}, "must be text"),
        (
            "a.jsonl",
            {"a.jsonl": '{"de": "\\udc00", "en": "x"}'},
            {"source": "de", "target": "en"},
            "must be text",
        ),
    ],
)
def test_what_does_not_belong_together(read, split, files, options, said):
    with pytest.raises(DataError, match=said):
        read(split, files, **options)


def test_a_source_stays_in_one_split(read):
    lines = [f"Satz {i % 10}" for i in range(40)]
    files = {"a": "\n".join(lines), "b": "\n".join(f"sentence {i}" for i in range(40))}
    found = read({"source": "a", "target": "b"}, files, cut={"val": 0.3})
    sides = {name: {source for source, _ in some} for name, some in found.splits.items()}
    assert len(sides["val"]) == 3
    assert not sides["train"] & sides["val"]
