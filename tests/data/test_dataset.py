"""Entries: every mistake at once; files are found, verified and remembered; missing ones are refused."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overnight.config import Values, read, validate
from overnight.data import dataset, digests
from overnight.data.dataset import Dataset, listing, load_entry, verify
from overnight.errors import ConfigError, DataError
from overnight.paths import datasets

CSV = "kind: table\nreader: csv\noptions: {tables: {t: t.csv}}\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def write(checkout):
    """Write an entry, and the files of its set below `place`."""

    def write(text: str = CSV, name: str = "made", place=None, **files: bytes) -> None:
        (checkout / "datasets" / f"{name}.yaml").write_text(text, encoding="utf-8")
        home = (place or checkout / "datasets") / name
        for file, data in files.items():
            home.mkdir(parents=True, exist_ok=True)
            (home / file.replace("_", ".")).write_bytes(data)

    return write


def rows(content) -> list[tuple]:
    return content.frames["t"].collect().rows()


# -------------------------------------------------------------------------------- entries


def test_a_new_set_of_a_known_format_is_one_yaml(write) -> None:
    write(t_csv=b"a\n1\n")
    assert dataset.names() == ["made"]
    assert rows(load_entry("made").load()) == [(1,)]


def test_an_experiment_names_a_set_and_holds_its_entry(write, tmp_path) -> None:
    class Wants(Values):
        data: dataset.Dataset

    write(t_csv=b"a\n1\n")
    (tmp_path / "c.yaml").write_text("data: made\n")
    values, source = read(tmp_path / "c.yaml")
    found = validate(Wants, values, source)
    assert isinstance(found.data, Dataset)
    assert Wants.model_validate(found.model_dump(mode="json")).data == found.data
    with pytest.raises(ConfigError, match=r"c.yaml:1: data: unknown data set 'mode'; did you mean 'made'"):
        validate(Wants, {"data": "mode"}, source)


def test_every_mistake_of_an_entry_is_said_at_once_with_its_line(write) -> None:
    write(
        "kind: tables\nreader: cvs\nfolder: ../up\nfiles:\n"
        "  - {path: a, sha: x, url: 'http://far.away/a'}\nexpected: {count: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_entry("made")
    said = "\n".join(caught.value.problems)
    for part in (
        "yaml:1: kind",
        "yaml:2: reader: unknown reader 'cvs'; did you mean 'csv'",
        "yaml:3: folder: must be a path inside",
        "did you mean 'sha256'",
        "files.0.url",
        "did you mean 'counts'",
    ):
        assert part in said
    assert len(caught.value.problems) == 6


def test_options_of_the_reader_are_checked_with_the_entry(write) -> None:
    write(
        "kind: table\nreader: csv\nlicense: MIT\n"
        "options:\n  tables: {t: t.csv}\n  nuls: [x]\n  types: {a: number}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_entry("made")
    said = "\n".join(caught.value.problems)
    for part in (
        "yaml:3: license: unknown key; did you mean 'licence'",
        "yaml:6: nuls: unknown key; did you mean 'nulls'",
        "yaml:7: types.a",
    ):
        assert part in said


def test_every_reader_offers_what_is_asked_of_it() -> None:
    from overnight.data import readers

    assert set(readers.names()) >= {
        "csv",
        "image_parquet",
        "idx",
        "image_folder",
        "voc",
        "edge_list",
        "planetoid",
        "text_lines",
        "text",
        "cifar_binary",
        "package",
    }
    for name in readers.names():
        found = readers.reader(name)
        assert issubclass(found.Options, Values)
        assert callable(found.read)
        assert found.__doc__


def test_the_guide_names_every_reader_with_all_its_options() -> None:
    from overnight.data import readers

    guide = (datasets() / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in guide.splitlines() if line.startswith("| `")}
    for name in readers.names():
        missing = [
            option for option in readers.reader(name).Options.model_fields if f"`{option}`" not in rows[name]
        ]
        assert not missing, f"{name}: {missing}"
    for key in Dataset.model_fields:
        assert key == "name" or f"`{key}`" in guide


def test_the_example_of_the_guide_works(write, checkout) -> None:
    from PIL import Image

    guide = (Path(dataset.__file__).parents[2] / "datasets" / "README.md").read_text(encoding="utf-8")
    write(guide.partition("```yaml\n")[2].partition("```")[0], name="birds")
    for i in range(20):
        home = checkout / "datasets" / "birds" / "train" / ("owl" if i % 2 else "tit")
        home.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), (12 * i, 0, 0)).save(home / f"{i}.jpg")
    assert {split: len(items) for split, items in load_entry("birds").load().splits.items()} == {
        "train": 18,
        "val": 2,
    }


# -------------------------------------------------------------------------------- where files are


def test_the_data_folder_comes_first(write, tmp_path, monkeypatch) -> None:
    write(t_csv=b"a\n1\n")
    write(place=tmp_path / "shared", t_csv=b"a\n2\n")
    assert rows(load_entry("made").load()) == [(1,)]
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path / "shared"))
    assert rows(load_entry("made").load()) == [(2,)]


def test_a_relative_data_folder_is_found_from_anywhere(write, checkout, monkeypatch, tmp_path) -> None:
    write()
    write(place=checkout.parent / "shared", t_csv=b"a\n2\n")
    monkeypatch.setenv("OVERNIGHT_DATA", "../shared")
    for place in (checkout, tmp_path, checkout / "datasets"):
        monkeypatch.chdir(place)
        assert rows(load_entry("made").load()) == [(2,)]


def test_a_damaged_copy_is_passed_over_when_there_is_a_whole_one(write, tmp_path, monkeypatch) -> None:
    good = b"a\n1\n"
    text = CSV + f"files: [{{path: t.csv, sha256: {sha(good)}}}]\n"
    write(text, t_csv=good)
    write(text, place=tmp_path / "shared", t_csv=b"a\n2\n")
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path / "shared"))
    assert rows(load_entry("made").load()) == [(1,)]


def test_a_missing_file_names_itself_the_places_and_what_to_do(write, tmp_path, monkeypatch) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path / "shared"))
    write(CSV + "homepage: https://x.example/\nfiles: [{path: t.csv}, {path: u.csv}]\n", t_csv=b"a\n1\n")
    with pytest.raises(DataError) as caught:
        load_entry("made").load()
    said = str(caught.value)
    for part in (
        "data set 'made'",
        "u.csv",
        "shared/made or datasets/made",
        "overnight data fetch made",
        "https://x.example/",
    ):
        assert part in said
    assert "t.csv," not in said


def test_a_set_without_files_and_folder(write) -> None:
    write()
    with pytest.raises(DataError, match="there is no folder datasets/made"):
        load_entry("made").load()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\n11\n", r"datasets/made/t\.csv: 5 bytes, expected 4: cut short or changed"),
        (b"a\n2\n", r"datasets/made/t\.csv: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: damaged or changed"),
    ],
)
def test_a_file_that_is_not_what_the_entry_says(write, data: bytes, said: str) -> None:
    write(CSV + f"files: [{{path: t.csv, bytes: 4, sha256: {sha(bytes([97, 10, 49, 10]))}}}]\n", t_csv=data)
    with pytest.raises(DataError, match=said):
        load_entry("made").load()
    assert len(verify("made")) == 1


def test_any_of_several_digests_will_do(write) -> None:
    write(CSV + f"files: [{{path: t.csv, sha256: [{'f' * 64}, {sha(b'a')}]}}]\n", t_csv=b"a")
    assert load_entry("made").problems(datasets() / "made") == []


def test_counts_and_classes_that_are_not_what_is_expected(write) -> None:
    text = "kind: text\nreader: text_lines\noptions: {splits: {train: t.csv}}\n"
    text += "expected: {counts: {train: 3}, classes: [x, y]}\n"
    write(text, t_csv=b"x one\ny two\n")
    with pytest.raises(DataError, match=r"train: 2 \(expected 3\)"):
        load_entry("made").load()
    write(text.replace("train: 3", "train: 2, test: 1"), t_csv=b"x one\ny two\n")
    with pytest.raises(DataError, match=r"test: 0 \(expected 1\)"):
        load_entry("made").load()
    write(text.replace("train: 3", "train: 2").replace("[x, y]", "[y, x]"), t_csv=b"x one\ny two\n")
    with pytest.raises(DataError, match=r"classes: x, y \(expected y, x\)"):
        load_entry("made").load()


def test_a_table_of_other_rows_than_expected(write) -> None:
    write(CSV + "expected: {counts: {t: 2}}\n", t_csv=b"a\n1\n\n2\n")
    assert rows(load_entry("made").load()) == [(1,), (2,)]
    write(CSV + "expected: {counts: {t: 3}}\n")
    with pytest.raises(DataError, match=r"t: 2 \(expected 3\)"):
        load_entry("made").load()


def test_a_graph_of_another_size_than_expected(write) -> None:
    options = "kind: graph\nreader: edge_list\noptions: {edges: {file: t.csv, source: a, target: b}}\n"
    write(options + "expected: {nodes: 3, edges: 2}\n", t_csv=b"a,b\n1,2\n2,3\n")
    assert load_entry("made").load().nodes == 3
    write(options + "expected: {nodes: 4, edges: 1}\n")
    with pytest.raises(DataError, match=r"nodes: 3 \(expected 4\); edges: 2 \(expected 1\)"):
        load_entry("made").load()


def test_archives_must_say_what_they_bring(write) -> None:
    write(CSV + "archives: [{url: 'https://x.example/a.zip'}]\n")
    with pytest.raises(ConfigError, match="archives need `files`"):
        load_entry("made")


# -------------------------------------------------------------------------------- digests


def test_digests_are_remembered_until_the_file_changes(checkout) -> None:
    file = checkout / "f"
    file.write_bytes(b"one")
    before = os.stat(file)
    assert digests.sha256(file) == sha(b"one")
    memory = checkout / ".overnight" / "digests.json"
    memory.write_text(memory.read_text().replace(sha(b"one"), "remembered"))
    assert digests.sha256(file) == "remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy brings it
    assert digests.sha256(file) == sha(b"two")
    os.utime(file, ns=(1, 1))
    file.write_bytes(b"three")
    assert digests.sha256(file) == sha(b"three")


def test_verify_does_not_trust_what_is_remembered(write, checkout) -> None:
    write(CSV + f"files: [{{path: t.csv, sha256: {sha(bytes([97, 10, 49, 10]))}}}]\n", t_csv=b"a\n1\n")
    load_entry("made").load()
    memory = checkout / ".overnight" / "digests.json"
    memory.write_text(memory.read_text().replace(sha(b"a\n1\n"), "0" * 64))
    with pytest.raises(DataError, match="damaged or changed"):
        load_entry("made").load()
    assert verify("made") == []


def test_a_memory_that_is_damaged_is_as_good_as_none(checkout) -> None:
    (checkout / "f").write_bytes(b"one")
    (checkout / ".overnight").mkdir()
    for written in ("{", "[]", '{"x": 1}'):
        (checkout / ".overnight" / "digests.json").write_text(written)
        assert digests.sha256(checkout / "f") == sha(b"one")


def test_the_digest_of_a_folder_is_that_of_what_sha256sum_lists(checkout) -> None:
    folder = checkout / "tree"
    (folder / "sub").mkdir(parents=True)
    for name in ("b", "a", "sub/ä"):
        (folder / name).write_bytes(name.encode())
    (folder / ".hidden").write_bytes(b"x")
    listed = "".join(f"{sha(name.encode())}  {name}\n" for name in ("a", "b", "sub/ä"))
    assert digests.sha256(folder) == sha(listed.encode())
    assert digests.size(folder) == 1 + 1 + 6
    (folder / "sub" / "ä").write_bytes(b"other")
    assert digests.sha256(folder) != sha(listed.encode())


def test_what_decides_the_content_is_in_the_identity(write, checkout) -> None:
    write(CSV + "about: one\n", t_csv=b"a\n1\n")
    first = load_entry("made").identity()
    write(CSV + "about: two\n")
    assert load_entry("made").identity() == first
    write(CSV, t_csv=b"a\n2\n")
    assert load_entry("made").identity() != first
    write(CSV + "splits: {test: 0.2}\n", t_csv=b"a\n1\n")
    assert load_entry("made").identity() != first
    assert (
        "networkx"
        in Dataset(name="k", kind="graph", reader="package", options={"module": "networkx"}).identity()[
            "package"
        ]
    )


# -------------------------------------------------------------------------------- for the command line


def test_listing(write, checkout) -> None:
    write(CSV + "licence: MIT\nfiles: [{path: t.csv}]\n", t_csv=b"a\n1\n")
    write(CSV + "files: [{path: t.csv, bytes: 5000000}]\n", name="far")
    write("kind: tables\n", name="wrong")
    write(
        "kind: graph\nreader: package\noptions: {module: networkx, function: karate_club_graph}\n",
        name="packed",
    )
    write("kind: graph\nreader: package\noptions: {module: not_there_at_all, function: x}\n", name="unpacked")
    found = {row["name"]: row for row in listing()}
    assert found["made"] == {
        "name": "made",
        "kind": "table",
        "reader": "csv",
        "where": "datasets/made",
        "MB": None,
        "licence": "MIT",
    }
    assert (found["far"]["where"], found["far"]["MB"]) == ("not here", 5.0)
    assert found["wrong"]["where"].startswith("the entry is wrong: datasets/wrong.yaml")
    assert found["packed"]["where"] == "package networkx"
    assert "not installed" in found["unpacked"]["where"]
    assert not (checkout / ".overnight" / "digests.json").exists()  # nothing was hashed


def test_listing_imports_nothing_heavy() -> None:
    script = (
        "import sys; from overnight.data.dataset import Dataset, listing; listing(); "
        "heavy = 'torch polars prefect mlflow numpy PIL pyarrow sklearn'.split(); "
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_entries_of_the_checkout_are_right() -> None:
    known = {
        "bccd", "cifar10", "cifar10_jpeg", "cora", "digits", "facebook", "fashion_mnist", "flights",
        "karate", "nycflights13", "rl_agents", "sst2", "tinyshakespeare",
    }  # fmt: skip
    assert known <= set(dataset.names())
    for name in dataset.names():
        entry = load_entry(name)
        assert entry.licence, name
        assert entry.homepage.startswith("https://") or name == "veldoria", name  # which lies here alone
        assert (
            entry.expected.counts or entry.expected.nodes or entry.expected.rows or entry.expected.tokens
        ), name


def test_verify_asks_every_value_of_a_given_type(write) -> None:
    write(CSV.replace("{t: t.csv}", "{t: {file: t.csv, types: {a: int}}}"), t_csv=b"a\n1\n2.5\n")
    assert load_entry("made").load().rows == {"t": 2}
    assert [line.partition(": ")[2][:26] for line in verify("made")] == ["line 3: column 'a', row 2 "]
