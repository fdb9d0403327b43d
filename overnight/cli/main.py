"""The command `overnight`. Exit 0 done, 1 the run failed, 2 bad input, 3 does not fit the card."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from overnight.cli import (
    chat,
    clean,
    data,
    models,
    past,
    predict,
    promote,
    report,
    rollback,
    run,
    serve,
    weights,
)
from overnight.cli import exec as exec_
from overnight.cli.command import (
    CONFIG,
    DEBUG,
    JSON,
    OVERRIDES,
    SWITCH,
    Arguments,
    Command,
    config_path,
    print_rows,
)
from overnight.errors import ConfigError, OvernightError, did_you_mean

MODEL: Arguments = {
    "--model": {"help": "sd-1.5, sdxl, a language model as llama-2-7b, a config.json or a .gguf"},
    "--method": {"choices": ("infer", "full", "lora", "qlora"), "help": "infer when left out"},
    "--batch": {"type": int, "help": "sequences or pictures at once"},
    "--sequence": {
        "type": int,
        "metavar": "TOKENS",
        "help": "of a sequence; with infer of prompt and answer",
    },
    "--quant": {
        "metavar": "WAY",
        "help": "with infer: fp16, int8, nf4, q8_0, q6_k, q5_k_m, q4_k_m, q4_0",
    },
    "--cache": {"metavar": "KIND", "help": "with infer: f16 or q8_0, of keys and values"},
    "--static": {
        "action": "store_const",
        "const": True,
        "help": "with infer: a cache that does not grow",
    },
    "--weights": {
        "metavar": "FILE",
        "help": "with infer: a .gguf, .safetensors or index, of whose size they are",
    },
    "--precision": {"help": "of training: bf16, fp16, fp32, amp"},
    "--checkpointing": {
        "action": "store_const",
        "const": True,
        "help": "compute activations again in the backward pass",
    },
    "--optimizer": {"help": "adamw, adamw8bit, adafactor, sgd"},
    "--rank": {"type": int, "help": "of adapters"},
    "--targets": {"metavar": "LAYERS", "help": "of adapters: all-linear, or names with commas between"},
    "--size": {"type": int, "metavar": "PIXELS", "help": "side of a picture"},
    "--offload": {"choices": ("none", "model", "sequential"), "help": "of Stable Diffusion"},
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = argparse.Namespace(debug="--debug" in words)
    try:
        _check_command(words)
        arguments = _parsed(words)
        _name_other_checkout()
        if arguments.command in (run.COMMAND[0], data.COMMAND[0], weights.COMMAND[0], _fit, _up):
            _settle_data()
        code = int(arguments.command(arguments) or 0)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OvernightError, OSError) as error:
        if arguments.debug:
            raise
        message = str(error)
        if isinstance(error, OSError):  # a checkout that may not be written to, a disk that is full
            message = f"{error.filename or 'the machine'}: {error.strerror or error}; fix it and try again"
        print(f"overnight: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, OvernightError) else 2
    return code


def _check_command(words: Sequence[str]) -> None:
    """Raises ConfigError for a command that there is not."""
    command = next((word for word in words if not word.startswith("-")), "")
    if command and command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or ";"
        raise ConfigError(f"unknown command {command!r}{hint} there are {', '.join(COMMANDS)}")


def _name_other_checkout() -> None:
    """A copied checkout's .venv runs the code of the one that it was made in."""
    from overnight.paths import INSTALLED

    here = Path.cwd()
    found = (one for one in (here, *here.parents) if (one / "overnight" / "paths.py").is_file())
    checkout = next(found, INSTALLED)
    if checkout.resolve() != INSTALLED and "OVERNIGHT_ROOT" not in os.environ:
        print(
            f"overnight: this is the checkout {INSTALLED}, though you are in {checkout}; "
            "for that one run `make setup` there and use its .venv",
            file=sys.stderr,
        )


