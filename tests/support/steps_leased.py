"""Steps that take memory of the card, each run in a real child: for tests of the memory limit, here and on_card."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from overnight import Params, Run, step
from overnight.gpu.card import Card
from overnight.memory.request import MemoryRequest
from overnight.orchestration.protocol import ChildSpec, StepResult

MIB = 1 << 20
OUT_OF_MEMORY = ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


class SizeParams(Params):
    """How much to take."""

    mib: int = 1


def start(
    folder: Path, card: Card, name: str, ask_mib: int, mib: int = 1, **pipes: int
) -> "subprocess.Popen[bytes]":
    """A child that runs one of these steps in *folder*, with the pipes that are named in its environment."""
    folder.mkdir()
    spec = ChildSpec(
        step=f"{__name__}:{name}", label=name, experiment="test", arguments=[{"mib": mib}], seed=0, key="k", parent=os.getpid(),
        card=card, request=MemoryRequest(ask_mib),
    )  # fmt: skip
    (folder / "spec.json").write_text(spec.model_dump_json())
    environment = {**os.environ, **{key: str(value) for key, value in pipes.items()}}
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "overnight.orchestration.child", str(folder)]
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, pass_fds=tuple(pipes.values())
        )


def result(folder: Path) -> StepResult:
    """What the child said at its end."""
    return StepResult.model_validate_json((folder / "result.json").read_text())


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What the step logged."""
    return [
        e for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines()) if e["event"] == kind
    ]


def notes(folder: Path) -> list[str]:
    """What the step noted."""
    return [e["text"] for e in events(folder, "note")]


def say_and_wait() -> None:
    """Tell the test that this point was reached, and go on when it says so."""
    os.write(int(os.environ["SAY"]), b"x")
    os.read(int(os.environ["GO"]), 1)


def losses(steps: int, device: str = "cpu") -> list[float]:
    """Of a small training."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net, found = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)).to(device), []
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        inputs, labels = torch.randn(32, 20).to(device), torch.randint(0, 3, (32,)).to(device)
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@step(gpu=True)
def hog(run: Run, params: SizeParams) -> None:
    """Take 20 MiB, then more than the lease has."""
    import torch

    held = torch.zeros(20 << 18, device=run.device)
    run.note(f"{run.budget_mib} {run.device} {os.environ['CUDA_VISIBLE_DEVICES']!r}")
    torch.empty((params.mib - 20) << 18, device=run.device)
    run.note(f"that was not refused: {held.shape}")


@step(gpu=True)
def refused(run: Run, params: SizeParams) -> None:
    """Meet what a library below torch raises when memory ran out."""
    raise RuntimeError(OUT_OF_MEMORY[params.mib])


@step(gpu=True)
def wise(run: Run, params: SizeParams) -> None:
    """Try, and be content with half when it is refused."""
    import torch

    for size in (params.mib, params.mib // 2):
        try:
            torch.empty(size << 18, device=run.device)
        except torch.OutOfMemoryError:
            run.note(f"not {size} MiB")


@step(gpu=True)
def neighbour(run: Run, params: SizeParams) -> None:
    """Train a little, wait for the test, train on."""
    for number, loss in enumerate(losses(10, run.device)):
        run.metric("loss", loss, number)
        if number == 0:
            say_and_wait()


@step(gpu=True)
def fill(run: Run, params: SizeParams) -> None:
    """Take all that there is in pieces, wait for the test, and say what was got."""
    import torch

    held = []
    try:
        while True:
            held.append(torch.empty(params.mib << 18, device=run.device))
    except torch.OutOfMemoryError:
        run.note(str(len(held) * params.mib))
    segments = torch.cuda.memory_snapshot() if run.device == "cuda" else []
    run.note(str(any(s["is_expandable"] for s in segments)))
    say_and_wait()


@step(gpu=True)
def rapids(run: Run, params: SizeParams) -> None:
    """Take memory by RMM: a part of the cap, then more than it has."""
    import rmm

    from overnight.gpu.rmm import held, limit_memory

    limit_memory(run.budget_mib)
    kept = rmm.DeviceBuffer(size=params.mib * MIB)
    run.note(str(held()[0] // MIB))
    say_and_wait()
    rmm.DeviceBuffer(size=(run.budget_mib or 0) * MIB)
    run.note(f"that was not refused: {kept.size}")
