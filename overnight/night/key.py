"""The key of a step: two runs with the same key give the same result. It names the checkpoint folder.

It covers
- the values of the config without runtime options, the seed, and the step's address;
- the data: digests of upstream artifacts, and of the files of data set entries and how they are read;
- the code that decides the result: the step's family (tasks/FAMILY, or its one file), and what it reaches of
  tasks/shared, overnight/data and overnight/training by imports, and the entries' readers;
- the versions of Python and of the libraries that this code imports;
- the choices that a probe makes on this machine (engine, library, precision).

It does not cover comments, docstrings, layout and messages: texts, and f-strings that call nothing, in the
arguments of a raised error and of run.note, run.log and run.progress. A call there is covered, with its
texts. Nor does it cover flows, and of overnight artifact, config, files, run, gpu, step, memory, events,
orchestration: that these cannot change a result is the contract of the lease and of the training loop.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from overnight.artifact import Artifact
from overnight.config import Params
from overnight.data.entry import Entry
from overnight.files import parsing, source_sha256
from overnight.gpu.card import Card
from overnight.paths import in_checkout
from overnight.step import Step

COVERED = ("tasks.shared", "overnight.data", "overnight.training")
Reasons = dict[str, str]  # part of the key -> digest, or the value itself


def key(step: Step[Any, Any], seed: int, arguments: Sequence[Any], card: Card | None = None) -> str:
    """64 hexadecimal digits.

    arguments: of the step's body, without `run`; card: the one that it will run on, None: the CPU.
    """
    return hashlib.sha256(json.dumps(parts(step, seed, arguments, card), sort_keys=True).encode()).hexdigest()


def parts(step: Step[Any, Any], seed: int, arguments: Sequence[Any], card: Card | None = None) -> Reasons:
    """The parts of the key by name, so that two keys can be compared: what changed."""
    names = list(inspect.signature(step.body).parameters)[1:]
    values = {
        f"argument {name}": _json(_identity(value)) for name, value in zip(names, arguments, strict=False)
    }
    readers = [f"overnight.data.readers.{value.reader}" for value in arguments if isinstance(value, Entry)]
    files = covered_files(step, readers)
    code = {f"code {_shown(file)}": source_sha256([file]) for file in files}
    versions = {f"version {name}": version for name, version in library_versions(files).items()}
    choices = {f"choice {name}": value for name, value in step.choices(card, arguments).items()}
    return {"step": step.address, "seed": str(seed), **values, **code, **versions, **choices}


def _identity(value: Any) -> Any:
    """An argument as the result depends on it."""
    if isinstance(value, Artifact):
        return {"artifact": value.kind, "digest": value.digest}
    if isinstance(value, Entry):
        return value.identity()
    if isinstance(value, Params):
        return value.result_params()
    return value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# ------------------------------------------------------------------------------------------------ code


def covered_files(step: Step[Any, Any], more: Iterable[str] = ()) -> list[Path]:
    """The files whose code decides the step's result, sorted; `more` names further modules to begin at."""
    found = set(step.files())
    named = [_module_file(name) for name in more]
    waiting = [*found, *(path for path in named if path)]
    found |= set(waiting)
    while waiting:
        for name in _imported(waiting.pop()):
            path = _module_file(name) if name.startswith(COVERED) else None
            if path is not None and path not in found:
                found.add(path)
                waiting.append(path)
    return sorted(found)


@cache
def _module_file(name: str) -> Path | None:
    """The file of a dotted name, which may end with a name that the module defines; None: no such module.

    By paths: finding a module's spec would import what it lies in, and torch with it.
    """
    while name.startswith(COVERED):
        top, *below = name.split(".")
        for folder in importlib.import_module(top).__path__:
            place = Path(folder, *below)
            for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                if file.is_file():
                    return file.resolve()
        name = name.rpartition(".")[0]
    return None


def _imported(path: Path) -> tuple[str, ...]:
    with parsing(path):
        return _imports(path.read_bytes(), Path(_shown(path)).parent.parts)


@cache
def _imports(text: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names that a file imports, anywhere in it, with those of `from module import name`."""
    found = list[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, node.module] if node.module else base
            found += [".".join([*module, alias.name]) for alias in node.names]
    return tuple(found)


def _shown(path: Path) -> str:
    return (in_checkout(path) or Path(path.name)).as_posix()


# ------------------------------------------------------------------------------------------------ libraries


def library_versions(files: Iterable[Path]) -> dict[str, str]:
    """Python's version and those of the installed distributions that the files import, by name."""
    tops = {name.partition(".")[0] for file in files for name in _imported(file)}
    ours = {"overnight", "tasks", "flows"} | set(sys.stdlib_module_names)
    names = {name for top in tops - ours for name in _distributions().get(top, ())}
    found = {name: importlib.metadata.version(name) for name in sorted(names)}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **found}


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
