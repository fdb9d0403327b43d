"""Register at Prefect's server: the work pool, and a deployment for each file of flows/.

A program of its own, run at each start and at each `overnight up`. prefect.yaml holds the schedules.
"""

import asyncio
import hashlib
import json
import os
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zoneinfo import ZoneInfo

import yaml
from pydantic import Field, ValidationError, field_validator

from overnight import paths
from overnight.config import Values
from overnight.errors import ConfigError, ServiceError
from overnight.night.calendar import Policy
from overnight.services.settings import ENTRYPOINT, POOL, SOME_BROKEN, settings
from overnight.step import default_config, flow_names, load_pipeline

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule

POOL_VERSION = 2  # of the work pool, which is made anew when this changes
FORM = 'schedules: {nightly: {cron: "30 3 * * *", timezone: Europe/Berlin, missed: latest}}'


class Schedule(Values):
    cron: str
    timezone: str = Field("", validate_default=False, description="the machine's own when left out")
    missed: Policy = "latest"  # what becomes of runs that were due while the machine was off

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, name: str) -> str:
        if not _is_timezone(name):
            raise ValueError(f"unknown timezone {name!r}; write one as Europe/Berlin")
        return name


class Schedules(Values):
    MEANINGLESS: ClassVar[dict[str, str]] = {
        "deployments": "deployments are made of flows/; write the schedules alone"
    }

    schedules: dict[str, Schedule] = {}


@dataclass(frozen=True)
class Deployment:
    name: str
    about: str
    config: str  # that it runs unless it is given another
    cron: str = ""  # empty: runs when somebody asks for it
    timezone: str = ""
    broken: str = ""  # why the file cannot be loaded: what is registered of it stays


def deployments() -> list[Deployment]:
    names = flow_names()
    schedules = read_schedules(paths.root() / "prefect.yaml", names)
    found = []
    for name in names:
        about = broken = ""
        try:
            about = load_pipeline(name).__doc__ or ""
        except ConfigError as error:
            broken = " ".join(str(error).split())
        when = schedules.get(name, Schedule(cron=""))
        found.append(
            Deployment(
                name, about, default_config(name), when.cron, when.timezone or local_timezone(), broken
            )
        )
    return found


def read_schedules(path: Path, names: list[str]) -> dict[str, Schedule]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        found = Schedules.model_validate(values).schedules
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServiceError(f"prefect.yaml: not readable: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {' '.join(e['msg'].split())}" for e in error.errors()]
        raise ServiceError(f"prefect.yaml: {'; '.join(problems)}; write it as {FORM}") from None
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ServiceError(
            f"prefect.yaml: schedules: no flow is called {', '.join(unknown)}; there are {', '.join(names)}"
        )
    return found


def policy(name: str) -> Policy:
    """What becomes of the missed runs of a flow; a prefect.yaml that cannot be read stops no night."""
    with suppress(ServiceError):
        found = read_schedules(paths.root() / "prefect.yaml", flow_names()).get(name)
        if found:
            return found.missed
    return "latest"


def local_timezone() -> str:
    link = os.path.realpath("/etc/localtime").partition("zoneinfo/")[2]
    try:
        written = Path("/etc/timezone").read_text(encoding="utf-8").strip()
    except OSError:
        written = ""
    candidates = (os.environ.get("TZ", "").removeprefix(":"), link, written)
    return next((name for name in candidates if name and _is_timezone(name)), "UTC")


def _is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return False
    return True


def main() -> int:
    """Register, unless this database has it all.

    Exit code 2 when prefect.yaml is wrong, SOME_BROKEN when all is registered but flows that are broken.
    """
    registered = paths.services() / "registered"
    try:
        wanted = deployments()
        new = fingerprint(wanted)
        if not registered.is_file() or registered.read_text() != new:
            asyncio.run(_register(wanted))
            registered.write_text(new)
    except ServiceError as error:
        print(error, flush=True)
        return error.exit_code
    broken = [one.broken for one in wanted if one.broken]
    if broken:
        print("; ".join(broken) + "; the other flows are registered", flush=True)
        return SOME_BROKEN
    return 0


def cron_schedules(wanted: list[Deployment]) -> "dict[str, CronSchedule]":
    from prefect.client.schemas.schedules import CronSchedule

    found = {}
    problems = []
    for one in wanted:
        try:
            if one.cron:
                found[one.name] = CronSchedule(cron=one.cron, timezone=one.timezone)
        except ValidationError:
            wrong = f"prefect.yaml: schedules.{one.name}.cron: {one.cron!r} is no cron line"
            problems.append(f"{wrong}; write {FORM}")
    if problems:
        raise ServiceError("; ".join(problems))
    return found


def fingerprint(wanted: list[Deployment]) -> str:
    now = settings()
    path = paths.services() / "prefect" / "prefect.db"
    # A new database is registered again; one that is not ours, each time.
    database = path.stat().st_ino if now.own_prefect and path.exists() else time.time()
    parts = [
        version("prefect"),
        POOL_VERSION,
        sys.executable,
        paths.root(),
        now.prefect,
        database,
        ENTRYPOINT,
    ]
    parts.append(json.dumps([asdict(one) for one in wanted]))
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


async def _register(wanted: list[Deployment]) -> None:
    """Replace the work pool and the deployments; those of this checkout whose flow is gone are deleted."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate

    schedules = cron_schedules(wanted)
    root = str(paths.root())
    # None of it is a run's to choose. Without a shell a signal reaches the flow alone, not its steps.
    command = f"{shlex.quote(sys.executable)} -m prefect.engine"
    job = {"command": command, "env": {}, "working_dir": root, "stream_output": True}
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    template = {"job_configuration": job, "variables": nothing}
    async with get_client() as client:
        pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template)
        await client.create_work_pool(pool, overwrite=True)
        for one in (one for one in wanted if not one.broken):
            night = schedules.get(one.name)
            await client.create_deployment(
                await client.create_flow_from_name(one.name),
                one.name,
                description=one.about,
                entrypoint=f"{ENTRYPOINT}{one.name}",
                path=root,
                work_pool_name=POOL,
                parameter_openapi_schema=parameters_of(one.name),
                enforce_parameter_schema=True,
                pull_steps=[],  # the code is where it is
                schedules=[DeploymentScheduleCreate(schedule=night, active=True, slug="night")]
                if night
                else [],
            )
        for found in await client.read_deployments():
            made_here = (found.entrypoint or "").startswith("overnight.") and found.path in (None, ".", root)
            if made_here and found.work_pool_name == POOL and found.name not in {one.name for one in wanted}:
                await client.delete_deployment(found.id)


def parameters_of(name: str) -> dict[str, Any]:
    from prefect.utilities.callables import parameter_schema

    def run(config: str = default_config(name), overrides: list[str] = []) -> None:  # noqa: B006
        """Take the parameters."""

    return parameter_schema(run).model_dump_for_openapi()


if __name__ == "__main__":
    sys.exit(main())
