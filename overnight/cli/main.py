"""The command `overnight`. Exit 0 done, 1 the run failed, 2 bad input, 3 does not fit the card."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overnight.errors import ConfigError, OvernightError, did_you_mean

Arguments = dict[str, dict[str, Any]]  # what argparse is to know of each flag or word
SWITCH = {"action": "store_true"}
DEBUG: Arguments = {"--debug": {**SWITCH, "help": "show tracebacks"}}
JSON: Arguments = {"--json": {**SWITCH, "help": "for programs"}}
CONFIG = {"help": "a file of configs/, e.g. configs/vision.yaml or just vision"}
OVERRIDES = {"nargs": "*", "metavar": "key=value"}
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
        arguments = _parser().parse_args(words)
        _name_other_checkout()
        if arguments.command in (_run, _fit, _up, _data):
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
    from overnight.data.entry import shared

    for place in shared():
        os.environ["OVERNIGHT_DATA"] = str(place.resolve())


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


def _config(text: str) -> Path:
    """A bare word that is no path is meant as a name in configs/."""
    from overnight.paths import configs

    path = Path(text)
    named = configs() / (text if text.endswith(".yaml") else f"{text}.yaml")
    try:
        return path if path.exists() or ("/" in text and not named.exists()) else named
    except OSError:  # a name that no file can have: reading it says so
        return path


def _run(arguments: argparse.Namespace) -> int:
    from overnight.orchestration.pipeline import card_for, check_data, load

    path = _config(arguments.config)
    pipeline, experiment = load(path, arguments.overrides)
    if arguments.cpu:
        os.environ["OVERNIGHT_CPU"] = "1"
    print(card_for(experiment, arguments.cpu), flush=True)
    check_data(experiment)
    if arguments.detach:
        return _detach(path, [*arguments.overrides, *(["--cpu"] if arguments.cpu else [])])
    from overnight import services

    with services.ensure(f"overnight run {arguments.config}"):
        services.enter()
        # the terminal shows our table; Prefect's UI keeps all
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from overnight.orchestration.prefect import run_here

        state = run_here(pipeline.name, path.resolve(), arguments.overrides)
    if state.is_completed():
        return 0
    return 3 if state.name == "DoesNotFit" else 1


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
    return show(_config(arguments.config), arguments.overrides, card, arguments.json)


def _up(_arguments: argparse.Namespace) -> None:
    from overnight import services
    from overnight.tracking.client import TRAINING

    services.up()
    _rows(services.status(), False)
    print(f"your runs and their curves: {services.settings().mlflow}/#/experiments?{TRAINING}", flush=True)


def _down(arguments: argparse.Namespace) -> None:
    from overnight import services

    services.down(arguments.force)
    print("all services are down")


def _status(arguments: argparse.Namespace) -> None:
    from overnight import services

    _rows(services.status(), arguments.json)


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
    _rows(rows, arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from overnight.cli.doctor import checks, recording

    if arguments.record:
        Path(arguments.record).write_text(json.dumps(recording(), indent=1) + "\n", encoding="utf-8")
        return 0
    rows = checks()
    _rows(rows, arguments.json)
    return 1 if any(row[""] == "PROBLEM" for row in rows) else 0


def _install(_arguments: argparse.Namespace) -> None:
    from overnight.cli.service import install

    print(install())


def _data(arguments: argparse.Namespace) -> int:
    from overnight.data.dataset import fetch, listing, verify

    if (arguments.verb == "ls") == bool(arguments.names):
        raise ConfigError("`overnight data ls` takes no names; fetch and verify take those of data sets")
    if arguments.verb == "ls":
        _rows(listing(), arguments.json)
        return 0
    if arguments.verb == "fetch":
        for name in arguments.names:
            print(f"{name}: {fetch(name)}")
        return 0
    problems = [f"{name}: {problem}" for name in arguments.names for problem in verify(name)]
    print("\n".join(problems) or "every file is as its entry says")
    return 2 if problems else 0


def _rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
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


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], str, Arguments]] = {
    "run": (
        _run,
        "run one experiment; starts the services when they are not up",
        {
            "config": CONFIG,
            "overrides": {**OVERRIDES, "help": "values laid over the file, e.g. cnn.epochs=3"},
            "--cpu": {**SWITCH, "help": "run on the CPU, with the virtual card"},
            "--detach": {**SWITCH, "help": "run on when this terminal is closed"},
        },
    ),
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
    "ls": (_ls, "the experiments in configs/", JSON),
    "doctor": (
        _doctor,
        "what this machine has, and which problems it has",
        {
            **JSON,
            "--record": {"metavar": "FILE", "help": "write what the driver says of the card, for a report"},
        },
    ),
    "install-service": (_install, "start the services with the machine, by systemd or Windows", {}),
    "data": (
        _data,
        "the data sets: list, fetch, verify",
        {
            **JSON,
            "verb": {
                "nargs": "?",
                "default": "ls",
                "choices": ("ls", "fetch", "verify"),
                "help": "where the files are (ls), download what is missing (fetch), "
                "compare with the digests (verify)",
            },
            "names": {"nargs": "*", "metavar": "NAME"},
        },
    ),
}

if __name__ == "__main__":
    sys.exit(main())
