"""A month of nights of two small trainings, each started by the worker: kills, changed data, full disks, outages, nights that were slept through.

Both changes of summer time need a clock of their own: `python -m bench.night calendar`.
"""

import itertools
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from overnight import services
from overnight.files import read_json
from tests.chaos import flows_kill
from tests.chaos._house import OPEN, House, wait
from tests.chaos.case import Case, Measured
from tests.chaos.flows_kill import kill
from tests.chaos.flows_outage import accuracies, stopped, values_lost
from tests.chaos.shell import Disk
from tests.support.checkouts import backdate
from tests.test_end_to_end import ENTRY, stripes

EPOCHS = 400
NIGHT = """flow: nightly
seed: {seed}
experiments:
  - {{flow: vision, name: one, data: one, cnn: &net {{epochs: {epochs}, batch: 16, channels: 8, blocks: 1, checkpoint_s: 1}}}}
  - {{flow: vision, name: two, data: two, cnn: *net}}
"""
# The night of cron stands for all that were due before, so it is the last. `step` leaves its night failed: a night without a change of
# its own follows, which goes on from the checkpoint.
SCHEDULE = (
    *("plain", "worker", "step", "slept", "prefect", "everything", "full disk", "flow", "worker", "outage"),
    *("step", "plain", "everything", "flow", "prefect", "worker", "step", "slept", "everything", "flow"),
    *("full disk", "prefect", "worker", "step", "slept", "outage", "everything", "flow", "prefect", "worker"),
    *("step", "plain", "everything", "flow", "prefect", "cron"),
)
STARTED_AGAIN = ("flow", "worker", "everything")
DATA_CHANGES = (
    1,
    4,
    5,
    8,
    12,
    14,
    18,
    21,
    25,
    29,
)  # numbers of nights; in the others with an event the seed changes
PATIENCE_S = 900.0
GOES_ON = re.compile(r"goes on after optimizer step \d+ of \d+, epoch (\d+)")
BARS = {
    "nights": f"== {len(SCHEDULE)}",
    "kills": "== 25",
    "wrong": "== 0",  # another state, or other trainings, than the night should have
    "overlaps": "== 0",
    "open_runs": "== 0",
    "lost_metrics": "== 0",
    "models": ">= 1",  # of each training
    "repeated": "<= 0.05",  # epochs that were trained twice, of all
}


@dataclass
class Month:
    home: House
    disk: Disk
    rng: random.Random
    seed: int
    left: set[str] = field(default_factory=set)  # trainings that an earlier night did not end
    known: set[str] = field(default_factory=set)  # flow runs of earlier nights
    wrong: list[str] = field(default_factory=list)

    def write(self) -> None:
        text = NIGHT.format(seed=self.seed, epochs=EPOCHS)
        (self.home.root / "configs" / "nightly.yaml").write_text(text)

    def runs(self) -> list[dict[str, Any]]:
        """The night's flow runs; one that crashed is started again."""
        found = [run for run in self.home.flow_runs() if run["id"] not in self.known]
        return sorted(found, key=lambda run: str(run["start_time"]))

    def steps(self) -> list[Path]:
        return sorted((self.home.root / ".overnight" / "steps").glob("*train_cnn*/spec.json"))


# ------------------------------------------------------------------------------------------------ a night's events


def play(month: Month, event: str, changes_data: bool) -> None:
    """One night from its start to its end, and what it should have trained."""
    before = set(month.steps())
    changed = set(month.left)
    if changes_data:
        name = month.rng.choice(("one", "two"))
        _add_image(month, name)
        changed.add(name)
    elif event in EVENTS:
        month.seed += 1
        changed = {"one", "two"}
    month.write()
    {"cron": _cron, "slept": _slept}.get(event, _deployed)(month)
    if event in EVENTS:
        EVENTS[event](month, _training(month))
    started = 2 if event in STARTED_AGAIN else 1
    wait(lambda: _has_ended(month, started), f"the end of a night with {event}", PATIENCE_S)
    _judge(month, event, changed, before)
    month.known |= {run["id"] for run in month.runs()}


def _has_ended(month: Month, started: int) -> bool:
    states = [run["state_type"] for run in month.runs() if run["state_name"] != "Skipped"]
    return len(states) >= started and not set(states) & set(OPEN)


def _judge(month: Month, event: str, changed: set[str], before: set[Path]) -> None:
    states = [run["state_type"] for run in month.runs() if run["state_name"] != "Skipped"]
    wanted = ["COMPLETED"]
    if event == "step":
        wanted = ["FAILED"]
    if event in STARTED_AGAIN:
        wanted = ["CRASHED", "COMPLETED"]
    trained = {str(read_json(spec)["label"]).partition("/")[0] for spec in set(month.steps()) - before}
    if states != wanted or trained != changed:
        wrong = f"{event}: {states}, not {wanted}; trained {sorted(trained)}, not {sorted(changed)}"
        print(f"nights: {wrong}", flush=True)
        month.wrong.append(wrong)
    ended = {step for step in trained if _has_model(month, step)}
    month.left = changed - ended


def _has_model(month: Month, name: str) -> bool:
    """Whether the newest attempt at this training has one."""
    mine = [spec for spec in month.steps() if str(read_json(spec)["label"]).startswith(f"{name}/")]
    return bool(mine) and any(max(mine).parent.rglob("*.safetensors"))


def _add_image(month: Month, name: str) -> None:
    folder = month.home.root / "datasets" / name / "train" / "lying"
    there = sorted(folder.glob("*.png"))
    shutil.copy(there[0], folder / f"{len(there)}.png")
    with (folder / f"{len(there)}.png").open("ab") as file:
        file.write(os.urandom(8))


def _deployed(month: Month) -> None:
    month.home.deploy("nightly", flow="nightly")


