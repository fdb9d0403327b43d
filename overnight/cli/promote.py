"""`overnight promote NAME@VERSION`: make a version the champion by hand."""

import argparse

from overnight.cli.command import Arguments, Command
from overnight.errors import BadInput

WHY: Arguments = {"--why": {"default": "", "metavar": "TEXT", "help": "kept with the version"}}


def _promote(arguments: argparse.Namespace) -> None:
    name, at, number = arguments.version.rpartition("@")
    if not at or not name or not number.isdecimal():
        raise BadInput(
            f"{arguments.version}: write it as NAME@VERSION, e.g. vision@3; `overnight models` lists them"
        )
    from overnight.cli.models import registry

    with registry(f"overnight promote {arguments.version}") as found:
        former = found.promote(name, int(number), arguments.why)
    before = f"before it was version {former}" if former else "there was none before"
    print(f"version {int(number)} is the champion of {name}; {before}")


COMMAND: Command = (
    _promote,
    "make a version of a model the champion, whatever the gate says",
    {"version": {"metavar": "NAME@VERSION", "help": "as `overnight models` lists them"}, **WHY},
)
