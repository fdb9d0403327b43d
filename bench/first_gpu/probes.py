"""The probes of a first run on a card, one a process: `python -m bench.first_gpu.probes NAME`.

Each prints lines `RESULT {"key", "value", "ok"}`; ok: true, false, null where there is nothing to judge, and
"stop" where a lease was exceeded.
"""

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from overnight.errors import OvernightError
from overnight.gpu import cuda_context
from overnight.gpu.card import Card, find, virtual
from overnight.gpu.device_usage import device_of
from overnight.gpu.out_of_memory import is_out_of_memory

DEVICE = os.environ.get("DEVICE", "cuda")
ON_CARD = DEVICE == "cuda"
MIB = 1 << 20
SLACK_MIB = 16
CAP_MIB = 600  # of the probe that runs out of memory
WRONG = (  # what a probe may meet; anything else ends it, which its parent says
    *(OvernightError, RuntimeError, MemoryError, OSError, ImportError, AttributeError, LookupError),
    *(TypeError, ValueError, AssertionError),
)
ROOT = Path(__file__).resolve().parents[2]


def say(key: str, value: object, ok: bool | str | None = None) -> None:
    print("RESULT", json.dumps({"key": key, "value": value, "ok": ok}, default=str), flush=True)


def tried(key: str, call: Callable[[], Any], ok: Callable[[Any], bool] = lambda _found: True) -> Any:
    """What the call returns, judged and said; an exception is wrong."""
    try:
        found = call()
    except WRONG as error:
        say(
            key,
            f"{type(error).__module__}.{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            False,
        )
        return None
    say(key, found, ok(found))
    return found


def card() -> Card:
    return find() if ON_CARD else virtual(count=True)


def used_mib(on: Card) -> int:
    return device_of(on).used_mib(on, [])


