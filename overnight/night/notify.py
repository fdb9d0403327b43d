"""A message with the first lines of a night's report: by apprise, a webhook, or a command of one's own.

Addresses are secrets that let anybody write there. They lie in files that git ignores, a config names the
file, and only `python -m overnight.night.notify` opens it, whose output is a sentence of this module.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from pydantic import Field, field_validator, model_validator

from overnight import paths, processes
from overnight.config import Values

FORM = "{apprise: FILE}, {webhook: FILE} or {command: [PROGRAM, ...]}"
IN_A_FILE = (
    "an address would go to git and MLflow with the config: write it to a file, "
    "say .overnight/notify.txt, and name that"
)
HURRIED_S = 3.0  # for a run that is being stopped
LONGEST_REASON = 200
SENT, NOT_SENT = 0, 1


class Notify(Values):
    """Where the first lines of a night's report go. All ways that are given are used; none is the default.

    apprise, webhook: a file below the checkout with addresses, one a line
    command: gets the text as its input
    """

    apprise: str = ""
    webhook: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float = Field(20.0, gt=0, le=300)

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, given: Any) -> Any:
        if isinstance(given, Notify | dict):
            return given
        raise ValueError(f"expected {FORM}")

    @field_validator("apprise", "webhook", mode="before")
    @classmethod
    def _is_a_file(cls, given: Any) -> Any:
        if not isinstance(given, str):
            raise ValueError("expected the path of a file with addresses, one a line")  # noqa: TRY004
        if "://" in given:
            raise ValueError(IN_A_FILE)
        return given

    @field_validator("command", mode="before")
    @classmethod
    def _has_no_address(cls, given: Any) -> Any:
        words = shlex.split(given) if isinstance(given, str) else given
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError("expected a program and its arguments")
        if any("://" in word for word in words):
            raise ValueError(f"{IN_A_FILE} to a script of yours")
        return words


def send(notify: Notify, title: str, lines: Sequence[str], is_stopping: bool = False) -> list[str]:
    """Send by every way that is given, each for `timeout_s` at most; a line for the log about each."""
    limit_s = min(notify.timeout_s, HURRIED_S) if is_stopping else notify.timeout_s
    message = json.dumps({"title": title, "lines": lines})
    files = {"apprise": notify.apprise, "webhook": notify.webhook}
    found = []
    for way, file in files.items():
        if file:
            own = [sys.executable, "-P", "-m", "overnight.night.notify", way, file]
            found.append(f"message by {way}: {_run(own, message, limit_s, subprocess.PIPE)}")
    if notify.command:  # what it prints may name addresses
        text = "\n".join([title, *lines])
        found.append(f"message by command: {_run(notify.command, text, limit_s, subprocess.DEVNULL)}")
    return found


def _run(command: Sequence[str], text: str, limit_s: float, output: int) -> str:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=paths.root(),
            env=processes.with_proxies(os.environ),
            process_group=0,
        )
    except OSError as error:
        return f"not sent: the command cannot be started: {error.strerror}"
    try:
        printed, _ = process.communicate(text.encode(), timeout=limit_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"not sent: it took longer than {limit_s:g} s"
    if process.returncode == SENT:
        return "sent"
    reason = (printed or b"").decode(errors="replace").strip()[:LONGEST_REASON]
    return f"not sent: {reason or f'it ended with exit code {process.returncode}'}"


# ------------------------------------------------------------------------------------ in the process


def main(way: str, file: str, given: TextIO) -> int:
    """Send the message that is given as JSON; prints why not, without an address."""
    message = json.load(given)
    title = str(message["title"])
    body = "\n".join(message["lines"])
    try:
        lines = (paths.root() / file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        print(f"the file that notify.{way} names cannot be read")
        return NOT_SENT
    addresses = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    ways: dict[str, Callable[[list[str], str, str], str]] = {"apprise": by_apprise, "webhook": by_webhook}
    problem = ways[way](addresses, title, body) if addresses else "its file has no address"
    print(problem)
    return NOT_SENT if problem else SENT


def by_apprise(addresses: Sequence[str], title: str, body: str) -> str:
    """What went wrong; empty when all took it."""
    import logging

    logging.disable()  # it logs addresses
    from apprise import Apprise

    sender = Apprise()
    unknown = [str(number) for number, address in enumerate(addresses, 1) if not sender.add(address)]
    if unknown:
        return f"of its addresses apprise does not know number {', '.join(unknown)}"
    return "" if sender.notify(title=title, body=body) else "an address did not take it"


def by_webhook(addresses: Sequence[str], title: str, body: str) -> str:
    """POST it as JSON, whose `text` Slack and Mattermost show, and whose `content` Discord does."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    text = f"{title}\n{body}"
    data = json.dumps({"text": text, "content": text, "title": title, "body": body}).encode()
    problems = []
    for number, address in enumerate(addresses, 1):
        if not address.startswith(("https://", "http://")):
            problems.append(f"address {number} does not begin with https://")
            continue
        headers = {"Content-Type": "application/json", "User-Agent": "overnight"}
        try:
            urlopen(Request(address, data, headers)).close()  # noqa: S310 - http and https alone
        except HTTPError as error:
            problems.append(f"the server of address {number} answered {error.code}")
        except (OSError, ValueError):
            problems.append(f"the server of address {number} cannot be reached")
    return "; ".join(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.stdin))
