"""`overnight report [NIGHT]`: the page of a night, written anew."""

import argparse

from overnight.cli.command import SWITCH, Command


def _report(arguments: argparse.Namespace) -> None:
    from overnight.night import record, report

    name, night = record.find(arguments.night)
    path = report.build(name, report.facts_of(night))
    print(path)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.as_uri())


COMMAND: Command = (
    _report,
    "the morning report of a night, as one HTML file; prints where it lies",
    {
        "night": {
            "nargs": "?",
            "default": "",
            "metavar": "NIGHT",
            "help": "an experiment, a day (2026-11-30), or the name of a run's folder; else the newest",
        },
        "--open": {**SWITCH, "help": "open it in the browser"},
    },
)
