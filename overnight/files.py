"""Files that are written whole or not at all, JSON that may be missing, and sha256 digests."""

import ast
import errno
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from overnight.errors import ConfigError
from overnight.paths import shown

UNREADABLE = (OSError, ValueError, RecursionError)  # missing, damaged, or nested too deeply
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
COMPUTES = (ast.Call, ast.Await, ast.NamedExpr)  # what may do more than show a value
MESSAGES = ("note", "log", "progress")  # methods of Run whose text is for people
_parsing = threading.Lock()
Content = str | bytes | Callable[[IO[bytes]], object]


def atomic_write(path: Path, content: Content, durable: bool = False) -> None:
    """Write a part file beside `path`, then rename it: no reader ever sees half of it.

    durable: return only when the file and its folder are on the disk (fsync). Raises OSError, and what a
    content function raises; then `path` is unchanged.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is missing, damaged, or holds another type."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{file.relative_to(folder)}\0{file_sha256(file)}\n".encode())
    return whole.hexdigest()


def source_sha256(files: Iterable[Path]) -> str:
    """sha256 of what Python files compute, in this order, in hex.

    Comments, layout, docstrings and messages do not change it. A message is a text, or an f-string without a
    call, in the arguments of a raised error and of run.note, run.log and run.progress. Raises ConfigError.
    """
    trees = list[str]()
    for file in files:
        with parsing(file):
            trees.append(_normalized_ast(file.read_bytes()))
    return hashlib.sha256("\0".join(trees).encode()).hexdigest()


@contextmanager
def parsing(file: Path) -> Iterator[None]:
    """Raises ConfigError that names the file, and the line."""
    name = f"{shown(file.parent)}/{file.name}"  # of a link, not of what it leads to
    try:
        yield
    except SyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno or 1}: {error.msg}") from None
    except ValueError as error:  # null bytes
        raise ConfigError(f"{name}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None


def syntax_tree(text: bytes) -> ast.Module:
    """Of Python code, one thread at a time: CPython counts their depths together (its issue 106905)."""
    with _parsing:
        return ast.parse(text)


@cache
def _normalized_ast(text: bytes) -> str:
    tree = syntax_tree(text)
    blank = _BlankTexts()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        call = node.exc if isinstance(node, ast.Raise) else node
        if isinstance(call, ast.Call) and (isinstance(node, ast.Raise) or _is_message(call.func)):
            call.args = [blank.visit(given) for given in call.args]
            call.keywords = [blank.visit(given) for given in call.keywords]
    return ast.dump(tree)


def _is_message(called: ast.expr) -> bool:
    """Whether it is `run.note`, `self.run.log` ...; others have methods of these names that compute."""
    if not isinstance(called, ast.Attribute) or called.attr not in MESSAGES:
        return False
    return getattr(called.value, "id", getattr(called.value, "attr", "")) == "run"


class _BlankTexts(ast.NodeTransformer):
    """Empties every text, an f-string with the values that it shows; a call stays as it is."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        computed = [v for v in node.values if any(isinstance(n, COMPUTES) for n in ast.walk(v))]
        return ast.JoinedStr(computed) if computed else ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node
