"""Files that are written whole or not at all, JSON that may be missing, and sha256 digests."""

import ast
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

UNREADABLE = (OSError, ValueError, RecursionError)  # missing, damaged, or nested too deeply
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MESSAGES = ("note", "log", "progress")  # methods of Run whose text is for people
Content = str | bytes | Callable[[IO[bytes]], object]


def atomic_write(path: Path, content: Content, durable: bool = False) -> None:
    """Write a part file beside `path`, then rename it, so that no reader ever sees half of it.

    Args:
        path: its folder must exist.
        content: text (as utf-8), bytes, or a function that writes to the open part file.
        durable: return only when the file and its folder's entries are on the disk (fsync).

    Raises OSError, and what a content function raises; then `path` is unchanged and the part file is removed.
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
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is missing, damaged, or holds another type."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    """sha256 of the names and bytes of all files below a folder, in hex."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{file.relative_to(folder)}\0{file_sha256(file)}\n".encode())
    return whole.hexdigest()


def source_sha256(files: Iterable[Path]) -> str:
    """sha256 of what Python files compute, in this order, in hex.

    Comments, layout, docstrings and messages (of a raised error, a note, a log line) do not change it.
    """
    trees = [_normalized_ast(file.read_bytes()) for file in files]
    return hashlib.sha256("\0".join(trees).encode()).hexdigest()


@cache
def _normalized_ast(text: bytes) -> str:
    return ast.dump(_DropMessages().visit(ast.parse(text)))


class _DropMessages(ast.NodeTransformer):
    """Removes docstrings, and the text of what is raised, noted or logged."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Modules, classes and functions lose their docstring."""
        super().generic_visit(node)
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """The text of an error is for people."""
        self.generic_visit(node)
        silent: ast.AST = _BlankTexts().visit(node)
        return silent

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """So is that of run.note, run.log and run.progress."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in MESSAGES and _is_run(node.func.value):
            node.args = [_BlankTexts().visit(given) for given in node.args]
            for keyword in node.keywords:
                keyword.value = _BlankTexts().visit(keyword.value)
        return node


def _is_run(node: ast.expr) -> bool:
    """Whether it is called `run` or `something.run`; others have methods of these names that compute."""
    return getattr(node, "id", getattr(node, "attr", "")) == "run"


class _BlankTexts(ast.NodeTransformer):
    """Empties every text."""

    def visit_JoinedStr(self, _node: ast.JoinedStr) -> ast.AST:
        """An f-string with the values it shows."""
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """A text, or a number that stays."""
        return ast.Constant("") if isinstance(node.value, str) else node
