"""The key of a step: two runs with the same key give the same result. It names what the night remembers.

It covers
- the values of the config without runtime options, the seed, the step's address; the files and the modules
  (`my_envs:Maze-v0`) that a value names
- the data: digests and shapes of upstream artifacts; the files of data set entries, as they are here, and how
  they are read
- the code that decides the result: the step's file and what it reaches by imports in tasks/, overnight/data,
  overnight/training and other code of the checkout, with the entries' readers; not by imports for type
  checking. An address "module:function" in a text counts as an import. A file of a family that imports by a
  computed name stands for its whole family.
- the versions of Python and of the libraries that this code imports, not of the libraries that those import
- the choices that a probe makes on this machine (engine, library, precision)

It does not cover comments, docstrings, layout and messages: texts, and f-strings that call nothing, in the
arguments of a raised error and of run.note, run.log and run.progress. A call there is covered, with its
texts. Nor does it cover flows that a step's file does not import, nor, of overnight, artifact, config, files,
run, gpu, step, memory, events, orchestration: that these cannot change a result is the contract of the lease
and of the training loop.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from overnight.artifact import Artifact
from overnight.config import Params, Values, parts_of
from overnight.data import digests
from overnight.data.entry import Entry
from overnight.data.file_set import FileSet
from overnight.files import parsing, source_sha256, syntax_tree
from overnight.gpu.card import Card
from overnight.paths import INSTALLED, in_checkout, root, shown
from overnight.step import Step

OURS = ("overnight.data", "overnight.training")  # of the engine; of the checkout's other code all is covered
ADDRESS = re.compile(r"((?:tasks|overnight|flows)(?:\.\w+)+):\w+")
NAMED = re.compile(r"([a-zA-Z_]\w*(?:\.\w+)*):\S+")
BY_NAME = ("import_module", "__import__", "resolve_name", "iter_modules")  # imports that no parser can follow
Reasons = dict[str, str]  # part of the key -> digest, or the value itself


def key(step: Step[Any, Any], seed: int, arguments: Sequence[Any], card: Card | None = None) -> str:
    """64 hexadecimal digits.

    arguments: of the step's body, without `run`; card: the one that it will run on, None: the CPU.
    """
    return digest(parts(step, seed, arguments, card))


def digest(found: Reasons) -> str:
    """The key that these parts make."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def parts(step: Step[Any, Any], seed: int, arguments: Sequence[Any], card: Card | None = None) -> Reasons:
    """The parts of the key by name, so that two keys can be compared: what changed."""
    names = list(inspect.signature(step.body).parameters)[1:]
    values = {
        f"argument {name}": _json(_identity(value)) for name, value in zip(names, arguments, strict=False)
    }
    named = {f"file {shown(path)}": digests.sha256(path) for value in arguments for path in _files_in(value)}
    modules = [name for value in arguments for name in _modules_in(value)]
    files = covered_files(step, modules)
    code = {f"code {_shown(file)}": source_sha256([file]) for file in files}
    versions = {f"version {name}": version for name, version in library_versions(files, modules).items()}
    choices = {f"choice {name}": value for name, value in step.choices(card, arguments).items()}
    return {"step": step.address, "seed": str(seed), **values, **named, **code, **versions, **choices}


def _identity(value: Any) -> Any:
    """An argument as the result depends on it."""
    if isinstance(value, Artifact):
        spec = value.spec.model_dump(mode="json", exclude_defaults=True)
        return {"artifact": value.kind, "digest": value.digest, "spec": spec}
    if isinstance(value, FileSet):
        return value.identity()
    if isinstance(value, Params):
        return value.result_params()
    return value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _files_in(value: Any) -> Iterator[Path]:
    """The files that values name; what a folder holds is not covered."""
    if isinstance(value, Path) and (root() / value.expanduser()).is_file():
        yield root() / value.expanduser()
    if isinstance(value, Params) or (isinstance(value, Values) and not isinstance(value, Artifact | FileSet)):
        for _name, child in value:
            for _key, one in parts_of(child):
                yield from _files_in(one)


