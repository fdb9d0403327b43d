"""Mixes of jobs that train with torch under counted caps: side by side on one card, each inside its lease,
none out of memory.

Every job takes its lease as a step's process does, caps itself by it (overnight.gpu.memory_limit, the virtual
card's counter), fills four fifths of it and trains a net beside that until its time is over. In every fourth
mix one job tries to take 1.5 times its lease: it must fail, in its own process. They are forked from a
process of their own that has loaded torch, so that the other cases stay light.
"""

import json
import os
import random
import subprocess
import sys
import time

from tests.chaos._workers import BUDGET, Pen, Workers
from tests.chaos.card_mixes import NEAR, Mix, bound_s, mix, paper_s, play, summary
from tests.chaos.case import ROOT, Case, Measured

MIXES = 40
AT_ONCE = 4  # mixes side by side: some 20 jobs that compute now and then, which two cores can do
GREEDY_MIB = 301  # the size that says which job is the greedy one
MIB = 1 << 20


def cases() -> list[Case]:
    return [
        Case("card_torch", "40 mixes of torch children under counted caps, in 10 of them one that takes too much", _run,
             {"mixes": f"== {MIXES}", "out_of_memory": "== 0", "greedy_refused": f"== {MIXES // 4}", "above_budget_mib": "== 0",
              "reachable_most": f"<= {NEAR}"}, 600),
    ]  # fmt: skip


def _run(seed: int) -> Measured:
    command = [sys.executable, "-m", "tests.chaos.card_torch", str(seed)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def work(pen: Pen, mib: int, seconds: float) -> None:
    """One job; what became of it is written beside its notes."""
    from overnight.errors import OutOfMemory
    from overnight.gpu import memory_limit
    from overnight.gpu.card import Card
    from overnight.gpu.lease import lease

    os.environ["OVERNIGHT_CARD_DIR"] = str(pen.ledger.folder.parent)
    card = Card(uuid="virtual", name="virtual", total_mib=BUDGET, budget_mib=BUDGET, count=True)
    said = {"greedy": mib == GREEDY_MIB, "out_of_memory": False}
    with lease(mib, card, on_wait=lambda _ahead, _taken: None) as held, pen.noted(held.grant):
        cap = memory_limit.apply(held.mib, card)
        try:
            with cap.body():
                train(mib, seconds, 1.5 if mib == GREEDY_MIB else 0.8)
        except OutOfMemory:
            said["out_of_memory"] = True
    pen.path.with_suffix(".json").write_text(json.dumps({**said, "peak": cap.peak_mib() / mib}))


def train(mib: int, seconds: float, share: float) -> None:
    import torch

    until = time.monotonic() + seconds
    filled = [torch.empty(int(mib * MIB * share / 8), dtype=torch.uint8) for _ in range(8)]
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters())
    while time.monotonic() < until:
        loss = net(torch.randn(32, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(min(0.1, max(0.0, until - time.monotonic())))
    del filled


def main(seed: int) -> None:
    import torch

    from overnight.gpu import memory_counter

    torch.set_num_threads(1)
    with memory_counter.Counter(MIB):
        train(
            0, 0.1, 0.0
        )  # what torch loads and makes at the first step is loaded before the jobs are forked, too
    mixes, said, took, above = _mixes(seed), list[dict[str, float]](), list[float](), 0

    def read(workers: Workers) -> None:
        said.extend(json.loads(path.read_text()) for path in workers.notes.glob("*.json"))

    for first in range(0, MIXES, AT_ONCE):
        for seconds, top in play(mixes[first : first + AT_ONCE], work, read):
            took.append(seconds / bound_s(mixes[len(took)]))
            above = max(above, top - BUDGET)
    found = {
        "jobs": sum(map(len, mixes)),
        "jobs_that_said_so": len(said),
        "out_of_memory": sum(s["out_of_memory"] for s in said if not s["greedy"]),
        "greedy_refused": sum(s["out_of_memory"] for s in said if s["greedy"]),
        "peak_of_lease_most": max(s["peak"] for s in said),
        "above_budget_mib": max(0, above),
    }
    print(json.dumps({**found, **summary(mixes, took)}))


def _mixes(seed: int) -> list[Mix]:
    """In every fourth the last job is the greedy one, which ends at once."""
    choose = random.Random(seed)
    mixes = [mix(choose) for _ in range(MIXES)]
    for jobs in mixes[::4]:
        jobs[-1] = (GREEDY_MIB, 0.0)
    return sorted(mixes, key=paper_s)


if __name__ == "__main__":
    main(int(sys.argv[1]))
