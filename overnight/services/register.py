"""What Prefect's server has to know: the work pool, the card's limit, and the deployments of prefect.yaml. A program of its own."""

import asyncio
import hashlib
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml

from overnight import paths
from overnight.errors import ServiceError
from overnight.services import vram_limit
from overnight.services.settings import POOL, folder, settings


def fingerprint() -> str:
    """Of everything that is registered: as long as it stays, a start has nothing to tell the server."""
    parts = [
        version("prefect"),
        sys.executable,
        str(paths.root()),
        settings().prefect,
        _database(),
        *map(str, vram_limit.cards()),
    ]
    parts += [
        p.read_text()
        for p in (paths.root() / "prefect.yaml", paths.root() / "overnight" / "deployments.py")
        if p.is_file()
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main() -> int:
    """Register, unless this database has been told it all before. Exit code 2 when prefect.yaml is not what it should be."""
    try:
        _check(paths.root() / "prefect.yaml")
    except ServiceError as error:
        print(error, flush=True)
        return error.exit_code
    told = folder() / "registered"
    if not told.is_file() or told.read_text() != fingerprint():
        asyncio.run(_pool_and_limits())
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], cwd=paths.root(), check=False
        )
        if done.returncode:
            return done.returncode
        told.write_text(fingerprint())
    return 0


def _check(path: Path) -> None:
    """Said here in one line; Prefect would say it in a page, or take a broken file for an empty one."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        missing = [
            key for entry in entries for key in ("name", "entrypoint", "work_pool") if key not in entry
        ]
    except FileNotFoundError:
        raise ServiceError(f"prefect.yaml: not found in {path.parent}; it says what is deployed") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ServiceError(
            f"prefect.yaml: not readable as a list of deployments: {' '.join(str(error).split())}"
        ) from None
    if missing:
        raise ServiceError(f"prefect.yaml: a deployment has no {' and no '.join(dict.fromkeys(missing))}")


def _database() -> str:
    """A new database has to be told again; one that is not ours, each time."""
    path = folder() / "prefect" / "prefect.db"
    return str(path.stat().st_ino) if settings().own_prefect and path.exists() else str(time.time())


async def _pool_and_limits() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    fields = template["variables"]["properties"]
    fields["command"]["default"] = (
        f"{shlex.quote(sys.executable)} -m prefect.engine"  # the signal reaches the flow alone, not its steps
    )
    fields["working_dir"]["default"] = str(paths.root())
    async with get_client() as client:
        await client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True
        )
        for card in vram_limit.cards():
            await client.upsert_global_concurrency_limit_by_name(
                vram_limit.name(card), max(1, vram_limit.slots(card.budget_mib))
            )


if __name__ == "__main__":
    sys.exit(main())
