"""`overnight fit CONFIG`: the steps of a config judged without running one."""

import json

import pytest

from overnight.cli import main
from overnight.fit.analytic import joined
from overnight.fit.outline import outline
from overnight.gpu.device import Card
from overnight.paths import configs


def fit(capsys, *arguments):
    code = main(["fit", *arguments, "--json"])
    return code, {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}


def test_a_config_is_judged_and_nothing_runs(capsys):
    code, rows = fit(capsys, "vision", "cnn.batch=32", "cnn.width=8", "cnn.blocks=1")
    row = rows["train_cnn"]
    assert (code, row["verdict"]) == (0, "fits")
    assert row["low_mib"] <= row["mib"] <= row["high_mib"] <= row["lease_mib"]
    assert sum(row["parts"].values()) == pytest.approx(row["mib"], abs=1)
    assert row["largest_micro_batch"] > row["micro_batch"] == 32


def test_a_card_that_is_too_small_says_so(capsys):
    code, rows = fit(capsys, "vision", "cnn.batch=32", "cnn.width=8", "cnn.blocks=1", "cnn.micro_batch=32", "--card", "1.5")
    assert (code, rows["train_cnn"]["verdict"]) == (3, "does not fit")
    assert rows["train_cnn"]["high_mib"] > 512  # of 1536, 1024 are for others


def test_the_engine_chooses_the_micro_batch_that_fits(capsys):
    values = ["cnn.batch=4096", "cnn.width=32", "cnn.blocks=1"]
    whole = fit(capsys, "vision", *values, "cnn.micro_batch=4096")[1]["train_cnn"]
    between = (whole["high_mib"] + 650) / 2 / 1024 + 1
    code, rows = fit(capsys, "vision", *values, "--card", str(between))
    assert (code, rows["train_cnn"]["verdict"]) == (0, "fits")
    assert rows["train_cnn"]["micro_batch"] < 4096
    assert f"cnn.micro_batch={rows['train_cnn']['micro_batch']}" in rows["train_cnn"]["changes"]


def test_what_nobody_knows_is_unknown(capsys):
    code, rows = fit(capsys, "graph")  # a graph that is made of a table that was perhaps never made
    known = rows["train_gnn"]["verdict"] != "unknown"
    assert known or (code == 2 and "link_rows: the shapes of what it makes are unknown: run it once" in rows["train_gnn"]["why"])
    assert rows["etl/join_tables"]["verdict"] == "fits"


def test_shapes_pass_from_step_to_step():
    steps = {found.label: found for found in outline(configs() / "detect.yaml", ["compose.size=128", "compose.objects=[1, 9]"])}
    spec = steps["train_yolo"].given[0]
    assert (spec.shape, spec.boxes, len(spec.classes)) == ((3, 128, 128), 9, 10)


def test_a_part_of_a_night_carries_its_name():
    labels = [found.label for found in outline(configs() / "demo.yaml")]
    assert "digits/train_cnn" in labels
    assert len(labels) == len(set(labels))


def test_tables_of_unknown_size_have_no_figure(checkout, folder):
    from overnight.dataset import Entry

    values = {"name": "made", "kind": "table", "reader": "csv", "options": {"tables": {"a": {"file": "a.csv"}}}}
    unknown = joined(Entry.model_validate(values | {"files": [{"path": "a.csv"}]}))
    assert "get the data" in unknown.unknown
    assert unknown.none_of(Card(uuid="virtual", name="virtual", total_mib=8192, budget_mib=8192))
    known = joined(Entry.model_validate(values | {"files": [{"path": "a.csv", "bytes": 2**20}]}))
    assert 1 == known.low < known.high
    (folder / "b.csv.gz").write_bytes(bytes(1000))
    assert joined(Entry.model_validate(values)).high > 8 * 1000 / 2**20
