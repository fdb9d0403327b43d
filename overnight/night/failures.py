"""Why a step failed: the kind of failure, the lines that show it, and one thing to do about it.

The exit code decides where it says enough (errors.py, or a signal). Else the rules are tried in order against
the words of the failure: the names of what was raised with their bases and causes, and the message; for a
process without a result, what its log ends with.
"""

import errno
import itertools
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from overnight.config import Values
from overnight.errors import BadInput, DiskFull, DoesNotFit, OutOfMemory, Stopped, one_line
from overnight.gpu.out_of_memory import MESSAGES as OUT_OF_MEMORY

Kind = Literal[
    "out of memory",
    "does not fit",
    "bad data",
    "not a number",
    "killed by the system",
    "disk",
    "network",
    "stopped",
    "bug",
]
MOST_EVIDENCE = 5
LOG_LINES = 15  # of a log without a traceback
COMMON = ("BaseException", "Exception", "object")
PROGRAM = re.compile(
    r"the command (?:ended with exit code (\d+)|was ended by signal (\d+))"
)  # tasks/shared/program
NO_RESULT = "and no result; its log"  # in the reason of a process that wrote none
OURS = re.compile(r"/(tasks|flows|overnight)/[\w/]+\.py$")
FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)')
RAISED = re.compile(r"^[A-Za-z_][\w.]*(: .*)?$")  # the line below a traceback


class Failure(Values):
    """transient: the same may work later, though nothing is changed."""

    kind: Kind
    evidence: tuple[str, ...] = ()
    fix: str = ""
    transient: bool = False

    def __str__(self) -> str:
        return f"{self.kind}; {self.fix}" if self.fix else self.kind

    def lines(self, label: str, reason: str) -> list[str]:
        """For the end of a run: what to do about a step, and what shows it beside the reason's first line."""
        first = reason.partition("\n")[0]
        return [f"{label}: {self}", *(f"    {line}" for line in self.evidence if line not in first)]


