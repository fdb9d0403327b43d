"""Commands about runs of the past: bundle, diff and replay. What they do is imported when one is called."""

import argparse
import json
from pathlib import Path

from overnight.cli.command import JSON, Command
from overnight.errors import BadInput

RUN = {"help": "an experiment, EXPERIMENT/STEP, the id of a run in MLflow or Prefect, or its folder"}


def _bundle(arguments: argparse.Namespace) -> None:
    from overnight.cli.bundle import bundle
    from overnight.orchestration.recorded import find

    found = find(arguments.run)
    name = f"overnight-{found.name.replace('/', '-')}-{found.folder.name[:15]}.zip"
    written = bundle(found, Path(arguments.file or name))
    print(f"{written}: {written.stat().st_size / 1024:.0f} KiB; look into it before you send it")


def _diff(arguments: argparse.Namespace) -> None:
    from overnight.cli.diff import diff
    from overnight.orchestration.recorded import find

    one, other = find(arguments.a), find(arguments.b)
    if one.folder == other.folder:
        raise BadInput(
            f"both names mean the run of {one.began}; name the other by its id, as MLflow shows it"
        )
    found = diff(one, other)
    if arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(f"{one.name} of {one.began} -> {other.name} of {other.began}")
    for kind, words in found.items():
        print(f"{kind + ':':<10} {'; '.join(words)}")
    if not found:
        print("nothing differs: values, data, code, versions, choices and scores are the same")


def _replay(arguments: argparse.Namespace) -> int:
    from overnight.cli.replay import replay
    from overnight.orchestration.recorded import find
    from overnight.orchestration.terminal import Display

    found = find(arguments.run, step=True)
    with Display() as display:
        verdict, lines = replay(found, display)
    print(f"{found.name} of {found.began}: {verdict}", *lines, sep="\n    ")
    return 1 if verdict == "different" else 0


BUNDLE: Command = (
    _bundle,
    "a zip of a run's config, log, versions, card and timeline, for a report; no data, no secrets",
    {"run": RUN, "file": {"nargs": "?", "help": "the zip; named after the run when left out"}},
)
DIFF: Command = (
    _diff,
    "what of values, data, code, versions and scores differs between two runs",
    {"a": RUN, "b": RUN, **JSON},
)
REPLAY: Command = (
    _replay,
    "run a recorded step again: is its result bit-equal, within its seed interval, or different, and why",
    {"run": {"help": "EXPERIMENT/STEP, the id of its run in MLflow, or its folder"}},
)