def driver() -> None:
    """What NVML says, beside nvidia-smi; and whether CUDA takes the UUID that NVML gives."""
    on = card()
    say("card", f"{on}, {on.reserved_mib} MiB reserved, compute capability {on.capability}")
    device = device_of(on)
    say(
        "used",
        f"{device.used_mib(on, [])} MiB, load {device.load_percent(on)}, {len(device.programs(on))} programs",
    )
    with suppress(OSError):
        query = "--query-gpu=memory.total,memory.used,memory.reserved,driver_version"
        asked = [*["nvidia-smi", query], "--format=csv,noheader"]
        say("nvidia-smi", subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    if on.virtual:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = on.uuid
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    def taken() -> tuple[bool, int, int]:
        torch.zeros(1, device="cuda")
        total = torch.cuda.get_device_properties(0).total_memory >> 20
        return torch.cuda.is_available(), torch.cuda.device_count(), total

    tried(
        "the UUID is taken",
        taken,
        lambda found: found[:2] == (True, 1) and abs(found[2] - on.total_mib) < 1024,
    )


def lease() -> None:
    """A step that wants more than its lease, and one that takes all it can."""
    from tests.support import steps_leased

    on, folder, mib = card(), Path(tempfile.mkdtemp()), 2048 if ON_CARD else 512
    on.folder.mkdir(parents=True, exist_ok=True)
    hog = steps_leased.start(folder / "hog", on, "hog", mib, mib=2 * mib)
    say("exit code of a step that wants twice its lease", hog.wait(90), hog.returncode == 11)
    before = used_mib(on)
    said, say_it = os.pipe()
    go, go_on = os.pipe()
    fill = steps_leased.start(folder / "fill", on, "fill", mib, mib=32, SAY=say_it, GO=go)
    heard = bool(select.select([said], [], [], 60)[0])
    taken = used_mib(on) - before if ON_CARD else int(steps_leased.notes(folder / "fill")[0])
    os.write(go_on, b"x")
    fill.wait(30)
    exceeded = taken > mib + SLACK_MIB
    say("filled", heard and fill.returncode == 0, heard and fill.returncode == 0)
    say(f"MiB taken of a lease of {mib}", taken, "stop" if exceeded else True)
    found = steps_leased.result(folder / "fill")
    say(
        "cap, peak, context",
        [found.cap_mib, found.peak_mib, found.overhead_mib],
        (found.peak_mib or 0) <= found.cap_mib,
    )
    say("segments expand", steps_leased.notes(folder / "fill")[-1])


def small() -> None:
    """What is off by a device or by a rounding."""
    import torch

    from tasks.detection import augment
    from tasks.vision.augment import views

    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    tried("devices of test-time augmentation", lambda: [str(view.device) for _, view in views(pixels, True)])
    images = torch.randint(0, 256, (1, 3, 640, 640), dtype=torch.uint8, device=DEVICE)
    none = {"boxes": torch.zeros(1, 1, 4), "labels": torch.zeros(1, 1, dtype=torch.long)}
    drawn = {"warp": torch.tensor([[1.0, 1, 0, 0]]), "tint": torch.ones(1, 3)}
    batch = {"images": images, **{name: tensor.to(DEVICE) for name, tensor in (none | drawn).items()}}

    def error() -> float:
        with torch.autocast(DEVICE, torch.bfloat16):
            return float((augment.apply(batch)["images"] - images.float()).abs().mean())

    tried("mean error of an identity warp under bf16, of 255", error, lambda found: found < 0.1)


def _body(name: str, call: Callable[[Any], Any]) -> None:
    from overnight.run import RecordingRun

    run = RecordingRun(Path(tempfile.mkdtemp()), seed=1, device=DEVICE, budget_mib=4000)
    began = time.perf_counter()

    def played() -> dict[str, Any]:
        call(run)
        facts = {event["name"]: event["value"] for event in run.of("param")}
        kept = {key: facts.get(key) for key in ("precision", "data_on", "compile.used")}
        return {"s": round(time.perf_counter() - began, 1), **kept, "out of memory": run.out_of_memory}

    def well(found: dict[str, Any]) -> bool:
        host = (
            ON_CARD and name.startswith(("cnn", "speedrun")) and not str(found["data_on"]).startswith("card")
        )
        return not host and not found["out of memory"]

    tried(name, played, well)
    for event in run.of("note"):
        say(f"note of {name}", event["text"][:150])


def steps() -> None:
    """Every body that trains, as a child calls it."""
    from bench.first_gpu.bodies import BODIES

    for name, call in BODIES.items():
        _body(name, call)


def compile_() -> None:
    """A compiled net, which loads Triton and calls a C compiler."""
    from bench.first_gpu.bodies import cnn

    if not ON_CARD:
        say("cnn compiled", "not tried: a compiler of the CPU tells nothing of a card's")
        return
    _body("cnn compiled", partial(cnn, compile="on"))


def _leaving(room_mib: int, call: Callable[[], object]) -> tuple[str, bool]:
    """Fill all of the cap but so much, then call: what it ended with, and whether that is recognised."""
    import torch

    kept = []
    try:
        while ON_CARD and CAP_MIB - torch.cuda.memory_reserved() / MIB > room_mib:
            kept.append(torch.empty(2 * MIB, dtype=torch.uint8, device=DEVICE))
        call()
    except WRONG as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}", is_out_of_memory(error)
    finally:
        del kept
        if ON_CARD:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    return "it fitted", True


def memory() -> None:
    """What memory really ends with below a cap, and whether it is recognised."""
    import torch
    from torch import nn

    if ON_CARD:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(CAP_MIB * MIB / total)

    def convolve(conv: nn.Module, inputs: torch.Tensor) -> None:
        conv(inputs).sum().backward()

    for dtype in (torch.float32, torch.bfloat16):
        conv = nn.Conv2d(64, 64, 3, padding=1).to(DEVICE, dtype)
        side = 128 if ON_CARD else 16
        inputs = torch.randn(8, 64, side, side, device=DEVICE, dtype=dtype).requires_grad_()
        for room_mib in (4, 20, 40, 70, 120):
            found = _leaving(room_mib, partial(convolve, conv, inputs))
            say(f"{dtype} convolution with {room_mib} MiB left", *found)
    ones = torch.ones(64, 64, device=DEVICE)
    for room_mib in (2, 6, 20):
        say(
            f"a first product with {room_mib} MiB left",
            *_leaving(room_mib, lambda: float((ones @ ones).sum())),
        )
    say("allocations that were refused", torch.cuda.memory_stats().get("num_ooms") if ON_CARD else None)


