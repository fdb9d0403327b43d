"""What the commands share. A command is a module with `COMMAND = (run, about, ARGUMENTS)`."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Arguments = dict[str, dict[str, Any]]  # what argparse is to know of each flag or word
SWITCH = {"action": "store_true"}
DEBUG: Arguments = {"--debug": {**SWITCH, "help": "show tracebacks"}}
JSON: Arguments = {"--json": {**SWITCH, "help": "for programs"}}
CONFIG = {"help": "a file of configs/, e.g. configs/vision.yaml or just vision"}
OVERRIDES = {"nargs": "*", "metavar": "key=value"}
Command = tuple[Callable[[argparse.Namespace], int | None], str, Arguments]


def config_path(text: str) -> Path:
    """A bare word that is no path is meant as a name in configs/."""
    from overnight.paths import configs

    path = Path(text)
    named = configs() / (text if text.endswith(".yaml") else f"{text}.yaml")
    try:
        return path if path.exists() or ("/" in text and not named.exists()) else named
    except OSError:  # a name that no file can have: reading it says so
        return path


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, default=str, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Column

    from overnight.orchestration.terminal import table

    texts = [["" if v is None else str(v) for v in row.values()] for row in rows]
    columns = [Column(name, overflow="fold") for name in (rows[0] if rows else ())]
    for column, values in zip(columns, zip(*texts, strict=True), strict=True):  # an address is never wrapped
        words = [word for value in values for word in value.split() if "://" in word]
        column.min_width = max(map(len, words), default=None)
    Console().print(table(columns, texts), highlight=False, crop=False)
