"""Addresses, folders and the environment that every process of ours gets."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from overnight import locks, paths
from overnight.errors import ServiceError
from overnight.files import read_json
from overnight.processes import without_proxies

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4207, 5007
POOL = "overnight"
ENTRYPOINT = "overnight.orchestration.prefect.deployment_"  # of a deployment, without the flow's name
SOME_BROKEN = 3  # exit code of the registration: some flows are broken, the others are registered
SILENCE = {  # no library of ours calls home
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Settings:
    prefect: str  # address of Prefect's API
    mlflow: str  # MLflow's tracking URI
    own_prefect: bool = True
    own_mlflow: bool = True

    @property
    def prefect_port(self) -> int:
        return urlsplit(self.prefect).port or PREFECT_PORT

    @property
    def mlflow_port(self) -> int:
        return urlsplit(self.mlflow).port or MLFLOW_PORT

    @classmethod
    def asked(cls, env: Mapping[str, str]) -> Self:
        prefect = f"http://{HOST}:{_port('OVERNIGHT_PREFECT_PORT', env) or _toml_port() or PREFECT_PORT}/api"
        mlflow = f"http://{HOST}:{_port('OVERNIGHT_MLFLOW_PORT', env) or MLFLOW_PORT}"
        theirs = env.get("PREFECT_API_URL", "").rstrip("/") or prefect
        tracking = env.get("MLFLOW_TRACKING_URI", "").rstrip("/") or mlflow
        return cls(theirs, tracking, same(theirs, prefect), same(tracking, mlflow))


def settings() -> Settings:
    """As the running supervisor has them, else as the next one will."""
    asked = Settings.asked(os.environ)
    saved = read_state().get("settings")
    if not saved or not locks.holder(supervisor_lock()):
        return asked
    running = Settings(**saved)
    # A server that is named in this shell and is not ours wins over the one that runs here.
    prefect = asked if not asked.own_prefect and not same(asked.prefect, running.prefect) else running
    mlflow = asked if not asked.own_mlflow and not same(asked.mlflow, running.mlflow) else running
    return Settings(prefect.prefect, mlflow.mlflow, prefect.own_prefect, mlflow.own_mlflow)


def environment() -> dict[str, str]:
    """For this process and those it starts, before prefect or mlflow is imported."""
    now = settings()
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    ours = now.own_prefect and now.own_mlflow
    names = [name for name in given.split(",") if name.strip() and not ours]
    local = ",".join(dict.fromkeys([*names, HOST, "localhost"]))  # never asked through a proxy
    prefect = {"PREFECT_API_URL": now.prefect, "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}
    if now.own_prefect:
        prefect["PREFECT_HOME"] = str(paths.services() / "prefect")
    return {
        **SILENCE,
        **prefect,
        "NO_PROXY": local,
        "no_proxy": local,
        "MLFLOW_TRACKING_URI": now.mlflow,
    }


def local_environment(env: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes of ours that talk to the servers; for this machine's it has no proxies."""
    now = settings()
    ours = now.own_prefect and now.own_mlflow
    kept = {name: value for name, value in env.items() if not name.startswith("PREFECT__")}
    kept.pop("PREFECT_PROFILE", None)
    return (without_proxies(kept) if ours else kept) | environment()


def enter() -> None:
    """This process gets such an environment, before prefect or mlflow is imported."""
    now = local_environment(os.environ)
    os.environ.clear()
    os.environ.update(now)


def state_file() -> Path:
    return paths.services() / "state.json"


def supervisor_lock() -> Path:
    return paths.services() / "supervisor.lock"


def start_lock() -> Path:
    return paths.services() / "start.lock"


def keep_file() -> Path:
    """Exists while the services are to stay, whether used or not."""
    return paths.services() / "keep"


def request_file() -> Path:
    """The environment of who asks the supervisor to register anew, and to start what failed; then removed."""
    return paths.services() / "request.json"


def users_folder() -> Path:
    return paths.services() / "users"


def read_state() -> dict[str, Any]:
    return read_json(state_file())


def same(one: str, other: str) -> bool:
    one, other = (url.rstrip("/").replace("//localhost", f"//{HOST}") for url in (one, other))
    return one == other


def _port(variable: str, env: Mapping[str, str]) -> int | None:
    text = env.get(variable, "").strip()
    if not text:
        return None
    if not (text.isdigit() and 1024 <= int(text) <= 65535):
        raise ServiceError(f"{variable}={text}: expected a port between 1024 and 65535")
    return int(text)


def _toml_port() -> int | None:
    path = paths.root() / "prefect.toml"
    try:
        url = tomllib.loads(path.read_text(encoding="utf-8")).get("api", {}).get("url")
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise ServiceError(f"{paths.shown(path)}: not readable: {error}") from None
    if url is None:
        return None
    parts = urlsplit(str(url))
    if parts.hostname not in (HOST, "localhost") or not parts.port:
        raise ServiceError(
            f"{paths.shown(path)}: api.url = {url!r}: expected http://{HOST}:PORT/api; "
            "a server elsewhere is named by $PREFECT_API_URL"
        )
    return parts.port
