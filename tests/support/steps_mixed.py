"""Steps of a night, each in a real child: one training that fills the card's cores, and small ones."""

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from overnight import Params, Run, step
from overnight.gpu.card import Card
from overnight.memory.request import MemoryRequest
from overnight.orchestration.protocol import ChildSpec, StepResult

PATIENCE_S = 300
MIX = (
    ("convolve", 4096),
    ("pass_messages", 1024),
    ("pass_messages", 1024),
    ("act", 1024),
    ("act", 1024),
)  # step, MiB


class RoundParams(Params):
    """How much to do."""

    rounds: int = 1


@dataclass
class Child:
    """A step that signals when it is ready, begins at a signal, and signals when it is done."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    ready_pipe: int
    go_pipe: int

    @classmethod
    def start(cls, folder: Path, card: Card, name: str, ask_mib: int, rounds: int) -> Self:
        folder.mkdir()
        spec = ChildSpec(
            step=f"{__name__}:{name}", label=name, experiment="mixture", arguments=[{"rounds": rounds}],
            seed=0, key=folder.name,
            parent=os.getpid(), card=card, request=MemoryRequest(ask_mib),
        )  # fmt: skip
        (folder / "spec.json").write_text(spec.model_dump_json())
        ready_pipe, say = os.pipe()
        go, go_pipe = os.pipe()
        environment = {**os.environ, "SAY": str(say), "GO": str(go), "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("wb") as log:
            command = [sys.executable, "-m", "overnight.orchestration.child", str(folder)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, pass_fds=(say, go))
        os.close(say)
        os.close(go)
        return cls(folder, process, ready_pipe, go_pipe)

    def hear(self) -> None:
        """Until it says something."""
        assert select.select([self.ready_pipe], [], [], PATIENCE_S)[0], self.log()
        assert os.read(self.ready_pipe, 1), self.log()  # its end without a word

    def go(self) -> None:
        os.write(self.go_pipe, b"x")

    def end(self) -> StepResult:
        """Its result."""
        self.process.wait(PATIENCE_S)
        os.close(self.ready_pipe)
        os.close(self.go_pipe)
        return StepResult.model_validate_json((self.folder / "result.json").read_text())

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


def play(folder: Path, card: Card, rounds: dict[str, int], together: bool) -> tuple[float, list[StepResult]]:
    """Seconds of the mix from the signal to begin to the last end, without the start of processes; the results.

    together: all of them at once; else one after the other, each with the card for itself.
    """
    folder.mkdir()
    seconds, results, numbered = 0.0, list[StepResult](), list(enumerate(MIX))
    for group in [numbered] if together else [[one] for one in numbered]:
        children = [Child.start(folder / str(n), card, name, mib, rounds[name]) for n, (name, mib) in group]
        for child in children:
            child.hear()  # it holds its lease, has its context, and has done everything once
        began = time.monotonic()
        for child in children:
            child.go()
        for child in children:
            child.hear()
        seconds += time.monotonic() - began
        results += [child.end() for child in children]
    return seconds, results


def begin() -> None:
    """Ready; and wait for the word."""
    done()
    os.read(int(os.environ["GO"]), 1)


def done() -> None:
    os.write(int(os.environ["SAY"]), b"x")


@step(gpu=True)
def convolve(run: Run, params: RoundParams) -> None:
    """A training: convolutions over pictures, forward and backward."""
    import torch
    from torch import nn

    width = 64 if run.device == "cuda" else 4
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 10, 3),
    )
    net = net.to(run.device)
    optimizer, images = (
        torch.optim.SGD(net.parameters(), lr=0.01),
        torch.randn(width, 3, 64, 64, device=run.device),
    )

    def once() -> None:
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()

    _rounds(run, params, once)


@step(gpu=True)
def pass_messages(run: Run, params: RoundParams) -> None:
    """A small graph: two layers of sums over neighbours, one step for the whole graph, many tiny kernels."""
    import torch
    from torch import nn

    nodes, generator = 2000, torch.Generator().manual_seed(0)
    edges = torch.randint(0, nodes, (2, 8000), generator=generator)
    adjacency = torch.sparse_coo_tensor(edges, torch.ones(8000), (nodes, nodes)).coalesce().to(run.device)
    first, second = nn.Linear(32, 32).to(run.device), nn.Linear(32, 4).to(run.device)
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()])
    features = torch.randn(nodes, 32, generator=generator).to(run.device)

    def once() -> None:
        optimizer.zero_grad()
        hidden = torch.relu(first(torch.sparse.mm(adjacency, features)))
        second(torch.sparse.mm(adjacency, hidden)).logsumexp(1).mean().backward()
        optimizer.step()

    _rounds(run, params, once)


@step(gpu=True)
def act(run: Run, params: RoundParams) -> None:
    """A small agent: act 16 times in an environment on the CPU, one prediction at a time, then learn."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2)).to(run.device)
    optimizer = torch.optim.Adam(net.parameters())

    def once() -> None:
        state, seen = torch.zeros(4), []
        for _ in range(16):
            with torch.no_grad():
                action = int(net(state.to(run.device)).argmax())
            state = torch.tanh(state + 0.1 * (2 * action - 1))
            seen.append(state)
        optimizer.zero_grad()
        net(torch.stack(seen).to(run.device)).square().mean().backward()
        optimizer.step()

    _rounds(run, params, once)


def _rounds(run: Run, params: RoundParams, once: "object") -> None:
    """Everything once, then as often as asked from the word on."""
    import torch

    assert callable(once)
    wait = torch.cuda.synchronize if run.device == "cuda" else (lambda: None)
    once()
    wait()
    begin()
    for _ in range(params.rounds):
        once()
    wait()
    done()