def _settle_data() -> None:
    """Children and services run in other folders. Raises DataError."""
    from overnight.data.file_set import shared

    for place in shared():
        os.environ["OVERNIGHT_DATA"] = str(place.resolve())


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """As argparse does it, and also overrides and inputs after an option, which it does not expect there."""
    arguments, late = _parser().parse_known_args(words)
    places = [name for name in ("overrides", "inputs") if name in arguments]
    fits = all(word[0] != "-" and ("=" in word or places == ["inputs"]) for word in late)
    if late and not (places and fits):
        _parser().error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        setattr(arguments, places[0], [*getattr(arguments, places[0]), *late])
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overnight", description="An experiment pipeline for a person who owns one GPU."
    )
    _add(parser, DEBUG)
    parser.set_defaults(command=lambda _arguments: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (command, about, arguments) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        _add(sub, {"--debug": {**DEBUG["--debug"], "default": argparse.SUPPRESS}, **arguments})
        if command is _fit:
            _add(sub.add_argument_group("without a config: a model by its name, from its sizes alone"), MODEL)
    return parser


def _add(group: "argparse._ActionsContainer", arguments: Arguments) -> None:
    for name, options in arguments.items():
        group.add_argument(name, **options)


def _watch(arguments: argparse.Namespace) -> int:
    from overnight.cli.watch import watch

    return watch(arguments.run)


def _fit(arguments: argparse.Namespace) -> int:
    from overnight.cli import fit_model
    from overnight.cli.fit import of_size, show
    from overnight.gpu.card import find

    card = find() if arguments.card is None else of_size(arguments.card)
    if fit_model.asked(arguments):
        return fit_model.show(arguments, card)
    return show(config_path(arguments.config), arguments.overrides, card, arguments.json)


def _up(_arguments: argparse.Namespace) -> None:
    from overnight import services
    from overnight.tracking.client import TRAINING

    services.up()
    print_rows(services.status(), False)
    print(f"your runs and their curves: {services.settings().mlflow}/#/experiments?{TRAINING}", flush=True)


def _down(arguments: argparse.Namespace) -> None:
    from overnight import services

    services.down(arguments.force)
    print("all services are down")


def _status(arguments: argparse.Namespace) -> None:
    from overnight import services
    from overnight.cli.watch import running

    print_rows([*services.status(), *running()], arguments.json)


def _gpu(arguments: argparse.Namespace) -> None:
    from overnight.cli.gpu import show
    from overnight.gpu.card import find
    from overnight.gpu.ledger.filesystem import check_location

    card = find(arguments.card, cpu=arguments.cpu)
    check_location(card)
    show(card, arguments.json, arguments.watch)


def _ls(arguments: argparse.Namespace) -> None:
    import yaml

    from overnight.config import MALFORMED
    from overnight.paths import configs, shown

    rows = []
    for path in sorted(configs().glob("*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text)
        except (*MALFORMED, OSError):
            values, text = {"flow": "not readable as yaml"}, ""
        values = values if isinstance(values, dict) else {}
        first = text.partition("\n")[0]
        about = first.lstrip("# ") if first.startswith("#") else ""
        rows.append({"config": shown(path), "flow": values.get("flow", ""), "about": about})
    print_rows(rows, arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from overnight.cli.doctor import checks, recording

    if arguments.record:
        Path(arguments.record).write_text(json.dumps(recording(), indent=1) + "\n", encoding="utf-8")
        return 0
    rows = checks()
    print_rows(rows, arguments.json)
    return 1 if any(row[""] == "PROBLEM" for row in rows) else 0


def _install(_arguments: argparse.Namespace) -> None:
    from overnight.cli.service import install

    print(install())


COMMANDS: dict[str, Command] = {
    "run": run.COMMAND,
    "exec": exec_.COMMAND,
    "predict": predict.COMMAND,
    "serve": serve.COMMAND,
    "chat": chat.COMMAND,
    "report": report.COMMAND,
    "watch": (
        _watch,
        "the table of a run that was started elsewhere, until its end",
        {
            "run": {
                "nargs": "?",
                "default": "",
                "help": "an experiment, or a run's name or id in Prefect; the newest when left out",
            }
        },
    ),
    "fit": (
        _fit,
        "what each step would take of a card, and whether it fits; nothing runs",
        {
            **JSON,
            "config": {**CONFIG, "nargs": "?"},
            "overrides": {**OVERRIDES, "help": "values laid over the file, e.g. cnn.batch=512"},
            "--card": {
                "type": float,
                "metavar": "GB",
                "help": "judge a card of 8, 10, 12, 16, 24 ... GB instead of the one here",
            },
        },
    ),
    "up": (_up, "start Prefect, its worker and MLflow, and keep them running", {}),
    "down": (_down, "stop them", {"--force": {**SWITCH, "help": "also end the runs that use them"}}),
    "status": (_status, "what runs, where, since when", JSON),
    "gpu": (
        _gpu,
        "the card: its budget, who holds what, who waits, what other programs use",
        {
            **JSON,
            "--watch": {
                **SWITCH,
                "help": "draw it anew each second, until Ctrl-C; with --json a line for each change",
            },
            "--card": {"metavar": "CARD", "help": "index or UUID; the first when left out"},
            "--cpu": {**SWITCH, "help": "the virtual card"},
        },
    ),
    "models": models.COMMAND,
    "promote": promote.COMMAND,
    "rollback": rollback.COMMAND,
    "ls": (_ls, "the experiments in configs/", JSON),
    "bundle": past.BUNDLE,
    "diff": past.DIFF,
    "replay": past.REPLAY,
    "doctor": (
        _doctor,
        "what this machine has, and which problems it has",
        {
            **JSON,
            "--record": {"metavar": "FILE", "help": "write what the driver says of the card, for a report"},
        },
    ),
    "install-service": (_install, "start the services with the machine, by systemd or Windows", {}),
    "clean": clean.COMMAND,
    "data": data.COMMAND,
    "weights": weights.COMMAND,
}

if __name__ == "__main__":
    sys.exit(main())
