"""`overnight run CONFIG`, in this terminal or detached from it."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from overnight.cli.command import CONFIG, OVERRIDES, SWITCH, Command, config_path
from overnight.errors import ConfigError

ALL = "true"  # of --fresh


def _run(arguments: argparse.Namespace) -> int:
    _sort_fresh(arguments)
    return run_config(config_path(arguments.config), arguments.overrides, arguments.cpu, arguments.detach)


def run_config(path: Path, overrides: Sequence[str] = (), cpu: bool = False, detach: bool = False) -> int:
    from overnight.orchestration.checks import card_for, check_data, end_time, load
    from overnight.orchestration.dry_run import check_fresh

    pipeline, experiment = load(path, overrides)
    check_fresh(path, overrides)
    if cpu:
        os.environ["OVERNIGHT_CPU"] = "1"
    print(card_for(experiment, cpu), flush=True)
    check_data(experiment)
    end_time(experiment)
    if detach:
        return _detach(path, [*overrides, *(["--cpu"] if cpu else [])])
    from overnight import services

    with services.ensure(f"overnight run {path.stem}"):
        services.enter()
        # the terminal shows our table; Prefect's UI keeps all
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from overnight.orchestration.prefect import run_here

        state = run_here(pipeline.name, path.resolve(), overrides)
    if state.is_completed():
        return 0
    return 3 if state.name == "DoesNotFit" else 1


def _sort_fresh(arguments: argparse.Namespace) -> None:
    """`--fresh` becomes an override; the word after it may be meant as the config, or as an override."""
    step = arguments.fresh
    words = [word for word in (arguments.config, *arguments.overrides) if word is not None]
    if step not in (None, ALL) and (not words or "=" in words[0]):
        words, step = [step, *words], ALL
    elif step and "=" in step:
        words, step = [*words, step], ALL
    if not words:
        raise ConfigError(
            "overnight run: name a config, e.g. `overnight run vision`; `overnight ls` lists them"
        )
    arguments.config, *arguments.overrides = words
    if step:
        arguments.overrides.append(f"fresh={step}")


def _detach(path: Path, options: Sequence[str]) -> int:
    """Start it in a session of its own; return when it has begun, or with its code when it could not."""
    from overnight import paths
    from overnight.cli.watch import is_begun
    from overnight.processes import start_python

    log = paths.log_file(f"run-{time.strftime('%Y%m%d-%H%M%S')}")
    words = ["-m", "overnight.cli.main", "run", str(path.resolve()), *options]
    process = start_python(words, log, os.environ, stays=True)
    while process.poll() is None and not is_begun(process.pid):
        time.sleep(0.2)
    if process.poll():
        print(log.read_text(), file=sys.stderr)
        return process.returncode
    print(f"runs as pid {process.pid}; `overnight watch` shows it; what it prints is in {paths.shown(log)}")
    return 0


COMMAND: Command = (
    _run,
    "run one experiment; starts the services when they are not up",
    {
        "config": {**CONFIG, "nargs": "?"},
        "overrides": {**OVERRIDES, "help": "values laid over the file, e.g. cnn.epochs=3"},
        "--fresh": {
            "nargs": "?",
            "const": ALL,
            "metavar": "STEP",
            "help": "run it though nothing changed: every step, or this one, e.g. train_cnn",
        },
        "--cpu": {**SWITCH, "help": "run on the CPU, with the virtual card"},
        "--detach": {**SWITCH, "help": "run on when this terminal is closed"},
    },
)