class Ended(Protocol):
    """What is known of a step that failed (protocol.StepResult)."""

    @property
    def code(self) -> int:
        """Exit code of errors.py; -N or 128 + N of a process that signal N ended."""

    @property
    def error(self) -> str:
        """The message."""

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of what was raised, by `names_of`; empty when the process left no result."""


class Rule(NamedTuple):
    kind: Kind
    words: str  # a regular expression
    fix: str  # with fields for its named groups
    transient: bool = False


CARD_FIX = (
    "lower its batch or micro_batch, or take a smaller model; `overnight fit CONFIG` shows what would fit"
)
HOST_FIX = "close other programs or add swap, or lower its batch, workers or rows: the host's memory was full"
ROOM_FIX = "free some room: old runs are folders in .overnight/steps; what was done so far is kept"
DATA_FIX = (
    "correct the file or the value that is named; `overnight data verify NAME` compares files with digests"
)
NAN_FIX = "lower its lr, set precision: fp32, or clip its gradients; divergence.json names the first bad step"
AWAY_FIX = "look at the network and at the server's address; run it again when the server answers"
REFUSES = r"(?!408|425|429)4\d\d"  # HTTP codes that stay; the others pass
TRACE_FIX = "run it with CUDA_LAUNCH_BLOCKING=1 to find the line that failed"

CRASHED_FIX = (
    "run it again; if it crashes again, a library is at fault: send the file of `overnight bundle RUN`"
)
RULES = (
    Rule(  # what glibc prints when it finds the heap or the stack damaged
        "bug",
        r"double free or corruption|free\(\): invalid|(malloc|realloc|munmap_chunk)\(\): "
        r"|corrupted (size vs|double-linked|unsorted)|stack smashing detected",
        CRASHED_FIX,
    ),
    Rule("stopped", r"\bKeyboardInterrupt\b", "run it again: it goes on where it was"),
    Rule(
        "bad data",
        r"Input \w+ contains (NaN|infinity)|IntCastingNaNError|cannot convert float NaN",
        "remove or fill the values that are missing",
    ),
    Rule("not a number", r"\bNotFinite\b", "mend the environment that is named; the agent so far is kept"),
    Rule(
        "not a number",
        r"\bDiverged\b|FloatingPointError|returned nan values|training has diverged"
        r"|optimizer step \d+ .{0,60}is no number|(?i:loss (is|was|became) (nan|inf))"
        r"|found invalid values:[\s\S]*\bnan\b|infs or NaNs|NaNs or infs"
        r"|did not converge|gradients? .{0,60}(is|are) non-finite|NaN or Inf found",
        NAN_FIX,
    ),
    Rule(
        "out of memory",
        r"DefaultCPUAllocator|Unable to allocate [\d.]+ \w+ for an array|Bus error|\bbad_alloc\b"
        r"|(out of|insufficient) shared memory|</torch_\w+>.{0,60}No space left"
        r"|(?<!OutOf)\bMemoryError\b|Cannot allocate memory|\bENOMEM\b|paging file is too small",
        HOST_FIX,
    ),
    Rule(
        "out of memory",
        rf"(?i:{OUT_OF_MEMORY.pattern})|\bOutOfMemory(Error)?\b|RESOURCE_?EXHAUSTED|ResourceExhausted"
        rf"|\bOOM when",
        CARD_FIX,
    ),
    Rule(
        "disk",
        r"\bENOSPC\b|\bEDQUOT\b|No space left on device|Disk quota exceeded|\bDiskFull\b|disk is full"
        r"|inline_container\.cc|PytorchStreamWriter failed",
        ROOM_FIX,
        transient=True,
    ),
    Rule(
        "disk",
        r"\b(EROFS|EIO|ESTALE|EFBIG)\b|Read-only file system|Input/output error|Stale file handle"
        r"|File too large|disk I/O error|readonly database",
        "look at the disk (`dmesg`, `df`): it takes no writes, or it is failing",
    ),
    Rule(
        "disk",
        r"PermissionError|\bE(ACCES|PERM)\b|Permission denied",
        "give yourself the rights to the file or folder that is named",
    ),
    Rule(
        "killed by the system",
        r"fallen off the bus|uncorrectable ECC|[Dd]river/library version mismatch"
        r"|driver version is insufficient"
        r"|no CUDA-capable device|CUDA (driver )?error: (unknown error|device not ready|initialization error)"
        r"|NVMLError",
        "restart the machine, or install the driver anew; `overnight doctor` says what the card answers",
    ),
    Rule(
        "killed by the system",
        r"killed by signal: (Killed|Terminated)|BrokenProcessPool|terminated abruptly"
        r"|exited unexpectedly|SIGKILL|SIGTERM|TerminatedWorkerError|\boom_kill|OOM[ -]?Killed|(^"
        r"|: )\d* *Killed\b",
        HOST_FIX,
    ),
    Rule(
        "network",
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "set the clock, or name your proxy's certificates by SSL_CERT_FILE",
    ),
    Rule(
        "network",
        rf"HTTP Error {REFUSES}|\b{REFUSES} Client Error|Client error '{REFUSES}|answers {REFUSES}"
        rf"|status(_code| code)?[:= ]+'?{REFUSES}|GatedRepoError|RepositoryNotFoundError"
        r""
        r"|\b401\b.{0,20}Unauthorized|\b403\b.{0,20}Forbidden",
        "correct the address, or log in there: the server answers, and refuses",
    ),
    Rule(
        "network",
        r"WRONG_VERSION_NUMBER|InvalidURL|MissingSchema|InvalidSchema|UnsupportedProtocol"
        r"|unknown url type|no host given"
        r"|OfflineModeIsEnabled",
        "correct the address, or the variable that forbids the network",
    ),
    Rule(
        "network",
        r"\bUnavailable\b|\b(Connection|ConnectionReset|ConnectionRefused|ConnectionAborted|Timeout|URL"
        r"|HTTP)Error\b"
        r"|\bConnect(ion)?(Error|Timeout|TimeoutError)\b|\b(Read|Write|Pool)Timeout(Error)?\b|\bgaierror\b"
        r"|\bherror\b|RemoteDisconnected|IncompleteRead|BadStatusLine|(Remote|Local)?ProtocolError"
        r"|ChunkedEncodingError|\bSSL\w*Error\b|NameResolutionError|Max ?[Rr]etr(yError|ies exceeded)"
        r"|NewConnectionError"
        r"|ClientConnect\w+|ServerDisconnectedError|ServerTimeoutError|ClientPayloadError|httpx\.\w+Error"
        r"|ProxyError|HTTPStatusError|HfHubHTTPError|LocalEntryNotFoundError"
        r"|\bE(CONN\w+|NETUNREACH|NETDOWN|HOSTUNREACH|HOSTDOWN|TIMEDOUT)\b|name resolution"
        r"|(?i:(could|can) ?not (resolve|connect)|failed to connect|unable to (resolve|connect)"
        r"|couldn'?t connect|no such host|dial tcp|network error|((read|urlopen error) "
        r"|socket\.timeout: )timed out|host_unreachable"
        r"|connection (was |unexpectedly )?(refused|reset|aborted|closed|timed out)"
        r"|network is unreachable|no route to host)"
        r"|\b5\d\d (Server Error|Bad Gateway|Service Unavailable|Gateway Time-?out)|Too Many Requests"
        r"|HTTP Error (5\d\d|408|425|429)|answers (5\d\d|408|425|429)",
        AWAY_FIX,
        transient=True,
    ),
    Rule(
        "bug",
        r"No module named '(?P<name>[\w.]+)'",
        "install {name} into this environment (`make setup`), or correct the import",
    ),
    Rule(
        "bug",
        r"\b(Import|ModuleNotFound)Error\b|undefined symbol|cannot open shared object file"
        r"|GLIBC\w* not found",
        "install the packages anew (`make setup`): one does not match the others",
    ),
    Rule(
        "bug",
        r"\bE[MN]FILE\b|Too many open files",
        "raise `ulimit -n`, or use fewer workers: too many files are open",
    ),
    Rule(
        "bad data",
        r"\b(Data|Config)Error\b|UnicodeDecodeError|JSONDecodeError|BadZipFile|BadGzipFile|zlib\.error"
        r"|LZMAError|tarfile\.\w+Error|\bEOFError\b|UnidentifiedImageError|DecompressionBomb|is truncated"
        r"|ParserError|ScannerError|EmptyDataError|polars\.exceptions\.\w+|ComputeError|SchemaError"
        r"|ShapeError"
        r"|ColumnNotFoundError|Arrow(Invalid|TypeError|KeyError)|_?csv\.Error|SafetensorError|UnpicklingError"
        r"|PytorchStreamReader|invalid load key|struct\.error|FileNotFoundError|IsADirectoryError"
        r"|NotADirectoryError|\b(ENOENT|EISDIR|ENOTDIR)\b|No such file or directory|loading state_dict"
        r"|size mismatch for|could not convert string|invalid literal for|device-side assert"
        r"|Target -?\d+ is out of bounds|index out of range in self|at least 2 classes|Unknown label type"
        r"|[Ff]ound array with 0 |inconsistent numbers of samples|expects each tensor to be equal size"
        r"|least populated class|unsupported image|cannot identify image|reading image file"
        r"|labels? out of range|metrics can't handle|broken data stream|not in index\b"
        r"|ParseError|cv2\.error|(?i:length mismatch|should be a 1d array|corrupt|malformed|not well-formed"
        r"|unexpected end of (file|data|stream))",
        DATA_FIX,
    ),
    Rule("bug", r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error", TRACE_FIX),
    Rule("not a number", r"\b(nan|NaN|NAN|-?inf)\b", NAN_FIX),
    Rule("out of memory", r"(?i:out of memory|(not enough|insufficient|no available) memory)", CARD_FIX),
    Rule("bug", r"called sys\.exit", "let the step return, or raise an error that says why"),
)
BY_CODE: dict[int, tuple[Kind, str, bool]] = {
    DoesNotFit.child_code: ("does not fit", CARD_FIX, False),
    Stopped.child_code: ("stopped", "run it again: it goes on where it was", False),
    DiskFull.child_code: ("disk", ROOM_FIX, True),
}
BY_SIGNAL: dict[int, tuple[Kind, str]] = {
    signal.SIGKILL: ("killed by the system", HOST_FIX),
    signal.SIGTERM: ("killed by the system", "run it again: it goes on where it was"),
    signal.SIGHUP: ("killed by the system", "run it again, with --detach where the terminal may be closed"),
    signal.SIGINT: ("stopped", "run it again: it goes on where it was"),
    signal.SIGXCPU: ("killed by the system", "raise `ulimit -t`: its time on the CPU was limited"),
    signal.SIGBUS: (
        "killed by the system",
        "free room in /dev/shm and on the disk: a mapped file lost its bytes",
    ),
    signal.SIGILL: ("bug", "install packages that are built for this CPU"),
}


def classify(ended: Ended, log: str = "", notes: Sequence[str] = ()) -> Failure:
    """The failure of a step, or of a command, that ended with another code than 0.

    log: the end of what its process printed; notes: what it noted last.
    """
    kind, fix, transient = _judge(ended, log)
    return Failure(kind=kind, fix=fix, transient=transient, evidence=tuple(_evidence(ended, log, notes)))


def names_of(error: BaseException) -> tuple[str, ...]:
    """Qualified names of an exception and its bases, and of what caused it; `errno.ENOSPC` of an OSError."""
    found = dict[str, None]()
    seen = set[int]()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        kinds = [kind for kind in type(at).__mro__ if kind.__name__ not in COMMON]
        found |= dict.fromkeys(f"{k.__module__}.{k.__qualname__}".removeprefix("builtins.") for k in kinds)
        name = errno.errorcode.get(at.errno or 0, "") if isinstance(at, OSError) else ""
        found |= {f"errno.{name}": None} if name else {}
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return tuple(found)


def _judge(ended: Ended, log: str) -> tuple[Kind, str, bool]:
    if ended.code in BY_CODE:
        return BY_CODE[ended.code]
    code = _process_code(ended)
    is_silent = code is not None
    number = -code if code is not None and code < 0 else (code or 0) - 128
    if number in BY_SIGNAL:
        return *BY_SIGNAL[number], False
    texts = [] if is_silent else ["\n".join([*ended.raised, ended.error])]
    texts += [] if ended.raised and not is_silent else [_last_error(log)]
    for text, rule in itertools.product(texts, RULES):
        found = re.search(rule.words, text, re.MULTILINE)
        if found:
            return rule.kind, rule.fix.format(**found.groupdict()), rule.transient
    return _unknown(ended, number, log)


def _process_code(ended: Ended) -> int | None:
    """Exit code of a process that left nothing but its log: a step's own, or a user's program; else None."""
    program = PROGRAM.match(ended.error)
    if program:
        return int(program[1]) if program[1] else -int(program[2])
    is_explained = ended.raised or (0 < ended.code < 128 and NO_RESULT not in ended.error)
    return None if is_explained else ended.code


def _unknown(ended: Ended, number: int, log: str) -> tuple[Kind, str, bool]:
    if ended.code == OutOfMemory.child_code:
        return "out of memory", CARD_FIX, False
    if ended.code == BadInput.child_code:
        return "bad data", "correct what is named, and run it again", False
    if number in {*signal.Signals}:
        return "bug", CRASHED_FIX, False
    where = _place(log)
    if not where and PROGRAM.match(ended.error):
        return "bug", "read what the program printed: `log.txt` of its run in MLflow", False
    return "bug", f"correct {where}" if where else "read its log; `overnight bundle RUN` gathers it", False


def _last_error(log: str) -> str:
    """The line below the last traceback, with the rest of its message; without one, the last lines."""
    lines = log.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    below = lines[starts[-1] + 1 :] if starts else []
    end = next((n for n, line in enumerate(below) if RAISED.match(line)), None)
    found = lines[-LOG_LINES:] if end is None else below[end : end + LOG_LINES]
    return "\n".join(found)


def _place(log: str) -> str:
    """FILE:LINE of the innermost frame of our code in the log's last traceback; else of any code."""
    last = log.rpartition("Traceback (most recent call last)")[2]
    frames = [found for found in map(FRAME.match, last.splitlines()) if found]
    own = [found for found in frames if "site-packages" not in found["file"] and OURS.search(found["file"])]
    if not frames:
        return ""
    place = (own or frames)[-1]
    return f"{place['file']}:{place['line']}"


def _evidence(ended: Ended, log: str, notes: Sequence[str]) -> Iterator[str]:
    """At most MOST_EVIDENCE lines, the most telling first."""
    found = [one_line(line) for line in ended.error.splitlines()[:2] if line.strip()]
    where = _place(log)
    found += [f"raised at {where}"] if where else []
    if not ended.raised or PROGRAM.match(ended.error):
        found += [one_line(line) for line in _last_error(log).splitlines()[-3:] if line.strip()]
    found += [one_line(note) for note in notes[-2:]]
    yield from list(dict.fromkeys(found))[:MOST_EVIDENCE]
