"""`overnight clean`: remove what `keep:` of a nightly config does not keep."""

import argparse
from typing import TYPE_CHECKING

from overnight.cli.command import JSON, SWITCH, Command, config_path, print_rows

if TYPE_CHECKING:
    from overnight.night.clean import Keep


def _run(arguments: argparse.Namespace) -> int:
    """Exit code 1 when something could not be removed."""
    from overnight import services
    from overnight.night.clean import clean
    from overnight.tracking.client import Tracker

    keep = _keep_of(arguments.config)
    with services.ensure("overnight clean"):
        tracker = Tracker(services.environment()["MLFLOW_TRACKING_URI"], "")
        rows, problems = clean(keep, tracker, arguments.dry_run)
    print_rows(rows, arguments.json)
    if not arguments.json:
        size = sum(row["MiB"] or 0.0 for row in rows)
        verb = "would be removed" if arguments.dry_run else "removed"
        print("\n".join([f"{len(rows)} {verb}, {size:,.0f} MiB", *problems]))
    return 1 if problems else 0


def _keep_of(config: str | None) -> "Keep":
    """Of a nightly config; the defaults where the checkout has none. Raises ConfigError."""
    from overnight.errors import ConfigError
    from overnight.night.clean import Keep
    from overnight.orchestration.checks import load

    path = config_path(config or "nightly")
    if config is None and not path.exists():
        return Keep()
    _pipeline, experiment = load(path)
    keep = getattr(experiment, "keep", None)
    if not isinstance(keep, Keep):
        raise ConfigError(f"{path}: `keep` belongs to a nightly config; this one is of {experiment.flow!r}")
    return keep


COMMAND: Command = (
    _run,
    "remove what `keep:` of a nightly config does not keep",
    {
        **JSON,
        "config": {
            "nargs": "?",
            "help": "a nightly config with `keep: {steps: 60, checkpoints: 14, results: 10, versions: 10}`; "
            "configs/nightly.yaml when left out",
        },
        "--dry-run": {**SWITCH, "help": "say what would be removed, and remove nothing"},
    },
)
