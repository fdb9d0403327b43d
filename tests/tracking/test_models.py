"""A model in MLflow: its page says what it is, and it is found by every name that a person has for it."""

import polars as pl
import pytest

from overnight import Artifact, RecordingRun
from overnight.errors import BadInput
from overnight.tracking.client import DIGEST, NOTE_TAG, Tracker
from overnight.tracking.models import artifact_in, fetch_model, find_model, log_model
from tasks.tabular.fit import fit_table
from tasks.tabular.params import FitParams
from tests.tasks.tabular.test_predictor import PARAMS, table

ABSENT = "0" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordingRun, Artifact, Artifact]:
    run = RecordingRun(tmp_path_factory.mktemp("rows"))
    data = table(run.folder)
    return run, fit_table.body(run, FitParams.model_validate(PARAMS), data), data


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("mlflow")
    found = Tracker(f"sqlite:///{folder}/mlflow.db", "shops")
    found.client.create_experiment("shops", artifact_location=str(folder / "artifacts"))
    return found


@pytest.fixture(scope="module")
def logged(made: tuple[RecordingRun, Artifact, Artifact], tracker: Tracker) -> tuple[str, str]:
    """The run of the step, below one of an experiment, and that one."""
    run, model, _data = made
    whole = tracker.open("shops", {})
    step = tracker.open("shops/fit_table", {}, whole)
    tracker.params(step, {"numeric": "x", "seed": 0})
    tracker.metrics(step, [{**event, "at": 1.0} for event in run.of("metrics")])
    for _ in range(2):  # as when the first answer was lost
        log_model(tracker, step, "shops/fit_table", model.path, model.digest)
    return step, whole


def test_the_page_of_a_model_has_its_scores_params_description_and_example(
    made, tracker, logged, monkeypatch
) -> None:
    import mlflow

    (found,) = tracker.client.search_logged_models([tracker.experiment_id])
    scores = {metric.key: metric.value for metric in found.metrics}
    assert scores["test/accuracy"] == made[0].last("test/accuracy")
    written = {name for event in made[0].of("metrics") for name in event["values"]}
    assert set(scores) == {name for name in written if name.startswith(("test/", "val/"))}
    assert (found.params["numeric"], found.tags[DIGEST]) == ("x", made[1].digest)
    assert found.tags[NOTE_TAG].startswith("Boosted trees: false or true, by paid.\n\nIn: `x` (double)")
    assert found.source_run_id == logged[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # set_tracking_uri would keep it
    model = mlflow.pyfunc.load_model(f"models:/{found.model_id}")
    rows = pl.read_parquet(made[2].path / "table.parquet").filter(pl.col("hour") >= 96).to_pandas()
    right = model.predict(rows)["class"] == rows["paid"].astype(str).str.lower()
    assert right.mean() == pytest.approx(scores["test/accuracy"], abs=1e-6)
    assert len(model.predict(model.input_example)) == 3


def test_a_model_is_found_by_run_link_name_version_and_alias(made, tracker, logged, checkout) -> None:
    step, whole = logged
    model_id = find_model(tracker, step)
    link = f"http://127.0.0.1:5007/#/experiments/1/runs/{step}?workflowType=machine_learning"
    assert (
        find_model(tracker, link)
        == find_model(tracker, whole)
        == find_model(tracker, f"models:/{model_id}")
        == model_id
    )
    client = tracker.client
    client.create_registered_model("shops")
    source = client.get_logged_model(model_id).artifact_location
    for _ in range(2):
        client.create_model_version("shops", source, step, model_id=model_id, await_creation_for=0)
    client.set_registered_model_alias("shops", "best", "1")
    for name in ("shops", "shops@1", "shops@2", "shops@best"):
        assert find_model(tracker, name) == model_id
    folder = fetch_model(tracker, model_id)
    assert folder == checkout / ".overnight" / "models" / model_id == fetch_model(tracker, model_id)
    assert (artifact_in(folder) / "meta.json").read_bytes() == (made[1].path / "meta.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("shop", "shop: the registry has no such model; did you mean 'shops'"),
        ("shops@7", "shops has no version or alias '7'; there are @1"),
        ("shops@worst", "no version or alias 'worst'.*@best"),
        (ABSENT, f"MLflow has no run {ABSENT}"),
    ],
)
def test_a_name_that_nothing_has_is_refused_with_those_there_are(
    tracker, logged, name: str, why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        find_model(tracker, name)


def test_a_run_without_a_model_and_a_model_that_is_gone_are_refused(tracker, checkout) -> None:
    with pytest.raises(BadInput, match="has no model; name a run that trained one"):
        find_model(tracker, tracker.open("empty", {}))
    with pytest.raises(BadInput, match=f"the model m-{ABSENT} does not come from MLflow"):
        fetch_model(tracker, f"m-{ABSENT}")
