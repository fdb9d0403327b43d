"""MLflow's server in one process.

MLflow's own command keeps a second process of 260 MB beside it, which a kill -9 would leave behind.
"""

import argparse
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

from overnight.services.settings import HOST


def main(argv: list[str] | None = None) -> int:
    """Serve a sqlite database and a folder of artifacts on this machine, until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upgrade", action="store_true", help="the database is from another version")
    arguments = parser.parse_args(argv)
    arguments.artifacts.mkdir(parents=True, exist_ok=True)
    _serve(f"sqlite:///{arguments.database}", arguments.artifacts, arguments.port, arguments.upgrade)
    return 0


def _serve(database: str, artifacts: Path, port: int, upgrade: bool) -> None:
    import uvicorn
    from mlflow.server import constants as server

    hosts = [f"{name}:{port}" for name in (HOST, "localhost")]
    os.environ |= {
        server.BACKEND_STORE_URI_ENV_VAR: database,
        server.REGISTRY_STORE_URI_ENV_VAR: database,
        server.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        server.SERVE_ARTIFACTS_ENV_VAR: "true",
        server.ARTIFACTS_DESTINATION_ENV_VAR: str(artifacts),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{h}" for h in hosts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes that schedule language model judges
    }
    _prepare(database, upgrade)
    warnings.filterwarnings("ignore", message="starlette.middleware.wsgi")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host=HOST,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=3,
    )


def _prepare(database: str, upgrade: bool) -> None:
    """Tables before the first request: two requests that create them at once would break each other."""
    from mlflow.server.handlers import initialize_backend_stores

    if upgrade:
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", database], check=True)
    initialize_backend_stores(database, database, "mlflow-artifacts:/")


if __name__ == "__main__":
    sys.exit(main())
