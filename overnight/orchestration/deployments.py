"""Where Prefect enters: one flow for each file of flows/, for `overnight run` and for deployments (prefect.yaml) alike."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

from httpx import HTTPError
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed, Failed

from overnight import locks, paths, services
from overnight.config import read
from overnight.errors import ConfigError, OvernightError, StepFailed
from overnight.services import flow_processes, orphans
from overnight.services.definitions import answers
from overnight.services.identity import Identity
from overnight.services.settings import settings


@flow(flow_run_name="{config}")
def etl(config: str = "configs/etl.yaml", overrides: list[str] = []) -> Any:  # noqa: B006 - Prefect shows the default in its UI
    """Tables: join, type, check, profile, and a baseline."""
    return _enter("etl", config, overrides)


@flow(flow_run_name="{config}")
def vision(config: str = "configs/vision.yaml", overrides: list[str] = []) -> Any:  # noqa: B006
    """Images: a network is trained to tell classes apart."""
    return _enter("vision", config, overrides)


@flow(flow_run_name="{config}")
def detect(config: str = "configs/detect.yaml", overrides: list[str] = []) -> Any:  # noqa: B006
    """Images: a detector is trained to find objects."""
    return _enter("detect", config, overrides)


@flow(flow_run_name="{config}")
def graph(config: str = "configs/graph.yaml", overrides: list[str] = []) -> Any:  # noqa: B006
    """Graphs: a network is trained to label nodes."""
    return _enter("graph", config, overrides)


@flow(flow_run_name="{config}")
def agent(config: str = "configs/agent.yaml", overrides: list[str] = []) -> Any:  # noqa: B006
    """Environments: an agent learns to act."""
    return _enter("agent", config, overrides)


@flow(flow_run_name="{config}")
def nightly(config: str = "configs/nightly.yaml", overrides: list[str] = []) -> Any:  # noqa: B006
    """The whole chain; a night never overlaps itself."""
    return _enter("nightly", config, overrides)


AWAY_S, HURRIED_S, AGAIN_S = 180.0, 5.0, 0.5  # the first: a server that is started again on a busy machine
BROKE = "Flow run encountered an exception:"  # how Prefect begins the message of such an end
flows = {"etl": etl, "vision": vision, "detect": detect, "graph": graph, "agent": agent, "nightly": nightly}


def flow_of(name: str) -> Flow[..., Any]:
    """The flow of a file of flows/: one of the deployments above, or one of somebody's own, which `overnight run` starts as well."""

    def own(config: str, overrides: list[str]) -> Any:
        return _enter(name, config, overrides)

    found: Flow[..., Any] | None = flows.get(name)
    return found or flow(name=name, flow_run_name="{config}")(own)


def run_here(name: str, path: Path, overrides: Sequence[str] = ()) -> "State[Any]":
    """Run a config in this process; raises Held when it is a night that runs already."""
    with _alone(name, path):
        state = cast("State[Any]", flow_of(name)(paths.shown(path), list(overrides), return_state=True))
    _raise_what_broke(state)
    return state


def _raise_what_broke(state: "State[Any]") -> None:
    """A run that ended by an exception has printed no table: its reason is raised, so that somebody tells it."""
    reason = state.message or ""
    if not reason.startswith(BROKE):
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, OvernightError):
        raise error
    raise StepFailed(
        f"the run broke off: {reason.removeprefix(BROKE).strip()}; the logs of the services are in .overnight/logs"
    )


def _enter(name: str, config: str, overrides: list[str]) -> Any:
    """The body of every flow; while this process lives, the supervisor knows that the run does."""
    with flow_processes.running(str(flow_run.id)) as life:
        orphans.keep_talking()
        _name()
        state = _by_deployment(name, config, overrides) if deployment.id else _by_hand(config, overrides)
        until_it_answers(HURRIED_S if state.is_cancelled() else AWAY_S)
        life.ends(flow_processes.End(state.type.value, str(state.name), state.message or ""))
    if (
        deployment.id and not state.is_completed()
    ):  # told already: to return it to a worker would log a traceback of Prefect's own
        raise Abort(state.message)
    return state


def until_it_answers(patience_s: float) -> bool:
    """Wait for Prefect's server where it is away when a run ends: its client would give up at once, and the end would not be told."""
    until = time.monotonic() + patience_s
    while not (there := answers(f"{settings().prefect}/health")) and time.monotonic() < until:
        time.sleep(AGAIN_S)
    return there


def _name() -> None:
    """Say in Prefect whose run this is, for whoever finds it dead; when that cannot be said, a file and the process itself have to do."""
    with suppress(OSError, HTTPError), get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {**Identity.mine().words()})


def _by_hand(config: str, overrides: list[str]) -> "State[Any]":
    from overnight.orchestration.pipeline import execute

    return execute(paths.root() / config, overrides)


def _by_deployment(name: str, config: str, overrides: list[str]) -> "State[Any]":
    """Check the parameters, make sure of the services, run, and tell Prefect about an end that is no success."""
    from overnight.orchestration.pipeline import execute

    try:
        path = checked(name, config, overrides)
        with services.ensure(f"{deployment.name} ({config})"), _alone(name, path):
            state = execute(path, overrides)
    except locks.Held as held:
        state = Cancelled(message=f"not started, since a night never overlaps itself: {held.by}")
    except OvernightError as error:
        state = Failed(message=str(error))
    if (why := flow_processes.orphaned(str(flow_run.id))) and state.is_cancelled():  # nobody cancelled it
        state = Crashed(message=why)
    if not state.is_completed():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, state, force=True)
    return state


def checked(name: str, config: str, overrides: Sequence[str] = ()) -> Path:
    """The file that a deployment was asked to run: inside the checkout, and of this flow. Raises ConfigError."""
    root = paths.root().resolve()
    path = (root / config).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(
            f"config {config!r}: a deployment runs files inside {root} only; use `overnight run` for others"
        )
    values, _ = read(path, overrides)
    if values.get("flow") in flows and values["flow"] != name:
        raise ConfigError(
            f"{paths.shown(path)}: is a config of {values['flow']!r}; run it by the deployment {values['flow']}/{values['flow']}"
        )
    return path


def _alone(name: str, path: Path) -> AbstractContextManager[None]:
    """For a night: a kernel lock on its config, which this process holds to its end, however that comes."""
    if name != "nightly":
        return nullcontext()
    lock = paths.state() / "locks" / f"{paths.shown(path).replace('/', '-')}.lock"
    return locks.hold(lock, f"{paths.shown(path)} as {flow_run.name or 'a run by hand'}")
