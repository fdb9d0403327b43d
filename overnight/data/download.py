"""Downloads that resume where they broke off, and end whole, verified and renamed, or not at all."""

import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from overnight.data import digests
from overnight.errors import DataError, DiskFull, Unavailable, file_error
from overnight.files import is_disk_full
from overnight.paths import shown

Progress = Callable[[str, int, int | None], None]
"""Called with what is fetched, the bytes that are here, and the bytes in all (None: not known)."""

TRIES, TRIES_TO_CONNECT, CHUNK = 5, 2, 1 << 20


class Announce:
    def __init__(self, every_s: float = 5) -> None:
        self.every_s, self.last = every_s, -1e9

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self.last >= self.every_s or done == total:
            self.last = now
            of = f" of {total / 1e6:.1f}" if total else ""
            print(f"{what}: {done / 1e6:.1f}{of} MB", flush=True)


class _BrokenOff(Exception):
    """The connection ended too early, or the server has a passing trouble."""

    def __init__(self, reason: str, tries: int = TRIES) -> None:
        self.tries = tries
        super().__init__(reason)


def download(
    url: str,
    target: Path,
    sha256: Sequence[str] = (),
    size: int | None = None,
    progress: Progress | None = None,
    pause_s: float = 1,
) -> None:
    """Fetch *url* to *target*, verified; `<target>.part` is taken up again by the next call.

    Raises DataError (refused, gone, wrong digest or size), Unavailable (connection lost TRIES times without a
    new byte) and DiskFull.
    """
    part = target.with_name(f"{target.name}.part")
    progress = progress or Announce()
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, sha256, size, progress)
            break
        except _BrokenOff as error:
            grown = (part.stat().st_size if part.exists() else 0) > before
            failures = 0 if grown else failures + 1
            if failures >= error.tries:
                raise Unavailable(_advice(url, target, str(error))) from None
            time.sleep(pause_s * 2**failures)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(
                    f"{shown(target)}: the disk is full; what is here is kept and taken up again"
                ) from None
            raise file_error(target, f"cannot be written: {error.strerror or error}") from None
    _accept(url, part, target, sha256, size)


def _receive(url: str, part: Path, sha256: Sequence[str], size: int | None, progress: Progress) -> None:
    """Append what is missing to the part, or start it anew when the server cannot go on."""
    tag = part.with_name(f"{part.name}.tag")
    have = part.stat().st_size if part.exists() else 0
    known = tag.read_text() if tag.exists() else ""
    if have and not (known or sha256):  # nothing would tell that the file changed meanwhile
        have = 0
    if have and have == size:
        return
    headers = {"User-Agent": "overnight", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": known} if not sha256 else {})
    with _open(url, headers, part) as answer:
        begins = str(answer.headers.get("Content-Range", ""))
        have = have if answer.status == 206 and begins.startswith(f"bytes {have}-") else 0
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if size is not None and (total or 0) > size:
            raise DataError(
                f"the server offers {total} bytes, the entry says {size}; correct the entry or its url"
            )
        _check_room(part, (total or size or 0) - have)
        with part.open("r+b" if have else "wb") as sink:
            sink.truncate(have)
            sink.seek(have)
            done = _copy(answer, sink, have, lambda n: progress(part.stem, n, total or size))
    if total is not None and done < total:
        raise _BrokenOff(f"the connection ended after {done} of {total} bytes")


def _open(url: str, headers: dict[str, str], part: Path) -> Any:
    """The answer (200 or 206); a refusal is a DataError, a passing trouble a _BrokenOff."""
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the entry admits https alone
        return _OPENER.open(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is longer than what is there
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server has fewer bytes than are here; starting anew") from None
        said = f"the server answers {error.code} {error.reason}"
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _BrokenOff(said) from None
        raise DataError(_advice(url, part.with_suffix(""), said)) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise _BrokenOff(reason, TRIES_TO_CONNECT) from None


def _copy(answer: Any, sink: IO[bytes], done: int, report: Callable[[int], None]) -> int:
    try:
        while chunk := answer.read(CHUNK):
            sink.write(chunk)
            done += len(chunk)
            report(done)
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _BrokenOff(str(error) or type(error).__name__) from None
    finally:
        sink.flush()
        os.fsync(sink.fileno())
    return done


def _accept(url: str, part: Path, target: Path, sha256: Sequence[str], size: int | None) -> None:
    found = part.stat().st_size
    wrong = f"{found} bytes, expected {size}" if size is not None and found != size else ""
    if not wrong and sha256:
        digest = digests.sha256(part)
        wrong = "" if digest in sha256 else f"sha256 {digest}, expected {' or '.join(sha256)}"
    part.with_name(f"{part.name}.tag").unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise DataError(
            f"{url}: what came is not what the entry says: {wrong}; try again, or correct the entry"
        )
    os.replace(part, target)


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DiskFull(
            f"{shown(part.parent)}: the download needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "make room"
        )


def _advice(url: str, target: Path, reason: str) -> str:
    place = shown(target.with_name(target.name.removeprefix(".")))
    return f"{url}: {reason}; try again later, or get it by other means and put it at {place}"


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow https to https only; a loopback server may stay on http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith(("https://", "http://127.0.0.1")):
            raise DataError(
                f"{req.full_url}: redirects to {newurl}, which is not https; correct the url of the entry"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SafeRedirects)
