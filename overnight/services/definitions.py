"""The four services: how each is started, and how its health is checked."""

import json
import os
import shutil
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overnight import paths
from overnight.errors import one_line
from overnight.processes import port_is_free, port_listener
from overnight.services import backup
from overnight.services.settings import HOST, POOL, Settings

WORKER = socket.gethostname()
NO_ANSWER = "gives no answer"
NO_WRITES = "takes no writes"
ROOM_MIB = 32  # less on the disk of a database counts as full
SET_TAG = "/api/2.0/mlflow/experiments/set-experiment-tag"
AT_ONCE = 4  # flow runs of the worker; what runs on the card at once is decided by its leases
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


@dataclass(frozen=True)
class ServiceSpec:
    """One service. `needs`: those that are well before it starts; `once`: a program that ends.

    command: arguments of Python; problem: why it cannot do its work, empty when it can, given what `before`
    returned at its start.
    """

    name: str
    command: list[str]
    problem: Callable[[Any], str]
    before: Callable[[], Any] = lambda: None
    database: Path | None = None
    address: str = ""
    port: int | None = None
    variable: str = ""  # the setting that moves the port
    needs: tuple[str, ...] = ()
    once: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def services(now: Settings) -> list[ServiceSpec]:
    first = [_prefect(now)] if now.own_prefect else []
    first += [_mlflow(now)] if now.own_mlflow else []
    needs = ("prefect",) if now.own_prefect else ()
    register = ["-m", "overnight.services.register"]
    deployments = ServiceSpec("deployments", register, lambda _: "", needs=needs, once=True)
    return [*first, deployments, _worker(now)]


def _prefect(now: Settings) -> ServiceSpec:
    origins = ",".join(f"http://{name}:{now.prefect_port}" for name in (HOST, "localhost"))
    database = paths.services() / "prefect" / "prefect.db"
    connection = f"sqlite+aiosqlite:///{database}"
    env = {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(now.prefect_port),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": connection,
        "PREFECT_API_DATABASE_CONNECTION_URL": connection,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    command = ["-m", "overnight.services.server", "prefect", "--port", str(now.prefect_port)]
    address = now.prefect.removesuffix("/api")
    return ServiceSpec(
        "prefect",
        command,
        # A token is a write.
        lambda _: _problem(lambda: get(f"{now.prefect}/csrf-token?client=overnight")),
        database=database,
        address=address,
        port=now.prefect_port,
        variable="OVERNIGHT_PREFECT_PORT",
        environment=env,
    )


def _mlflow(now: Settings) -> ServiceSpec:
    database = paths.mlruns() / "mlflow.db"
    command = ["-m", "overnight.services.server", "mlflow", "--port", str(now.mlflow_port)]
    command += ["--database", str(database), "--artifacts", str(paths.mlruns() / "artifacts")]
    command += ["--upgrade"] if backup.due("mlflow", database) else []
    return ServiceSpec(
        "mlflow",
        command,
        lambda _: _problem(lambda: ask(f"{now.mlflow}{SET_TAG}", _new_tag())),
        database=database,
        address=now.mlflow,
        port=now.mlflow_port,
        variable="OVERNIGHT_MLFLOW_PORT",
    )


def _new_tag() -> dict[str, str]:
    """Another value each time: one that is there already is not written."""
    return {"experiment_id": "0", "key": "mlflow.overnight.alive", "value": uuid.uuid4().hex}


def _worker(now: Settings) -> ServiceSpec:
    command = ["-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", WORKER, "--limit", str(AT_ONCE)]
    env = {"PREFECT_WORKER_QUERY_SECONDS": "5"}
    return ServiceSpec(
        "worker",
        command,
        # Compared with itself, not with a clock.
        lambda before: "" if not now.own_prefect or _heartbeat(now) not in ("", before) else NO_ANSWER,
        lambda: _heartbeat(now) if now.own_prefect else "",
        needs=("deployments",),
        environment=env,
    )


def databases(now: Settings) -> list[tuple[str, Path]]:
    return [(spec.name, spec.database) for spec in services(now) if spec.database]


def answers(url: str) -> bool:
    try:
        with _opener.open(url, timeout=3) as response:
            return bool(response.status == 200)
    except OSError:  # URLError, timeouts, resets
        return False


def _problem(write: Callable[[], object]) -> str:
    try:
        write()
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        return f"{NO_WRITES}: {one_line(said) or error}" if error.code >= 500 else ""
    except (OSError, ValueError):
        return NO_ANSWER
    return ""


def database_problem(path: Path | None) -> str:
    """What is in the way of every write to a database, as far as it is seen from outside."""
    if path is None:
        return ""
    place = next(one for one in (path, *path.parents) if one.exists())
    if place != path and path.parent.is_symlink():
        return f"{paths.shown(path.parent)} leads to a folder that is not there"
    if not all(os.access(one, os.W_OK) for one in (place, place if place.is_dir() else place.parent)):
        return f"{paths.shown(path)} cannot be written: the file, its folder or its file system is read-only"
    free_mib = shutil.disk_usage(place).free >> 20
    return f"the disk of {paths.shown(path)} is full: {free_mib} MiB are free" if free_mib < ROOM_MIB else ""


def port_problem(spec: ServiceSpec) -> str:
    if not spec.port or port_is_free(spec.port):
        return ""
    lasting = ", or change api.url in prefect.toml for good" if spec.name == "prefect" else ""
    taken = f"port {spec.port} is taken by {port_listener(spec.port)}"
    return f"{taken}; stop that, or set {spec.variable} to another port{lasting}"


def _heartbeat(now: Settings) -> str:
    try:
        found = ask_prefect(now, f"/work_pools/{POOL}/workers/filter", {})
    except (OSError, ValueError):
        return ""
    return max((str(w["last_heartbeat_time"]) for w in found if w["name"] == WORKER), default="")


def ask_prefect(now: Settings, path: str, body: Any, method: str = "POST") -> Any:
    client = str(uuid.uuid4())
    token = get(f"{now.prefect}/csrf-token?client={client}")["token"]
    return ask(
        f"{now.prefect}{path}", body, {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}, method
    )


def get(url: str) -> Any:
    with _opener.open(url, timeout=3) as response:
        return json.load(response)


def ask(url: str, body: Any, headers: Mapping[str, str] = MappingProxyType({}), method: str = "POST") -> Any:
    content = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), content, method=method)  # noqa: S310
    with _opener.open(request, timeout=5) as response:
        answer = response.read()
        return json.loads(answer) if answer else None
