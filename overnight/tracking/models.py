"""Models in MLflow: packed from code and safetensors, described so that they can be used."""

import os
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

from overnight import predictor
from overnight.errors import BadInput, one_line
from overnight.paths import state
from overnight.predictor import Column, Interface
from overnight.tracking.client import DIGEST, NOTE_TAG, Tracker, mlflow_error
from overnight.tracking.registry import ALIAS, Model, Registry, Version

REQUIREMENTS = ("mlflow", "numpy", "pandas", "pydantic", "pyyaml", "safetensors", "torch")  # of every model
MORE: dict[str, tuple[str, ...]] = {
    "rows": ("polars", "pyarrow", "scipy"),
    "images": ("pillow",),
    "nodes": ("scipy", "torch-geometric"),
    "observations": ("gymnasium",),
    "texts": ("tokenizers",),
}
NO_NAME = r"[^\w -]"  # what the name of a logged model may not have
MODEL_ID = re.compile(r"(?<![0-9a-zA-Z-])m-[0-9a-f]{32}(?![0-9a-zA-Z])")
RUN_ID = re.compile(r"(?<![0-9a-zA-Z-])[0-9a-f]{32}(?![0-9a-zA-Z])")
MOST = 6000  # characters of a description
SCORES = ("test/", "val/")  # metrics of the run that stand on the model's page


def log_model(tracker: Tracker, run_id: str, name: str, folder: Path, digest: str) -> None:
    """Log a saved model with the params and scores of its run, unless the run has one of this digest."""
    from mlflow.entities import LoggedModelOutput, Metric

    client = tracker.client
    run: Any = client.get_run(run_id)
    logged = [one.model_id for one in (run.outputs.model_outputs if run.outputs else [])]
    if any(client.get_logged_model(model_id).tags.get(DIGEST) == digest for model_id in logged):
        return
    packed = folder.parent / "mlflow_model"
    shutil.rmtree(packed, ignore_errors=True)
    pack(folder, packed)
    about = _interface(folder)
    tags = {DIGEST: digest} | ({NOTE_TAG: _description(about)} if about else {})
    model = client.create_logged_model(
        tracker.experiment_id,
        name=re.sub(NO_NAME, "-", name),
        source_run_id=run_id,
        tags=tags,
        params=dict(run.data.params),
    )
    client.log_model_artifacts(model.model_id, str(packed))
    client.finalize_logged_model(model.model_id, "READY")
    scores = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id)
        for m in run.data._metric_objs
        if m.key.startswith(SCORES)
    ]
    if scores:
        client.log_batch(run_id, metrics=scores)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    shutil.rmtree(packed)


def pack(folder: Path, packed: Path) -> None:
    """The model artifact in a folder as MLflow's format; neither it nor torch is loaded here."""
    import mlflow.pyfunc

    code = Path(__file__).resolve().parents[2]
    about = _interface(folder)
    names = REQUIREMENTS + (MORE[about.kind] if about else ())
    with warnings.catch_warnings():
        # It asks for an input example where the model has none.
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(packed),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(code / "overnight"), str(code / "tasks")],
            pip_requirements=[f"{name}=={version(name)}" for name in names],
            signature=_signature(about) if about else None,
            input_example=[dict(row) for row in about.example] if about and about.example else None,
        )


def find_model(tracker: Tracker, name: str) -> str:
    """The id of a logged model.

    name: of a registered model (its champion, else its newest version), with @3 or @alias; of an experiment
    whose models are not registered; the id or link of a model or of a run that logged one. Raises BadInput.
    """
    model = MODEL_ID.search(name)
    if model:
        return model[0]
    run = RUN_ID.search(name)
    return _of_run(tracker, run[0]) if run else _registered(tracker, name)


def _of_run(tracker: Tracker, run_id: str) -> str:
    """Of the run, or of the only one of the steps below it that has a model."""
    client = tracker.client
    try:
        run: Any = client.get_run(run_id)
    except mlflow_error() as error:
        if not tracker.refuses(error):
            raise
        raise BadInput(
            f"MLflow has no run {run_id}; copy its id or its address from the run's page"
        ) from None
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    found = {one.info.run_name: _newest_output(one) for one in (run, *below)}
    models = {label: model for label, model in found.items() if model}
    if len(models) == 1:
        return next(iter(models.values()))
    if not models:
        raise BadInput(f"the run {run_id} has no model; name a run that trained one, or a registered model")
    listed = ", ".join(f"{label}: {model}" for label, model in models.items())
    raise BadInput(f"the run {run_id} has {len(models)} models; name one of them: {listed}")


