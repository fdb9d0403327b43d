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

ARTIFACTS = "mlflow-artifacts:/"  # files go through the server


def main() -> int:
    """Serve a sqlite database and a folder of artifacts on this machine, until SIGTERM."""
    import uvicorn
    from mlflow.server import constants as server
    from mlflow.server.handlers import initialize_backend_stores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upgrade", action="store_true", help="the database is from another version")
    arguments = parser.parse_args()
    arguments.artifacts.mkdir(parents=True, exist_ok=True)
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
    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host=HOST,
        port=arguments.port,
        log_level="warning",
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