def _modules_in(value: Any) -> Iterator[str]:
    """Modules that an argument names: the readers of an entry, the module of a text as `my_envs:Maze-v0`."""
    if isinstance(value, Entry):
        names = (value.reader, value.options.get("reader"))
        yield from (f"overnight.data.readers.{name}" for name in names if name)
    elif isinstance(value, Params):
        yield from _modules_in(value.result_params())
    elif isinstance(value, dict | list):
        for _key, child in parts_of(value):
            yield from _modules_in(child)
    elif isinstance(value, str) and (found := NAMED.fullmatch(value)):
        yield found[1]


# ------------------------------------------------------------------------------------------------ code


def covered_files(step: Step[Any, Any], more: Iterable[str] = ()) -> list[Path]:
    """The files whose code decides the step's result, sorted; `more` names further modules to begin at."""
    own = Path(inspect.getfile(step.body)).resolve()
    family = set(step.files())
    begin = (step.body.__module__, *more)
    found = {own, *(file for name in begin for file in _files_of(name, root()))}
    waiting = list(found)
    while waiting:
        file = waiting.pop()
        reached = {path for name in _imported(file) for path in _files_of(name, root())}
        if file in family and _imports_by_name(file.read_bytes()):
            reached |= family
        waiting += reached - found
        found |= reached
    return sorted(found)


@cache
def _files_of(name: str, checkout: Path) -> tuple[Path, ...]:
    """The file of a dotted name, which may end with a name that the module defines, and of what it lies in.

    By paths: finding a module's spec would import what it lies in, and torch with it.
    """
    if name.partition(".")[0] == "overnight" and not f"{name}.".startswith(tuple(f"{o}." for o in OURS)):
        return ()
    parts = name.split(".")
    found = list[Path]()
    for end in range(1, len(parts) + 1):
        file = _module_file(parts[:end], checkout)
        if file is not None:
            found.append(file)
    return tuple(found if parts[0] != "overnight" else found[1:])


def _module_file(parts: Sequence[str], checkout: Path) -> Path | None:
    for place in dict.fromkeys((INSTALLED,) if parts[0] == "overnight" else (checkout, INSTALLED)):
        module = Path(place, *parts)
        for file in (module / "__init__.py", module.with_name(f"{module.name}.py")):
            if file.is_file():
                return file.resolve()
    return None


def _imported(path: Path) -> tuple[str, ...]:
    with parsing(path):
        return _imports(path.read_bytes(), Path(_shown(path)).parent.parts)


@cache
def _imports(text: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names that a file imports, anywhere in it, with those of `from module import name`."""
    found = list[str]()
    for node in _that_run(syntax_tree(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, node.module] if node.module else base
            found += [".".join([*module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            address = ADDRESS.fullmatch(node.value)
            found += [address[1]] if address else []
    return tuple(found)


def _that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Its nodes, but those under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


@cache
def _imports_by_name(text: bytes) -> bool:
    nodes = ast.walk(syntax_tree(text))
    return any(getattr(node, field, "") in BY_NAME for node in nodes for field in ("attr", "id", "name"))


def _shown(path: Path) -> str:
    return (in_checkout(path) or Path(path.name)).as_posix()


# ------------------------------------------------------------------------------------------------ libraries


def library_versions(files: Iterable[Path], more: Iterable[str] = ()) -> dict[str, str]:
    """Python's version and those of the installed distributions of what the files import and of `more`."""
    names = (*more, *(name for file in files for name in _imported(file)))
    tops = {name.partition(".")[0] for name in names}
    ours = {"overnight", "tasks", "flows"} | set(sys.stdlib_module_names)
    distributions = {name for top in tops - ours for name in _distributions().get(top, ())}
    found = {name: importlib.metadata.version(name) for name in sorted(distributions)}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **found}


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
