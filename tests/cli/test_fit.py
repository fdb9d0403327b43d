"""`overnight fit CONFIG`: the steps of a config judged without running one."""

import json
from typing import Literal

import pytest

from overnight.cli.fit import describe_errors
from overnight.cli.fit_suggestions import options
from overnight.cli.main import main
from overnight.gpu.card import Card
from overnight.memory import history
from overnight.memory.usage import Usage
from overnight.orchestration.dry_run import planned_steps
from overnight.paths import configs
from overnight.training.recipe import TrainParams
from tasks.graphs.nodes import GnnParams, train_gnn
from tasks.tabular.memory import joined
from tests.support.own_files import own_files

CARD = Card(uuid="virtual", name="virtual", total_mib=8192, budget_mib=8192, count=True)


def fit(capsys, *arguments):
    code = main(["fit", *arguments, "--json"])
    return code, {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}


def test_a_config_is_judged_and_nothing_runs(capsys):
    code, rows = fit(capsys, "vision", "cnn.batch=32", "cnn.channels=8", "cnn.blocks=1")
    row = rows["train_cnn"]
    assert (code, row["verdict"]) == (0, "fits")
    assert row["low_mib"] <= row["mib"] <= row["high_mib"] <= row["lease_mib"]
    assert sum(row["parts"].values()) == pytest.approx(row["mib"], abs=1)
    assert row["largest_micro_batch"] > row["micro_batch"] == 32


def test_a_card_that_is_too_small_says_so(capsys):
    code, rows = fit(
        capsys,
        "vision",
        "cnn.batch=32",
        "cnn.channels=8",
        "cnn.blocks=1",
        "cnn.micro_batch=32",
        "--card",
        "1.5",
    )
    assert (code, rows["train_cnn"]["verdict"]) == (3, "does not fit")
    assert rows["train_cnn"]["high_mib"] > 512  # of 1536, 1024 are for others


def test_the_engine_chooses_the_micro_batch_that_fits(capsys):
    values = ["cnn.batch=4096", "cnn.channels=32", "cnn.blocks=1"]
    whole = fit(capsys, "vision", *values, "cnn.micro_batch=4096")[1]["train_cnn"]
    between = (whole["high_mib"] + 650) / 2 / 1024 + 1
    code, rows = fit(capsys, "vision", *values, "--card", str(between))
    assert (code, rows["train_cnn"]["verdict"]) == (0, "fits")
    assert rows["train_cnn"]["micro_batch"] < 4096
    assert f"cnn.micro_batch={rows['train_cnn']['micro_batch']}" in rows["train_cnn"]["changes"]


def test_what_nobody_knows_is_unknown(capsys):
    code, rows = fit(capsys, "graph")  # a graph that is made of a table that was perhaps never made
    known = rows["train_gnn"]["verdict"] != "unknown"
    assert known or (
        code == 2
        and "link_rows: the shapes of what it makes are unknown: run it once" in rows["train_gnn"]["why"]
    )
    assert rows["etl/join_tables"]["verdict"] == "fits"


def test_what_makes_a_step_fit_is_said_in_words_of_its_config(capsys):
    values = [
        "images.size=64",
        "cnn.channels=8",
        "cnn.blocks=1",
        "cnn.batch=256",
        "cnn.micro_batch=256",
        "cnn.precision=fp32",
    ]
    whole = fit(capsys, "vision", *values)[1]["train_cnn"]
    budget = (whole["high_mib"] + 640) / 2
    code, rows = fit(capsys, "vision", *values, "--card", str(1 + budget / 1024))
    row = rows["train_cnn"]
    assert (code, row["verdict"]) == (3, "does not fit")
    assert row["lease_mib"] >= whole["high_mib"]
    names = [what.partition("=")[0] for what in row["changes"]]
    assert (names[0], names[-1]) == ("cnn.micro_batch", "images.size")
    assert set(names) <= {"cnn.micro_batch", "cnn.precision", "images.size"}
    assert all(mib <= budget for mib in row["changes"].values())


def test_only_options_that_a_step_has_are_named():
    class Tuned(TrainParams):
        checkpointing: bool = False
        optimizer: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
        precision: Literal["fp32", "bf16"] = "fp32"

    assert dict(options(Tuned())) == {"precision": "bf16", "checkpointing": True, "optimizer": "adamw8bit"}
    assert dict(options(Tuned(checkpointing=True, optimizer="sgd", precision="bf16"))) == {}
    assert dict(options(TrainParams())) == {}