def _newest_output(run: Any) -> str:
    outputs = run.outputs.model_outputs if run.outputs else []
    return str(outputs[-1].model_id) if outputs else ""


def _registered(tracker: Tracker, name: str) -> str:
    registry = Registry(tracker)
    plain, _, which = name.partition("@")
    model = registry.find(plain)
    trained = _newest_trained(tracker, plain) if model is None and not which else ""
    if trained:
        return trained
    model = model or registry.existing(plain)
    version = _version(model, which)
    source = MODEL_ID.search(version.source)  # MLflow's database keeps no model_id
    if source is None:
        raise BadInput(f"version {version.number} of {plain} is of no model that was logged; train it again")
    return source[0]


def _version(model: Model, which: str) -> Version:
    """By its number or alias; the champion, else the newest when neither is given. Raises BadInput."""
    newest = model.versions[0].number if model.versions else 0
    numbers = {"": model.aliases.get(ALIAS, newest), **model.aliases}
    number = int(which) if which.isdecimal() else numbers.get(which, 0)
    version = model.version(number)
    if version is None:
        there = [f"@{one.number}" for one in model.versions[::-1]] + [f"@{alias}" for alias in model.aliases]
        asked = f"version or alias {which!r}" if which else "version"
        raise BadInput(f"{model.name} has no {asked}; there are {', '.join(there) or 'none: train one'}")
    return version


def _newest_trained(tracker: Tracker, name: str) -> str:
    """The newest model that a step of an experiment of this name logged; empty where there is none."""
    client = tracker.client
    experiments = [one.experiment_id for one in client.search_experiments()]
    start = re.sub(NO_NAME, "-", f"{name}/")
    found = client.search_logged_models(
        experiments,
        filter_string=f"name LIKE '{start}%'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        max_results=50,
    )
    return next((str(model.model_id) for model in found if model.name.removeprefix(start).isidentifier()), "")


def fetch_model(tracker: Tracker, model_id: str) -> Path:
    """The folder of a logged model in MLflow's format, downloaded once. Raises BadInput without one."""
    from mlflow.artifacts import download_artifacts

    folder = state() / "models" / model_id
    if folder.is_dir():
        os.utime(folder)  # it is in use: `overnight clean` keeps it
        return folder
    folder.parent.mkdir(exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        where = tracker.client.get_logged_model(model_id).artifact_location
        got = download_artifacts(artifact_uri=where, dst_path=str(part), tracking_uri=tracker.uri)
        with suppress(OSError):  # another command was faster
            Path(got).replace(folder)
    except mlflow_error() as error:
        raise BadInput(f"the model {model_id} does not come from MLflow: {one_line(error)}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def artifact_in(folder: Path) -> Path | None:
    """The model artifact in a folder: itself, in MLflow's format, or as a step handed it on; else None."""
    places = (folder, *sorted(folder.glob("artifacts/*")), folder / "out" / "model")
    return next((place for place in places if (place / "weights.safetensors").is_file()), None)


def _interface(folder: Path) -> Interface | None:
    """None for a model that says nothing of what it takes."""
    try:
        return predictor.interface(folder)
    except BadInput:
        return None


def _signature(about: Interface) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema

    inputs = Schema([_column(column) for column in about.inputs])
    outputs = Schema([_column(column) for column in about.outputs])
    options = [ParamSpec(name, "double", default) for name, default in about.options.items()]
    params: Any = ParamSchema(options) if options else None
    signature = ModelSignature(inputs, outputs, params)
    # The model itself checks what it is given: MLflow's own check refuses the whole number 3 for a double.
    signature._is_signature_from_type_hint = True
    return signature


def _column(column: Column) -> Any:
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import AnyType, Array

    if column.type == "any":
        return ColSpec(AnyType(), column.name)  # type: ignore[no-untyped-call]
    plain: Any = DataType[column.type]
    depth = column.dimensions[0]
    return ColSpec(reduce(lambda inner, _: Array(inner), range(depth), plain), column.name)


def _description(about: Interface) -> str:
    """For the model's page: what it is, and what goes in and comes out."""
    inputs = ", ".join(f"`{column.name}` ({column.type})" for column in about.inputs)
    outputs = ", ".join(f"`{column.name}`" for column in about.outputs)
    options = "".join(f"\n\nOption `{name}`: {value:g} by default." for name, value in about.options.items())
    return f"{about.about}.\n\nIn: {inputs}.\n\nOut: {outputs}.{options}"[:MOST]
