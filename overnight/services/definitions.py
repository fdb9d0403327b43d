"""The four services: how each is started, and how its health is checked."""

import json
import socket
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overnight import paths
from overnight.services import backup
from overnight.services.settings import HOST, POOL, Settings

WORKER = socket.gethostname()
AT_ONCE = 4  # flow runs of the worker; what runs on the card at once is decided by its leases
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


@dataclass(frozen=True)
class ServiceSpec:
    """One service. `needs`: those that are well before it starts; `once`: a program that ends.

    command: arguments of Python.
    """

    name: str
    command: list[str]
    healthy: Callable[[float], bool]  # given the time of its start
    address: str = ""
    port: int | None = None
    variable: str = ""  # the setting that moves the port
    needs: tuple[str, ...] = ()
    once: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def services(now: Settings) -> list[ServiceSpec]:
    """Those that are ours to start, in order."""
    first = [_prefect(now)] if now.own_prefect else []
    first += [_mlflow(now)] if now.own_mlflow else []
    needs = ("prefect",) if now.own_prefect else ()
    register = ["-m", "overnight.services.register"]
    deployments = ServiceSpec("deployments", register, lambda _: True, needs=needs, once=True)
    return [*first, deployments, _worker(now)]


def _prefect(now: Settings) -> ServiceSpec:
    origins = ",".join(f"http://{name}:{now.prefect_port}" for name in (HOST, "localhost"))
    env = {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(now.prefect_port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    command = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(now.prefect_port)]
    address = now.prefect.removesuffix("/api")
    return ServiceSpec(
        "prefect",
        command,
        lambda _: answers(f"{now.prefect}/health"),
        address,
        now.prefect_port,
        "OVERNIGHT_PREFECT_PORT",
        environment=env,
    )


def _mlflow(now: Settings) -> ServiceSpec:
    database = mlflow_database()
    command = ["-m", "overnight.services.mlflow_server", "--port", str(now.mlflow_port)]
    command += ["--database", str(database), "--artifacts", str(paths.mlruns() / "artifacts")]
    command += ["--upgrade"] if backup.due("mlflow", database) else []
    return ServiceSpec(
        "mlflow",
        command,
        lambda _: answers(f"{now.mlflow}/health"),
        now.mlflow,
        now.mlflow_port,
        "OVERNIGHT_MLFLOW_PORT",
    )


def _worker(now: Settings) -> ServiceSpec:
    command = ["-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", WORKER, "--limit", str(AT_ONCE)]
    env = {"PREFECT_WORKER_QUERY_SECONDS": "5"}
    return ServiceSpec(
        "worker",
        command,
        lambda since: not now.own_prefect or _online(now, since),
        needs=("deployments",),
        environment=env,
    )


def databases(now: Settings) -> list[tuple[str, Path]]:
    """(program, file) of the databases that are ours."""
    prefect = [("prefect", paths.services() / "prefect" / "prefect.db")] if now.own_prefect else []
    return prefect + ([("mlflow", mlflow_database())] if now.own_mlflow else [])


def mlflow_database() -> Path:
    return paths.mlruns() / "mlflow.db"


def answers(url: str) -> bool:
    try:
        with _opener.open(url, timeout=3) as response:
            return bool(response.status == 200)
    except OSError:  # URLError, timeouts, resets
        return False


def _online(now: Settings, since: float) -> bool:
    try:
        found = ask_prefect(now, f"/work_pools/{POOL}/workers/filter", {})
    except (OSError, ValueError):
        return False
    heard = [
        datetime.fromisoformat(w["last_heartbeat_time"]).timestamp() for w in found if w["name"] == WORKER
    ]
    return max(heard, default=0) > since


def ask_prefect(now: Settings, path: str, body: Any, method: str = "POST") -> Any:
    """A request to Prefect's API, with the token that its CSRF protection wants."""
    client = str(uuid.uuid4())
    token = get(f"{now.prefect}/csrf-token?client={client}")["token"]
    return ask(
        f"{now.prefect}{path}", body, {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}, method
    )


def get(url: str) -> Any:
    """The JSON that a server answers; raises OSError."""
    with _opener.open(url, timeout=3) as response:
        return json.load(response)


def ask(url: str, body: Any, headers: Mapping[str, str] = MappingProxyType({}), method: str = "POST") -> Any:
    """A request with JSON, and the JSON that comes back, if any; raises OSError."""
    content = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), content, method=method)  # noqa: S310
    with _opener.open(request, timeout=5) as response:
        answer = response.read()
        return json.loads(answer) if answer else None