@pytest.mark.parametrize("size", ["nan", "inf", "-8", "0", "1", "99999"])
def test_a_card_that_cannot_be_is_bad_input(capsys, size):
    assert main(["fit", "agent", f"--card={size}"]) == 2
    assert "give the memory of a card in GB" in capsys.readouterr().err


def test_a_config_that_mixes_families_is_bad_input(capsys):
    assert main(["fit", "vision", "gnn.hidden=3"]) == 2
    assert "gnn" in capsys.readouterr().err


def test_what_runs_on_the_processor_takes_nothing_of_the_card(capsys):
    code, rows = fit(
        capsys, "agent", "agent.env=LunarLander-v3", "agent.algorithm=dqn", "agent.dqn.buffer=1_000_000"
    )
    row = rows["train_agent"]
    assert (code, row["verdict"], row["mib"]) == (0, "fits", 0)
    assert row["host_mib"] == pytest.approx(
        1e6 * (2 * 8 * 4 + 8 + 8) / 2**20, rel=0.1
    )  # two observations of 8 numbers, action, reward, end
    code, rows = fit(capsys, "etl")
    assert (code, rows["fit_table"]["verdict"], rows["fit_table"]["mib"]) == (0, "fits", 0)
    assert "scikit-learn" in rows["fit_table"]["why"]
    assert 600 < rows["join_tables"]["mib"] < 2048


def test_an_unknown_environment_is_unknown_with_its_reason(capsys):
    code, rows = fit(capsys, "agent", "agent.env=CartPool-v1")
    assert (code, rows["train_agent"]["verdict"]) == (2, "unknown")
    assert "did you mean" in rows["train_agent"]["why"]


def test_every_shipped_config_can_be_judged():
    """Each step is traced, has a formula, runs a program, or on the processor; else it names what to run."""
    for config in own_files("configs/*.yaml"):
        for found in planned_steps(config):
            step = found.step
            assert step.recipe or step.peak or step.program or not step.gpu, (config, found.label)
            assert found.step.recipe is None or found.shapes or "link_rows: the shapes" in found.missing, (
                config,
                found.label,
            )


def test_a_family_s_errors_are_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    for measured in (99, 103):
        used = Usage(cap_mib=999, peak_mib=measured, predicted_mib=100)
        history.record_usage(train_gnn, [GnnParams()], CARD, used, finished=True)
    row = fit(capsys, "cora", "--card", "8")[1]["train_gnn"]
    assert row["history"] == "on the processor: 2 runs of its family measured, -1.0 % to +3.0 %"


def test_errors_of_a_family_are_described():
    seen = [Usage(cap_mib=999, peak_mib=mib, predicted_mib=100) for mib in (98.8, 103.4)]
    assert describe_errors(100, []) == "no run of its family was measured: outside the tested range"
    assert describe_errors(390, seen) == "2 runs of its family measured, -1.2 % to +3.4 %"
    outside = "2 runs of its family measured, -1.2 % to +3.4 %; outside the tested range of 100 to 100 MiB"
    assert describe_errors(410, seen) == outside


def test_shapes_pass_from_step_to_step():
    steps = {
        found.label: found
        for found in planned_steps(configs() / "detect.yaml", ["compose.size=128", "compose.objects=[1, 9]"])
    }
    spec = steps["train_yolo"].given[0]
    assert (spec.shape, spec.boxes, len(spec.classes)) == ((3, 128, 128), 9, 10)


def test_a_part_of_a_night_carries_its_name():
    labels = [found.label for found in planned_steps(configs() / "demo.yaml")]
    assert "digits/train_cnn" in labels
    assert len(labels) == len(set(labels))


def test_tables_of_unknown_size_have_no_figure(checkout, folder):
    from overnight.data.dataset import Dataset

    values = {
        "name": "made",
        "kind": "table",
        "reader": "csv",
        "options": {"tables": {"a": {"file": "a.csv"}}},
    }
    unknown = joined(Dataset.model_validate(values | {"files": [{"path": "a.csv"}]}))
    assert "get the data" in unknown.unknown
    assert unknown.none_of(Card(uuid="virtual", name="virtual", total_mib=8192, budget_mib=8192))
    known = joined(Dataset.model_validate(values | {"files": [{"path": "a.csv", "bytes": 2**20}]}))
    assert 1 == known.low < known.high
    (folder / "b.csv.gz").write_bytes(bytes(1000))
    assert joined(Dataset.model_validate(values)).high > 8 * 1000 / 2**20
