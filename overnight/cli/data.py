"""`overnight data ls | fetch | verify | check`: the data sets of datasets/."""

import argparse
from pathlib import Path
from typing import Any

from overnight.cli.command import JSON, SWITCH, Command, print_rows
from overnight.errors import ConfigError


def _data(arguments: argparse.Namespace) -> int:
    from overnight.data.dataset import fetch, listing, verify

    if (arguments.verb == "ls") == bool(arguments.names):
        raise ConfigError(
            "`overnight data ls` takes no names; fetch, verify and check take those of data sets"
        )
    if arguments.verb == "ls":
        print_rows(listing(), arguments.json)
        return 0
    if arguments.verb == "check":
        return max(_check(name, arguments.accept) for name in arguments.names)
    if arguments.verb == "fetch":
        for name in arguments.names:
            print(f"{name}: {fetch(name)}")
        return 0
    problems = [f"{name}: {problem}" for name in arguments.names for problem in verify(name)]
    print("\n".join(problems) or "every file is as its entry says")
    return 2 if problems else 0


def _check(name: str, accept: bool) -> int:
    """Hold an entry against its files, or propose one for a file or folder that has none."""
    from overnight.data.content import Tables
    from overnight.data.dataset import load_entry, names

    if name not in names() and (Path(name).exists() or "/" in name or "." in name):
        print(_proposed(Path(name)))
        return 0
    entry = load_entry(name)
    content = entry.load()
    for rule, count in sorted(content.cleaned.items()):
        print(f"{name}: {rule}: {count:,}")
    if isinstance(content, Tables):
        return _check_tables(entry, content, accept)
    print(f"{name}: {_counted(content)}")
    return 0


def _check_tables(entry: Any, content: Any, accept: bool) -> int:
    from overnight.data.audit import audit, baseline_file
    from overnight.files import atomic_write
    from overnight.paths import shown

    found = audit(entry, content)
    page = baseline_file(entry.name).with_suffix(".html")
    atomic_write(page, found.page())
    for table, profile in found.tables.items():
        print(f"{entry.name}: {table}: {profile.rows:,} rows, {len(profile.columns)} columns")
    for line in found.changes:
        print(f"{entry.name}: changed: {line}")
    if accept or not found.changes:
        found.accept()
    elif found.changes:
        print(
            f"compared with the last good set; `overnight data check {entry.name} --accept` makes this one it"
        )
    print(shown(page))
    return 2 if found.changes and entry.drift == "stop" and not accept else 0


def _counted(content: Any) -> str:
    splits = getattr(content, "splits", None)
    if splits is None:
        return f"{content.nodes:,} nodes, {content.edges.shape[1]:,} edges, {len(content.classes)} classes"
    counts = ", ".join(f"{split} {len(items):,}" for split, items in splits.items())
    classes = f"; {len(content.classes)} classes: {', '.join(content.classes[:20])}"
    return counts + classes * bool(content.classes)


def _proposed(path: Path) -> str:
    """The text of an entry."""
    import yaml

    from overnight.data.propose import name_of, propose
    from overnight.paths import datasets, shown

    entry = propose(path)
    name = name_of(path)
    home = path.resolve() if path.is_dir() else path.resolve().parent
    head = f"# {shown(datasets() / f'{name}.yaml')}"
    if home.parent != datasets().resolve():
        place = shown(datasets() / name)
        head += f": put the files of {path} into {place}/, or name their folder's home by OVERNIGHT_DATA"
        folder = name
    else:
        folder = home.name
    values = {**entry, "folder": folder, "licence": ""}
    return f"{head}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)}".rstrip()


COMMAND: Command = (
    _data,
    "the data sets: list, fetch, verify, check",
    {
        **JSON,
        "verb": {
            "nargs": "?",
            "default": "ls",
            "choices": ("ls", "fetch", "verify", "check"),
            "help": "where the files are (ls), download what is missing (fetch), compare with the digests "
            "(verify), hold against the entry's rules and the last good set, or propose an entry (check)",
        },
        "names": {"nargs": "*", "metavar": "NAME", "help": "data sets; for check also a file or folder"},
        "--accept": {**SWITCH, "help": "with check: the next set is compared with this one"},
    },
)
