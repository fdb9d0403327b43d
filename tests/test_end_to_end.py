"""The command as a person types it, in its own checkout: what it runs, what it leaves, how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from overnight import services
from overnight.gpu.ledger.ledger import Ledger
from tests.support.checkouts import living_in, make_checkout, prefect, until

pytestmark = pytest.mark.services
ENTRY = "kind: images\nreader: image_folder\n"
CONFIG = """
flow: nightly
price_per_kwh: 0.31
notify: {command: tee message.txt}
experiments:
  - {flow: vision, name: made, data: made, cnn: {epochs: 4, batch: 16, channels: 8, blocks: 1, lr: 0.1}}
  - {flow: vision, name: broken, data: broken}
"""
PAIR = """
flow: nightly
experiments:
  - {flow: vision, name: one, data: made, cnn: {epochs: 20, batch: 16, channels: 8, blocks: 1}}
  - {flow: vision, name: two, data: made, cnn: {epochs: 21, batch: 16, channels: 8, blocks: 1}}
"""


def stripes(folder: Path, count: int) -> None:
    """Two classes that a net tells apart: stripes that lie and stripes that stand."""
    noise = np.random.default_rng(0)
    for split, share in (("train", count), ("test", count // 4)):
        for name, axis in (("lying", 0), ("standing", 1)):
            (folder / split / name).mkdir(parents=True)
            for i in range(share):
                image = 40 * noise.random((12, 12)) + 180 * (np.indices((12, 12))[axis] // 2 % 2)
                Image.fromarray(image.astype(np.uint8)).save(folder / split / name / f"{i}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    (root / "datasets").mkdir()
    for name in ("made", "broken", "away"):
        (root / "datasets" / f"{name}.yaml").write_text(ENTRY)
    stripes(root / "datasets" / "made", 40)
    shutil.copytree(root / "datasets" / "made", root / "datasets" / "broken")
    for picture in (root / "datasets" / "broken").rglob("*.png"):
        picture.write_bytes(f"not {picture}".encode())
    (root / "configs" / "night.yaml").write_text(CONFIG)
    (root / "configs" / "pair.yaml").write_text(PAIR)
    (root / "configs" / "long.yaml").write_text(
        "flow: vision\ndata: made\ncnn: {epochs: 5000, batch: 16, channels: 8, blocks: 1}\n"
    )
    with living_in(root):
        yield root


def start(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "overnight.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **more},
    )


def run(*words, **more):
    process = start(*words, **more)
    return process.communicate(timeout=300)[0], process.returncode


def mlflow_runs(root, experiment):
    from mlflow import MlflowClient

    client = MlflowClient(services.environment()["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    return client, {
        r.info.run_name: r for r in client.search_runs([found.experiment_id], max_results=50)
    } if found else {}


def flow_runs():
    found = prefect("/flow_runs/filter", {"sort": "START_TIME_DESC"})
    return [r for r in found if r["start_time"]]  # the others are nights to come


def ledger(root):
    return Ledger(root / ".overnight" / "cards" / "virtual", 12288)


def children(root):
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if "overnight.orchestration.child" in (p.info["cmdline"] or []) and str(root) in p.info["cmdline"][-1]
    ]


@pytest.fixture(scope="module")
def night(home):
    return run("run", "night")


def test_a_broken_branch_fails_with_its_reason_and_the_others_go_on(night, home):
    output, code = night
    assert code == 1, output
    assert "2 of 4 steps done" in output
    assert "broken/load_images failed" in output
    assert "not run: broken/load_images failed" in output
    assert "broken/load_images: bad data; correct the file" in output
    assert "Traceback" not in output
    assert "object at 0x" not in output
    assert [r["state_type"] for r in flow_runs()][:1] == ["FAILED"]


def test_the_night_has_a_report_in_its_folder_in_mlflow_and_in_prefect_and_sends_its_first_lines(night, home):
    output, _code = night
    (page,) = (home / ".overnight" / "reports").glob("*.html")
    assert f"report: {page}" in output
    assert "message by command: sent" in output
    assert "2 steps done, 1 failed, 1 not run." in page.read_text()
    assert (home / "message.txt").read_text().startswith("night: 2 steps done, 1 failed, 1 not run.\n")
    client, runs = mlflow_runs(home, "night")
    run_id = next(r.info.run_id for name, r in runs.items() if ", night 20" in name)
    assert "report.html" in [file.path for file in client.list_artifacts(run_id)]
    shown = {found["key"]: found["data"] for found in prefect("/artifacts/filter", {"sort": "ID_DESC"})}
    assert shown["morning-report"].startswith("**2 steps done, 1 failed, 1 not run.**")
    record = json.loads(page.with_suffix(".json").read_text())
    states = {step["label"]: step["state"] for step in record["steps"]}
    assert (states["made/train_cnn"], states["broken/load_images"]) == ("done", "failed")
    trained = next(step for step in record["steps"] if step["label"] == "made/train_cnn")
    assert trained["run_id"] == runs["made/train_cnn"].info.run_id
    assert trained["began"] < trained["ended"]
    assert (record["outcome"], record["price_per_kwh"]) == ("failed", 0.31)


def test_mlflow_holds_the_runs_their_curves_pictures_inputs_and_links(night, home):
    client, runs = mlflow_runs(home, "night")
    parent = next(r for name, r in runs.items() if ", night 20" in name)
    trained, broken = runs["made/train_cnn"], runs["broken/load_images"]
    assert (parent.info.status, trained.info.status, broken.info.status) == ("FAILED", "FINISHED", "FAILED")
    assert trained.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trained.data.metrics["test/accuracy"] > 0.9
    assert parent.data.metrics["made/train_cnn/accuracy"] == trained.data.metrics["test/accuracy"]
    assert (
        trained.data.params["epochs"],
        trained.data.params["precision"],
        trained.data.params["precision.used"],
    ) == ("4", "auto", "fp32")
    curve = client.get_metric_history(trained.info.run_id, "val/accuracy")
    assert len({m.step for m in curve}) == len(curve) == 4
    assert {"confusion.png", "log.txt"} <= {a.path for a in client.list_artifacts(trained.info.run_id)}
    assert any(name.startswith("system/") for name in trained.data.metrics)
    assert [i.dataset.name for i in runs["made/load_images"].inputs.dataset_inputs] == ["made"]
    assert parent.data.tags["mlflow.prefect.flow_run_id"] == flow_runs()[0]["id"]
    assert parent.info.run_name.startswith(("accuracy 0.9", "accuracy 1"))
    assert ", made/train_cnn, night" in parent.info.run_name
    sentence, below = parent.data.tags["mlflow.note.content"].split("\n\n")
    scores, link = below.split("  \n")
    assert sentence.startswith("2 of 4 steps done")
    assert "made/train_cnn/accuracy" in scores
    assert link.startswith("[the run in Prefect](http")
    assert "[all runs of the experiment](http" in link
    assert parent.data.metrics["score"] == parent.data.metrics["made/train_cnn/accuracy"]
    for run in (parent, *runs.values()):
        shown = {name for name in run.data.tags if not name.startswith("mlflow.")}
        assert shown == ({"card", "failure"} if run is broken else {"card"})
        assert "[the run in Prefect](http" in run.data.tags["mlflow.note.content"]
    assert "does not decode" in broken.data.tags["mlflow.note.content"]
    assert "broken/train_cnn" not in runs


def test_the_model_is_used_through_pyfunc(night, home, monkeypatch):
    import mlflow

    _, runs = mlflow_runs(home, "night")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.environment()["MLFLOW_TRACKING_URI"])
    trained = runs["made/train_cnn"]
    model = mlflow.pyfunc.load_model(f"runs:/{trained.info.run_id}/made-train_cnn")
    images = sorted(map(str, (home / "datasets" / "made" / "test" / "standing").glob("*.png")))
    assert (model.predict(images)["class"] == "standing").mean() > 0.9
    page = mlflow.get_logged_model(trained.outputs.model_outputs[0].model_id)
    assert {m.key: m.value for m in page.metrics}["test/accuracy"] > 0.9
    assert "resnet20: 2 classes of images" in page.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "night", "experiments.made.cnn.epoch=3"], 2, "did you mean 'epochs'"),
        (["run", "night", "experiments.0.data=mada"], 2, "did you mean 'made'"),
        (["run", "nigth"], 2, "there is no such file"),
        (["run", "night", "experiments.0.data=away"], 2, "there is no folder datasets/away"),
        (["data", "verify", "nothing"], 2, "unknown data set"),
        (["rnu", "night"], 2, "did you mean 'run'"),
        (["run", "long", "epochs=3"], 2, "did you mean cnn.epochs?"),
    ],
)
def test_bad_input_is_two_and_a_message(home, words, code, said):
    output, returned = run(*words)
    assert (returned, said in output, "Traceback" in output) == (code, True, False), output


def test_what_the_card_cannot_hold_is_three(home):
    output, code = run("run", "long", "cnn.channels=128", OVERNIGHT_VIRTUAL_MIB="8")
    assert code == 3, output
    assert re.search(
        r"train_cnn with micro_batch 1 does not fit the card: predicted: \d\d .*; the whole budget is 8 MiB",
        output,
    ), output
    assert "set OVERNIGHT_VIRTUAL_MIB higher" in output
    assert flow_runs()[0]["state_name"] == "DoesNotFit"
    _, runs = mlflow_runs(home, "long")
    assert runs["train_cnn"].info.status == "FAILED"


@pytest.mark.slow
def test_two_runs_from_two_shells_never_hold_more_than_the_budget(home):
    small, budget = {"OVERNIGHT_VIRTUAL_MIB": "3000"}, Ledger(home / ".overnight" / "cards" / "virtual", 3000)
    with budget.acquire(3000):
        both = [start("run", "long", f"cnn.epochs={n}", **small) for n in (30, 31)]
        until(lambda: sum(not r.holds for r in budget.requests()) == 2, "both to stand in line", 300)
    held = []
    while any(p.poll() is None for p in both):
        held.append(budget.held_mib())
        time.sleep(0.02)
    assert [p.returncode for p in both] == [0, 0], "\n".join(p.communicate()[0] for p in both)
    assert 0 < max(held) <= 3000


def holders(root):
    return [r for r in ledger(root).requests() if r.holds]


def pair(root, *words):
    """Run two trainings; the first that holds the card is paused, so that it cannot end too early."""
    with ledger(root).acquire(12288):
        process = start(
            "run", "pair", *words, "fresh=true", OVERNIGHT_VIRTUAL_MIB="12288"
        )  # so that sizes are predicted
        until(
            lambda: len(ledger(root).requests()) == 3 or process.poll() is not None,
            "both to stand in line",
            300,
        )
    first = until(lambda: holders(root), "the first grant")[0]
    os.kill(first.pid, signal.SIGSTOP)
    return process, first


@pytest.mark.slow
def test_steps_that_fit_run_together_and_their_sizes_are_in_mlflow(home):
    process, first = pair(home)
    until(lambda: len(holders(home)) == 2, "the second to hold beside the first")
    os.kill(first.pid, signal.SIGCONT)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"not measured, of {first.mib:,} MiB" in output
    _, runs = mlflow_runs(home, "pair")
    params, metrics = runs["one/train_cnn"].data.params, runs["one/train_cnn"].data.metrics
    assert (params["usage/asked_mib"], params["usage/lease_mib"], params["usage/micro_batch"]) == (
        str(first.mib),
        str(first.mib),
        "16",
    )
    assert (params["usage/peak_mib"], params["usage/exclusive"]) == ("not measured", "False")
    assert "system/usage_peak_mib" not in metrics
    assert metrics["system/usage_wait_s"] > 0
    assert "MiB" in params["usage/why"]


@pytest.mark.slow
def test_an_exclusive_step_shares_the_card_with_nobody(home):
    process, first = pair(home, "experiments.0.cnn.exclusive=true", "experiments.two.cnn.exclusive=true")
    assert first.exclusive
    assert first.mib < 12288 // 2  # its own amount, not the whole card
    os.kill(first.pid, signal.SIGCONT)
    most = 0
    while process.poll() is None:
        most = max(most, len(holders(home)))
        time.sleep(0.02)
    assert (process.returncode, most) == (0, 1), process.communicate()[0]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP]
)
def test_a_signal_ends_it_all(home, number):
    before = signal.signal(number, signal.SIG_DFL)  # `nohup make test` ignores SIGHUP, and its children do
    process = start("run", "long")
    signal.signal(number, before)
    until(lambda: ledger(home).held_mib(), "the grant")
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)  # the chaos suite measures it
    assert process.returncode == 1
    log = home / ".overnight" / "logs" / "closed-terminal.log"  # where it says its end without a terminal
    said = log.read_text() if number == signal.SIGHUP else output
    assert (
        "stopped, since its terminal was closed" in said if number == signal.SIGHUP else "stopped by" in said
    )
    assert ledger(home).requests() == []
    assert children(home) == []
    _, runs = mlflow_runs(home, "long")
    assert {r.info.status for r in runs.values() if r.info.status in ("RUNNING", "SCHEDULED")} == set()
    assert flow_runs()[0]["state_type"] == "CANCELLED"


@pytest.mark.slow
def test_a_detached_run_is_watched_to_its_end(home):
    output, code = run("run", "long", "cnn.epochs=2", "--detach")
    assert code == 0, output
    output, code = run("watch")
    assert code == 0, output
    assert "2 of 2 steps done" in output
    output, code = run("run", "long", "--detach", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert (code, "PREFECT_API_URL=http://127.0.0.1:1/api: gives no answer" in output) == (2, True), output


def test_kill_9_of_the_parent_takes_the_child_and_frees_the_card(home):
    process = start("run", "long")
    until(lambda: ledger(home).held_mib(), "the grant")
    process.kill()
    process.communicate()
    until(lambda: not children(home), "the child's end")
    until(lambda: ledger(home).requests() == [], "the card")