def _cron(month: Month) -> None:
    """A minute of the schedule comes, and nobody does anything."""
    yaml = month.home.root / "prefect.yaml"
    text = yaml.read_text()
    due = datetime.now().astimezone() + timedelta(seconds=100)
    yaml.write_text(text.replace('cron: "30 3 * * *"', f'cron: "{due.minute} {due.hour} * * *"'))
    services.up()
    wait(month.runs, "the night of the schedule", 300)
    yaml.write_text(text)
    services.up()


def _slept(month: Month) -> None:
    """The machine was off at the times of three nights."""
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    found = wait(lambda: month.home.prefect("/flow_runs/filter", wanted)[2:] and True, "the scheduler")
    assert found
    runs = month.home.prefect("/flow_runs/filter", wanted)[:3]
    services.down(force=True)
    backdate(runs, (2, 1, 0))
    services.up()


def _training(month: Month) -> int:
    """The pid of the step that trains, up to two seconds after a checkpoint of its own."""
    began = time.time()
    checkpoints = month.home.root / ".overnight" / "checkpoints"

    def saved() -> int:
        fresh = any(path.stat().st_mtime > began for path in checkpoints.glob("*/*/*.json"))
        return next((holder.pid for holder in month.home.holders()), 0) if fresh else 0

    found: int = wait(saved, "a checkpoint", 300)
    time.sleep(month.rng.uniform(0, 2))
    return found


def _step(_month: Month, step: int) -> None:
    kill(step)


def _flow(month: Month, _step: int) -> None:
    kill(*(month.home.flow_process(run["id"]) for run in month.runs() if run["state_type"] in OPEN))


def _worker(month: Month, _step: int) -> None:
    kill(month.home.pid_of("worker"))


def _prefect(month: Month, _step: int) -> None:
    kill(month.home.pid_of("prefect"))


def _everything(month: Month, _step: int) -> None:
    """A power cut; a unit of systemd starts the services after it."""
    kill(*(process.pid for process in month.home.processes()))
    wait(lambda: not month.home.processes(), "the end of all processes")
    month.home.up()


def _full_disk(month: Month, _step: int) -> None:
    """MLflow's."""
    month.disk.fill()
    time.sleep(10)
    month.disk.cure()


def _outage(month: Month, _step: int) -> None:
    stopped("mlflow")(month.home)


EVENTS: dict[str, Callable[[Month, int], None]] = {
    "step": _step,
    "flow": _flow,
    "worker": _worker,
    "prefect": _prefect,
    "everything": _everything,
    "full disk": _full_disk,
    "outage": _outage,
}
KILLS = ("step", "flow", "worker", "prefect", "everything")


# ------------------------------------------------------------------------------------------------ all of them


def run(seed: int) -> Measured:
    home = flows_kill.house()
    services.down(force=True)
    disk = Disk(home)
    try:
        return _month(Month(home, disk, random.Random(seed), seed))
    finally:
        services.down(force=True)
        disk.close()


def _month(month: Month) -> Measured:
    for name in ("one", "two"):
        (month.home.root / "datasets" / f"{name}.yaml").write_text(ENTRY)
        stripes(month.home.root / "datasets" / name, 40)
    _add_image(month, "two")  # equal sets would be one training
    month.write()
    month.home.up()
    month.home.deploy("nightly", flow="nightly")
    wait(lambda: _has_ended(month, 1), "the first night", PATIENCE_S)
    month.known |= {run["id"] for run in month.runs()}
    for number, event in enumerate(SCHEDULE):
        print(f"{time.strftime('%H:%M:%S')} night {number + 1}: {event}", flush=True)
        play(month, event, number in DATA_CHANGES)
    wait(lambda: not month.home.open_runs(), "the runs to be closed", 120)
    epochs, repeated = _epochs(month)
    return {
        "nights": len(SCHEDULE),
        "kills": sum(event in KILLS for event in SCHEDULE),
        "data_changes": len(DATA_CHANGES),
        "wrong": len(month.wrong),
        "overlaps": _overlaps(month),
        "open_runs": len(month.home.open_runs()),
        "lost_metrics": values_lost(month.home, [spec.parent for spec in month.steps()]),
        "models": min(_models(month).values()),
        "epochs": epochs,
        "repeated": repeated / epochs,
    }


def _overlaps(month: Month) -> int:
    """Nights that began before an earlier one had ended."""
    runs = [run for run in month.home.flow_runs() if run["state_name"] != "Skipped"]
    times = sorted((run["start_time"], run["end_time"]) for run in runs)
    return sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(times))


def _epochs(month: Month) -> tuple[int, int]:
    """Epochs that were trained, and how many of them again: what a training had reached beyond the checkpoint that it went on from."""
    reached, trained, again = dict[str, int](), 0, 0
    for spec in month.steps():
        key = str(read_json(spec)["key"])
        log = spec.with_name("events.jsonl")
        goes_on = GOES_ON.search(log.read_text()) if log.exists() else None
        if goes_on:
            again += max(0, reached.get(key, 0) - int(goes_on[1]))
        epochs = [epoch for epoch, _value in accuracies(spec.parent)]
        trained += len(epochs)
        reached[key] = max([reached.get(key, 0), *epochs])
    return trained + again, again


def _models(month: Month) -> Counter[str]:
    """Of each training's key, how many attempts have saved a model."""
    found = Counter[str]()
    for spec in month.steps():
        found[str(read_json(spec)["key"])] += any(spec.parent.rglob("*.safetensors"))
    return found


def cases() -> list[Case]:
    what = "nights with kills, changed data, full disks, outages, and some that were slept through"
    return [Case("nights", what, run, BARS, limit_s=7200)]


def close() -> None:
    flows_kill.close()
