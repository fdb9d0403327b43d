"""`overnight bundle`: one zip of what somebody else needs to understand a run. No data, no secrets.

Left out are the artifacts of steps. Replaced in every file are home folders (by ~), the values of variables
whose names look secret, tokens, passwords in addresses, and the names of the user and the machine.
"""

import json
import os
import platform
import re
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from overnight import paths
from overnight.errors import BadInput
from overnight.gpu import timeline
from overnight.gpu.card import find as find_card
from overnight.orchestration.launcher import LOG_BYTES, log_tail
from overnight.orchestration.provenance import commit
from overnight.orchestration.recorded import Recorded
from overnight.processes import user_name

SERVICES = ("supervisor", "worker", "prefect", "mlflow", "ship")
SERVICE_BYTES = 1 << 14  # of each log
GUARDED = r"(?:(?:api|access|private)[_-]?key|token|secret|passw(?:or)?d|credential|authorization|cookie)"
SECRET_NAME = re.compile(GUARDED, re.IGNORECASE)
SHORTEST = 6  # characters of a value that is replaced wherever it stands
PATTERNS = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----"),
        "<private key>",
    ),
    (
        re.compile(
            r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
            r"|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
            r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|nvapi-[\w-]{16,}|pypi-[\w-]{16,}"
            r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
        ),
        "<token>",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.+/=~-]{8,}", re.IGNORECASE), r"\1 <token>"),
    (re.compile(r"(\w+://)[^\s/@:]+(:[^\s/@]*)?@"), r"\1<login>@"),
    (  # a value under such a name, unless it is a number, as of max_tokens
        re.compile(
            rf"""([\w-]*{GUARDED}(?:s|[_-]\w+)?["']?\s*[:=]\s*["']?)(?![\d.]+\b|null|true|false|none)"""
            r"""[^\s"',;&}]{4,}""",
            re.IGNORECASE,
        ),
        r"\1<secret>",
    ),
    (re.compile(r"/(?:home|Users)/[^/\s\"':]+"), "~"),
)


def bundle(run: Recorded, file: Path) -> Path:
    """Write the zip. Raises BadInput when the file is there already."""
    if file.exists():
        raise BadInput(f"{paths.shown(file)}: is there already; name another file")
    part = file.with_name(f".{file.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, text in _texts(run):
                packed.writestr(name, redacted(text))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def redacted(text: str) -> str:
    """Without secrets and without what names the user, as far as their form shows it."""
    secrets = [v for name, v in os.environ.items() if SECRET_NAME.search(name) and len(v) >= SHORTEST]
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "<secret>")
    home = str(Path.home())
    for folder in {home, os.path.realpath(home)} - {"/"}:
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    for pattern, instead in PATTERNS:
        text = pattern.sub(instead, text)
    for name, instead in ((socket.gethostname(), "<host>"), (user_name(), "<user>")):
        if len(name) > 4:  # a shorter one is a word of the text as well: root
            text = re.sub(rf"\b{re.escape(name)}\b", instead, text)
    return text


def _texts(run: Recorded) -> Iterator[tuple[str, str]]:
    """Name and text of each file."""
    top = Recorded.read(Path(run.record.parent)) if run.is_step else run
    steps = [run] if run.is_step else run.steps()
    yield "summary.txt", _summary(run, steps)
    yield "versions.txt", _versions()
    yield "timeline.txt", _timeline([*([top] if top else []), *steps])
    yield from _card(run)
    for path in sorted(top.folder.glob("*")) if top else ():
        if path.suffix in (".yaml", ".json", ".diff") and path.name not in ("record.json", "shipped.json"):
            yield f"config/{path.name}", path.read_text(encoding="utf-8", errors="replace")
    for step in steps:
        yield from _step(step)
    for name in SERVICES:
        text = _end(paths.log_file(name), SERVICE_BYTES)
        if text:
            yield f"services/{name}.log", text


def _summary(run: Recorded, steps: list[Recorded]) -> str:
    tags = run.record.tags
    code = tags.get("mlflow.source.git.commit") or "unknown"
    lines = [f"{run.name}, {run.began}", f"commit {code}, now {commit()}"]
    lines += [f"card {tags.get('card') or tags.get('overnight.card', 'unknown')}", ""]
    for step in steps:
        failure = step.failure
        ended = "no result" if step.result is None else "done"
        lines += [f"{step.began}  {step.record.label}: {failure or ended}"]
        lines += [f"    {line}" for line in failure.evidence] if failure else []
    return "\n".join([*lines, ""])


def _versions() -> str:
    names = sorted(f"{one.metadata['Name']}=={one.version}" for one in distributions())
    here = [f"python {sys.version}", f"{platform.platform()}", f"glibc {platform.libc_ver()[1]}"]
    return "\n".join([*here, f"{os.cpu_count()} cores", "", *dict.fromkeys(names), ""])


def _timeline(runs: list[Recorded]) -> str:
    """Every event but the points of curves, in order of time, with the step that it is of."""
    found = list[tuple[float, str]]()
    for run in runs:
        for event in run.events():
            rest = {k: v for k, v in event.items() if k not in ("event", "at")}
            if event["event"] not in ("metrics", "progress"):
                text = rest.get("text") or json.dumps(rest, ensure_ascii=False, default=str)
                found.append((float(event.get("at", 0.0)), f"{run.record.label}  {event['event']}  {text}"))
    clock = "%Y-%m-%d %H:%M:%S"
    lines = (f"{time.strftime(clock, time.localtime(at))}  {text}" for at, text in sorted(found))
    return "\n".join([*lines, ""])


def _card(run: Recorded) -> Iterator[tuple[str, str]]:
    from overnight.cli.doctor import recording

    card = find_card()
    yield "card.json", json.dumps({"card": card.model_dump(mode="json"), "driver": recording()}, indent=1)
    since = time.mktime(time.strptime(run.began, "%Y-%m-%d %H:%M:%S"))
    points = [str(point) for point in timeline.read(card, since)]
    if points:
        yield "card-timeline.txt", "\n".join([*points, ""])


def _step(step: Recorded) -> Iterator[tuple[str, str]]:
    for name in ("spec.json", "result.json", "divergence.json"):
        path = step.folder / name
        if path.is_file():
            yield f"steps/{step.folder.name}/{name}", path.read_text(encoding="utf-8", errors="replace")
    yield f"steps/{step.folder.name}/log.txt", log_tail(step.folder)


def _end(path: Path, most: int = LOG_BYTES) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