def _trained() -> None:
    """Three steps of ResNet-18 in bf16."""
    import torch
    from torchvision.models import resnet18

    net = resnet18().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(3):
        images = torch.randn(32, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            loss = net(images).float().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _solved() -> None:
    import torch

    torch.linalg.eigh(torch.eye(64, device="cuda"))
    torch.eye(64, device="cuda").to_sparse_csr() @ torch.ones(64, 8, device="cuda")


def growth() -> None:
    """What of the card no cap bounds, beyond the context that the warm-up measures."""
    if not ON_CARD:
        say("context", "there is none on a CPU")
        return
    import torch

    on = card()
    before = used_mib(on)
    taken = cuda_context.warm_up() >> 20
    context = used_mib(on) - before - taken
    say("context that the warm-up measures, MiB", context)

    def beyond(call: Callable[[], None]) -> int:
        call()
        torch.cuda.synchronize()
        return used_mib(on) - before - (torch.cuda.memory_reserved() >> 20) - context

    for name, call in (("ResNet-18 in bf16", _trained), ("linear algebra and sparse", _solved)):
        tried(f"MiB more after {name}", partial(beyond, call), lambda found: found <= 150)


def together() -> None:
    """Two steps that start at once: what each measures as its context."""
    from tests.support import steps_leased

    on, folder = card(), Path(tempfile.mkdtemp())
    on.folder.mkdir(parents=True, exist_ok=True)
    both = [steps_leased.start(folder / name, on, "wise", 1024) for name in "ab"]
    say(
        "exit codes", [process.wait(50) for process in both], all(process.returncode == 0 for process in both)
    )
    measured = [] if on.virtual else cuda_context.measured(on)
    say("contexts measured, MiB", measured, not measured or max(measured) < 1.5 * min(measured))


def segments() -> None:
    """Expandable segments, tried as the first step on WSL2 tries them."""
    on = card()
    if on.virtual:
        say("expandable segments", "there is no card")
        return
    on.folder.mkdir(parents=True, exist_ok=True)
    wsl2 = "microsoft"  # the trial is for WSL2; played here whatever the kernel is
    cuda_context.try_expanding(on, 1024, wsl2)
    say("expandable segments work", cuda_context.can_expand(on, wsl2), cuda_context.can_expand(on, wsl2))


def rapids() -> None:
    """A query of Polars on the card inside the lease, and what it leaves there."""
    missing = [name for name in ("polars", "cudf_polars", "rmm") if importlib.util.find_spec(name) is None]
    if missing or not ON_CARD:
        say("RAPIDS", f"not tried: {', '.join(missing) or 'a card'} is missing")
        return
    import polars as pl

    from overnight.gpu import rmm
    from overnight.run import RecordingRun
    from tasks.tabular import rapids as engine

    run = RecordingRun(Path(tempfile.mkdtemp()), device="cuda", budget_mib=2000)
    rows = pl.LazyFrame({"a": range(1_000_000), "b": [number % 7 for number in range(1_000_000)]})
    query = rows.join(rows, on="a").group_by("b").agg(pl.col("a").sum()).sort("b")
    tried(
        "rows of a join on the card",
        lambda: engine.collect([query], "gpu", run)[0].height,
        lambda found: found == 7,
    )
    say("MiB held after it, and at its peak", [amount >> 20 for amount in rmm.held()], rmm.held()[0] == 0)


def tests() -> None:
    """The tests for a card that no probe plays."""
    if importlib.util.find_spec("pytest") is None:
        say("tests/on_card", "not run: pytest is not installed")
        return
    chosen = [f"tests/on_card/test_{name}.py" for name in ("training", "device_usage")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-q", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    failed = [line[:150] for line in lines if line.startswith("FAILED")]
    say("tests/on_card", lines[-1], done.returncode in (0, 5))
    for line in failed:
        say("failed", line, False)


PROBES = {"compile": compile_}


if __name__ == "__main__":
    name = sys.argv[1]
    PROBES.get(name, globals().get(name))()
