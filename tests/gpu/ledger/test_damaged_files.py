"""The ledger among odd neighbours: words that cannot be true, threads that talk on, a stderr that is gone."""

import errno
import subprocess
import sys
import threading

import pytest

from overnight.gpu.card import find
from overnight.gpu.ledger.ledger import Ledger
from tests.support.checkouts import until


def test_nothing_is_told_after_the_release(tmp_path):
    ledger, over, mine = Ledger(tmp_path / "card", 1000), threading.Event(), tmp_path / "mine"
    for _ in range(20):
        over.clear()
        with ledger.acquire(100) as grant:
            talkers = [threading.Thread(target=_talk, args=(grant, over)) for _ in range(2)]
            for one in talkers:
                one.start()
        with mine.open("wb", buffering=0) as file:  # takes the number of what was closed
            file.write(b"MINE" * 1000)
            grant.update(step="x")
            over.set()
            for one in talkers:
                one.join()
        assert mine.read_bytes() == b"MINE" * 1000


def _talk(grant, over):
    while not over.is_set():
        grant.update(step="x" * 30_000)


def test_what_a_callers_own_function_raises_is_no_fault_of_the_ledger(tmp_path):
    def broken(_ahead, _taken):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    ledger = Ledger(tmp_path, 1000)
    with ledger.acquire(600):
        with pytest.raises(BrokenPipeError):
            ledger.acquire(600, on_wait=broken)
        assert [r.mib for r in ledger.requests()] == [600]


@pytest.mark.parametrize("where", ["/dev/full", "-"])
def test_a_message_that_cannot_be_written_is_no_reason_not_to_wait(checkout, where):
    card = find(cpu=True)
    ledger = Ledger(card.folder, card.budget_mib)
    script = f"import overnight\nwith overnight.lease({card.budget_mib}): print('held')"
    with ledger.acquire(card.budget_mib):
        command = f'exec "$0" -c "$1" 2>{where}' if where != "-" else 'exec "$0" -c "$1" 2>&-'
        waiter = subprocess.Popen(
            ["sh", "-c", command, sys.executable, script], stdout=subprocess.PIPE, text=True
        )
        until(lambda: len(ledger.requests()) == 2 or waiter.poll() is not None)
    assert waiter.communicate()[0] == "held\n"
    assert waiter.returncode == 0
