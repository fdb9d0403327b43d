"""`overnight exec -- CMD ...`: give any program its turn on the card."""

import argparse
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from overnight.cli.command import SWITCH, Command
from overnight.errors import BadInput
from overnight.files import atomic_write


def _exec(arguments: argparse.Namespace) -> int:
    """The exit code of the command where it ran, else that of `overnight run`."""
    from overnight.cli.run import run_config
    from overnight.cli.watch import rows_of

    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise BadInput("no command was given; write it as `overnight exec --vram 2000 -- python my.py --x 1`")
    if shutil.which(words[0]) is None:
        raise BadInput(f"{words[0]}: there is no such program on the PATH, and no such file that can be run")
    if arguments.vram is not None and arguments.vram < 0:
        raise BadInput(f"--vram {arguments.vram}: expected MiB of the card, 0 or more")
    code = run_config(_write_config(words, arguments.name, arguments.vram), cpu=arguments.cpu)
    ran = [row["scores"]["exit_code"] for row in rows_of(os.getpid()) if "exit_code" in row["scores"]]
    return int(ran[0]) if ran else code


def _write_config(words: Sequence[str], name: str | None, vram: int | None) -> Path:
    """A config of its own below .overnight/commands, which `overnight run` runs again."""
    from overnight.paths import state

    script = next((word for word in words[1:2] if word.endswith(".py")), words[0])
    called = name or Path(script).stem
    values = {"flow": "command", "name": called, "command": list(words), "cwd": str(Path.cwd()), "vram": vram}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    plain = re.sub(r"\W+", "-", called)[:40]
    path = state() / "commands" / f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}.yaml"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, text)
    return path


COMMAND: Command = (
    _exec,
    "give any program its turn on the card: queued, leased, watched; nothing caps it",
    {
        "--vram": {
            "type": int,
            "metavar": "MIB",
            "help": "of the card; 0 for nothing; left out: the whole card, then what it took",
        },
        "--name": {"help": "of its experiment in MLflow; the program's when left out"},
        "--cpu": {**SWITCH, "help": "with the virtual card"},
        "words": {
            "nargs": argparse.REMAINDER,
            "metavar": "-- CMD ...",
            "help": "the program and its arguments",
        },
    },
)
