"""What the virtual card's counter counts, and what happens at its cap."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from overnight.gpu.memory_counter import Counter

MIB = 1 << 20


def test_a_storage_counts_once_until_the_last_who_has_it_lets_go():
    with Counter() as counter:
        x = torch.ones(1000)
        assert counter.use() == 4000
        views = [x[:10], x.view(10, 100), x.t(), x.detach(), nn.Parameter(x)]
        x.add_(1).mul_(2)
        assert counter.use() == 4000
        del x
        assert counter.use() == 4000
        views.clear()
        assert counter.use() == 0
        assert counter.peak() == 4000


def test_what_autograd_keeps_counts():
    with Counter() as counter:
        x = torch.ones(1000, requires_grad=True)
        y = x.exp().sin().sum()
        assert counter.use() == 2 * 4000 + 4  # exp keeps its result, which is all that sin keeps
        y.backward()
        assert counter.use() == 2 * 4000 + 4  # x and its gradient
        del x, y
    assert counter.use() == 0


def test_what_is_from_before_or_borrowed_does_not_count():
    array, before = np.ones(1000), torch.ones(1000)
    with Counter() as counter:
        borrowed = torch.from_numpy(array)
        kept = [
            borrowed,
            borrowed.view(10, 100),
            torch.as_tensor(array)[5:],
            before.view(10, 100),
            before.reshape(-1, 2),
        ]
        torch.add(before, 1, out=before)
        torch.ops.aten._unsafe_view(before, (2, 500))
        with torch.inference_mode():
            kept += [before.contiguous(), before.to(torch.float32), borrowed.reshape(4, -1)]
        sparse = torch.sparse_csr_tensor(
            torch.from_numpy(np.array([0, 1])), torch.from_numpy(np.array([0])), before[:1], (1, 1)
        )
        assert counter.use() == 0
        kept.append(borrowed + 1)
        assert counter.use() == 8000
    assert len(kept) == 9
    assert sparse.shape == (1, 1)


def test_what_another_thread_lets_go_is_gone():
    with Counter() as counter:
        held = [torch.ones(1000)]
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert counter.use() == 0
        assert torch.ones(10).sum() == 10
        assert counter.use() == 0


# ------------------------------------------------------------ at the cap


def refused(work: Callable[[], Any]) -> torch.OutOfMemoryError:
    """What *work* is refused with. The error is kept, as somebody who logs it keeps it."""
    with pytest.raises(torch.OutOfMemoryError, match="MiB were asked for") as caught:
        work()
    return caught.value


def test_what_is_refused_is_given_back_and_work_goes_on():
    with Counter(8 * MIB) as counter:
        held = torch.ones(MIB)
        error = refused(lambda: torch.ones(MIB + 1))
        assert "4.0 MiB were asked for, 4.0 of 8.0 MiB are in use" in str(error)
        assert counter.use() == 4 * MIB
        assert counter.peak() == 4 * MIB
        assert counter.refused() == 1
        other = torch.ones(MIB)  # all of the cap
        assert counter.use() == counter.peak() == 8 * MIB
        refused(lambda: held * 2)
        del other
        assert counter.use() == 4 * MIB
        held.add_(1)
        assert counter.use() == 4 * MIB


class Wasteful(torch.autograd.Function):
    """Its backward pass wants 9 MiB."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.ones(9 << 18)[: len(gradient)]


def test_a_backward_pass_can_be_refused():
    with Counter(8 * MIB) as counter:
        x = torch.ones(MIB // 4, requires_grad=True)
        loss = Wasteful.apply(x).sum()
        refused(loss.backward)
        del loss
        gc.collect()
        assert counter.use() == MIB
        x.sum().backward()
        assert counter.use() == 2 * MIB


def deep(x: torch.Tensor) -> torch.Tensor:
    for _ in range(20):
        x = x.sin()
    return x


def test_a_graph_that_did_not_fit_is_let_go():
    with Counter(8 * MIB) as counter:
        x = torch.ones(MIB // 4, requires_grad=True)
        with pytest.raises(torch.OutOfMemoryError):
            deep(x)
        assert counter.use() == MIB
        assert counter.peak() == 8 * MIB


def test_a_smaller_batch_fits():
    """What elastic training rests on: the same net, under the same cap, in parts."""

    def gradients(batch: torch.Tensor, parts: int) -> torch.Tensor:
        net.zero_grad()
        for part in batch.chunk(parts):
            net(part).square().sum().backward()
        return net[0].weight.grad.clone()

    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8)), torch.randn(512, 64)
    with Counter() as free:
        wanted = gradients(batch, 1)
    net.zero_grad()
    with Counter(free.peak() // 2) as counter:
        tries = []
        for parts in (1, 2, 4, 8):
            tries.append(parts)
            try:
                found = gradients(batch, parts)
            except torch.OutOfMemoryError:
                continue
            break
        assert 1 < len(tries) < 4
        assert counter.refused() == len(tries) - 1
        assert counter.peak() <= free.peak() // 2
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("known", [True, False], ids=["counted", "from before"])
def test_what_could_not_grow_is_as_it_was(known):
    outside = torch.full((100,), 3.0)
    with Counter(8 * MIB) as counter:
        x = torch.full((100,), 3.0) if known else outside
        was = counter.use()
        refused(lambda: x.resize_(3 * MIB))
        assert counter.use() == was
        assert x.shape == (100,)
        assert x.untyped_storage().nbytes() == 400
        assert x.sum() == 300
        source = [torch.ones(MIB // 4)] * 6
        out = torch.empty(0)
        refused(lambda: torch.cat([*source, *source], out=out))
        assert out.shape == (0,)
        x.resize_(MIB)
        assert counter.use() == 4 * MIB + MIB


def test_operators_that_inference_mode_leaves_whole_are_capped_too():
    with Counter(8 * MIB) as counter, torch.inference_mode():
        x = torch.ones(MIB, 1)
        refused(lambda: x.expand(-1, 2).contiguous())
        refused(lambda: x.to(torch.float64))
        assert counter.use() == 4 * MIB
