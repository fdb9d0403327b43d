"""`python -m overnight.services.server prefect|mlflow --port N`: a server in one process, until SIGTERM.

Their own commands keep a second process (MLflow: 260 MB), which a kill -9 would leave behind. In front of
both stands LocalOnly.
"""

import argparse
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any

from overnight.services.settings import HOST
from overnight.tracking import backlog

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ARTIFACTS = "mlflow-artifacts:/"  # files go through the server


class LocalOnly:
    """Refuse what names another host or comes from another page (403), over HTTP and websockets.

    Else a web page whose name is made to lead to 127.0.0.1 could start deployments.
    """

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}
        self.origins = {b"http://" + host for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.is_local(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: 403
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only for pages and programs of this machine"})

    def is_local(self, headers: list[tuple[bytes, bytes]]) -> bool:
        hosts = [value.lower() for name, value in headers if name.lower() == b"host"]
        origins = {value.lower() for name, value in headers if name.lower() == b"origin"}
        return len(hosts) == 1 and hosts[0] in self.hosts and origins <= self.origins


def main() -> int:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=("prefect", "mlflow"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", type=Path, help="of MLflow")
    parser.add_argument("--artifacts", type=Path, help="of MLflow")
    parser.add_argument("--upgrade", action="store_true", help="MLflow's database is from another version")
    arguments = parser.parse_args()
    app = _prefect() if arguments.server == "prefect" else _mlflow(arguments)
    uvicorn.run(
        LocalOnly(app, arguments.port),
        host=HOST,
        port=arguments.port,
        log_level="warning",
        timeout_graceful_shutdown=3,
    )
    return 0


def _prefect() -> App:
    from prefect.server.api.server import create_app

    return create_app(final=True)


def _mlflow(arguments: argparse.Namespace) -> App:
    from mlflow.server import constants as server
    from mlflow.server.handlers import initialize_backend_stores

    arguments.artifacts.mkdir(parents=True, exist_ok=True)
    if not arguments.database.exists():  # new, or removed: then the runs in .overnight/steps are sent again
        backlog.enqueue_all(f"http://{HOST}:{arguments.port}")
    database = f"sqlite:///{arguments.database}"
    hosts = [f"{name}:{arguments.port}" for name in (HOST, "localhost")]
    os.environ |= {
        server.BACKEND_STORE_URI_ENV_VAR: database,
        server.REGISTRY_STORE_URI_ENV_VAR: database,
        server.ARTIFACT_ROOT_ENV_VAR: ARTIFACTS,
        server.SERVE_ARTIFACTS_ENV_VAR: "true",
        server.ARTIFACTS_DESTINATION_ENV_VAR: str(arguments.artifacts),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{h}" for h in hosts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes that schedule language model judges
    }
    if arguments.upgrade:
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", database], check=True)
    # Tables before the first request: two requests that create them at once would break each other.
    initialize_backend_stores(database, database, ARTIFACTS)
    warnings.filterwarnings("ignore", message="starlette.middleware.wsgi")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    app: App = import_module("mlflow.server.fastapi_app").app  # which reads these variables
    return app


if __name__ == "__main__":
    sys.exit(main())
