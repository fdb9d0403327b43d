"""The record of a run, and of a night its report and message, made of the run's steps."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from overnight.best_effort import best_effort
from overnight.config import Experiment
from overnight.gpu.card import Card
from overnight.gpu.device_usage import EnergyMeter
from overnight.memory.usage import Usage
from overnight.night import notify, record, report
from overnight.night.settings import NightValues
from overnight.orchestration.launcher import Stop
from overnight.orchestration.planning import Forecast
from overnight.orchestration.terminal import Display, StepRow
from overnight.processes import Identity
from overnight.step import Step
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import Uploader

Page = tuple[Path, report.Headline]  # where a report lies, and its first lines


class StepOfRun(Protocol):
    """pipeline.Pending."""

    label: str
    step: Step[Any, Any]
    row: StepRow
    key: str
    uploader: Uploader | None
    changed: list[str]
    reason: str
    why: str
    promotion: dict[str, Any] | None

    @property
    def since(self) -> record.Earlier | None: ...
    @property
    def result(self) -> Usage | None: ...
    @property
    def failure(self) -> record.Classified | None: ...


class Pages(Protocol):
    """pipeline.Engine."""

    def show_report(self, text: str) -> None: ...


class Run(Protocol):
    """pipeline.PipelineRun."""

    experiment: Experiment
    card: Card
    tracker: Tracker
    own: Uploader
    display: Display
    stop: Stop
    started: float
    energy: EnergyMeter | None
    forecast: Forecast
    page: Page | None

    @property
    def engine(self) -> Pages: ...
    @property
    def pending(self) -> Sequence[StepOfRun]: ...


def record_of(run: Run, state: record.Ending, message: str) -> record.NightRecord:
    own = run.own.record
    values = run.experiment
    ended: dict[str, Any] = {}
    if run.energy:
        run.energy.sample()
    if state != "running":
        ended = {"ended": time.time(), **record.of_timeline(run.card, run.started)}
    return record.NightRecord(
        experiment=own.experiment,
        config=own.params.get("config", ""),
        flow=own.tags.get("overnight.flow", ""),
        started=run.started,
        seen=time.time(),
        outcome=state,
        message=message,
        link=_link(run, run.own),
        prefect=own.tags.get("prefect.flow_run", ""),
        commit=own.tags.get("mlflow.source.git.commit", ""),
        process=Identity.mine().tags(),
        card=record.of_card(run.card),
        energy_wh=run.energy and run.energy.watt_hours,
        expected_end=run.forecast.expected,
        left_out=run.forecast.steps,
        price_per_kwh=values.price_per_kwh if isinstance(values, NightValues) else None,
        steps=tuple(_step_record(run, pending) for pending in list(run.pending)),
        **ended,
    )


def _step_record(run: Run, pending: StepOfRun) -> record.StepRecord:
    row = pending.row
    uploader = pending.uploader
    return record.StepRecord(
        label=pending.label,
        step=pending.step.address,
        gpu=pending.step.gpu,
        state=row.state,
        reason=pending.reason or pending.why,
        forecast_s=run.forecast.seconds(pending.label),
        began=row.began_at,
        ended=row.ended_at,
        scores=record.finite(row.scores),
        run_id=uploader.run_id if uploader else "",
        link=_link(run, uploader) if uploader else "",
        key=pending.key,
        folder=str(uploader.folder) if uploader else "",
        failure=record.failure(pending.failure),
        changed=tuple(pending.changed),
        promotion=pending.promotion,
        **record.memory(pending.result),
        **record.unchanged(pending.since),
    )


def _link(run: Run, uploader: Uploader) -> str:
    return run.tracker.link(uploader.run_id) if uploader.run_id else ""


def build(run: Run, state: record.Ending, message: str) -> None:
    """Build the page of a night, and show it in MLflow and Prefect. No failure of it reaches the night."""
    if not isinstance(run.experiment, NightValues):
        return
    with best_effort(lambda why: run.display.say(f"there is no report: {why}")):
        found = report.facts_of(record_of(run, state, message))
        path = report.build(run.own.folder.name, found, run.own.folder)
        page = str(run.own.folder / report.FILE)
        run.own.log({"event": "publish", "path": page, "folder": "", "at": time.time()})
        run.engine.show_report(report.markdown(found, path))
        run.page = path, report.headline(found)


def announce(run: Run) -> None:
    """Name the report, and send its first lines."""
    if run.page and isinstance(run.experiment, NightValues):
        path, headline = run.page
        run.display.say(f"report: {path}")
        with best_effort():
            for line in notify.send(run.experiment.notify, *headline, run.stop()):
                run.display.say(line)
