"""`overnight rollback NAME`: return to the champion before."""

import argparse

from overnight.cli.command import Command
from overnight.cli.promote import WHY


def _rollback(arguments: argparse.Namespace) -> None:
    from overnight.cli.models import registry

    with registry(f"overnight rollback {arguments.name}") as found:
        last, now = found.rollback(arguments.name, arguments.why)
    print(f"version {now} is the champion of {arguments.name} again, in place of version {last}")


COMMAND: Command = (
    _rollback,
    "return to the champion of a model before this one",
    {"name": {"metavar": "NAME", "help": "of a registered model"}, **WHY},
)
