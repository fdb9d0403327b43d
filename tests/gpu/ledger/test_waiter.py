"""Scripts that hold a part of the card and ask for more: the youngest gives way when nobody could ever go on."""

import os
import subprocess
import sys

import pytest

from overnight.errors import BadInput, Stopped
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.ledger import Ledger
from overnight.gpu.ledger.waiter import find_deadlock, unblock_candidate

SCRIPT = """
import sys
import overnight
outer, inner = int(sys.argv[1]), int(sys.argv[2])
with overnight.lease(outer):
    print("holds", flush=True)
    sys.stdin.readline()
    try:
        with overnight.lease(inner):
            print("got more", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def script(folder, outer, inner):
    ours = {"OVERNIGHT_CARD_DIR": str(folder), "OVERNIGHT_VIRTUAL_MIB": "1000", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, str(outer), str(inner)]
    started = subprocess.Popen(
        command,
        env={**os.environ, **ours},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout.readline() == "holds\n"
    return started


def test_two_scripts_that_hold_and_ask_for_more_do_not_wait_for_ever(checkout, tmp_path):
    first, second = script(tmp_path, 400, 500), script(tmp_path, 400, 400)
    for one in (first, second):
        one.stdin.write("\n")
        one.stdin.flush()
    error = second.stdout.readline()
    assert error.startswith("BadInput asked for 400 MiB of the card while holding some"), error
    assert f"pid {first.pid}, 500 more" in error
    assert first.stdout.readline() == "got more\n"
    assert [one.wait(60) for one in (first, second)] == [0, 0]


def test_a_lease_inside_another_stands_where_that_one_stood(checkout, tmp_path):
    first = script(tmp_path, 400, 500)
    ledger = Ledger(tmp_path / "virtual", 1000)
    seen = []

    def then(ahead, _taken):
        seen.extend(r.mib for r in ahead)
        first.stdin.write("\n")
        first.stdin.flush()

    with ledger.acquire(
        900, on_wait=then
    ):  # it came before the inner lease was asked for, and after the outer one
        assert seen == [400]
    assert first.stdout.readline() == "got more\n"
    assert first.wait(60) == 0


def test_one_that_works_while_another_of_its_threads_waits_is_no_deadlock(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    asked = iter([False, True])
    with ledger.acquire(400), pytest.raises(Stopped):
        ledger.acquire(900, should_stop=lambda: next(asked))


def requests(folder, *rows):
    """(q or h, ticket, MiB, pid, what it holds meanwhile) as requests with their files."""
    found = []
    for kind, ticket, mib, pid, holding in rows:
        request = Request(folder, kind == "h", ticket, mib, pid)
        request.path.write_text(f'{{"holding": {holding}}}')
        found.append(request)
    return found


@pytest.mark.parametrize(
    ("rows", "tied", "loose"),
    [
        (
            [("h", 1, 4, 11, []), ("h", 2, 4, 12, []), ("q", 1, 5, 11, [1]), ("q", 2, 4, 12, [2])],
            [5, 4],
            None,
        ),
        ([("h", 1, 4, 11, []), ("h", 2, 4, 12, []), ("q", 1, 5, 11, [1])], [], None),  # the second works on
        (
            [("h", 1, 4, 11, []), ("h", 2, 4, 12, []), ("q", 1, 5, 11, [1]), ("q", 2, 4, 12, [])],
            [],
            None,
        ),  # in another thread
        (
            [("h", 1, 4, 11, []), ("h", 2, 4, 12, []), ("q", 1, 2, 11, [1]), ("q", 2, 4, 12, [2])],
            [],
            None,
        ),  # the first may start
        (
            [("h", 5, 6, 11, []), ("q", 1, 9, 12, []), ("q", 5, 3, 11, [5])],
            [3],
            3,
        ),  # behind one that waits for it
        ([("q", 1, 9, 12, [])], [], None),
    ],
)
def test_what_is_a_deadlock(tmp_path, rows, tied, loose):
    found = requests(tmp_path, *rows)
    assert [r.mib for r in find_deadlock(10, found)] == tied
    assert getattr(unblock_candidate(10, found, find_deadlock(10, found)), "mib", None) == loose


def test_the_youngest_of_a_knot_is_told_and_nobody_else(tmp_path):
    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(600) as grant, ledger.acquire(300) as other:
        with pytest.raises(BadInput, match=r"asked for 500 .*the youngest"):
            ledger.acquire(500, {"holding": [grant.ticket, other.ticket]})
        assert ledger.held_mib() == 900
