"""Steps of matrices and of what is none."""

import copy

import pytest
import torch

from tasks.shared.muon import MuonAdam, orthogonal


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape), rounds=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def made(seed: int) -> tuple[list[torch.nn.Parameter], MuonAdam]:
    torch.manual_seed(seed)
    matrix, other = (torch.nn.Parameter(torch.randn(*shape, dtype=torch.double)) for shape in ((6, 4), (5,)))
    groups = [{"params": [matrix], "lr": 0.1, "orthogonal": True}, {"params": [other], "lr": 0.01}]
    return [matrix, other], MuonAdam(groups)


def updated(weights: list[torch.nn.Parameter], steps: MuonAdam, seed: int) -> None:
    torch.manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    steps.step()


def test_what_is_no_matrix_steps_as_adam_does() -> None:
    (_, mine), steps = made(0)
    theirs = torch.nn.Parameter(mine.detach().clone())
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.98))
    for seed in range(3):
        torch.manual_seed(seed)
        theirs.grad = mine.grad = torch.randn_like(mine)
        steps.step()
        adam.step()
    assert torch.allclose(mine, theirs, rtol=1e-12)


def test_a_matrix_steps_about_as_far_in_every_direction() -> None:
    weights, steps = made(0)
    before = weights[0].detach().clone()
    updated(weights, steps, 1)
    values = torch.linalg.svdvals((before - weights[0].detach()) / (0.1 * 1.5**0.5))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_it_goes_on_where_it_was() -> None:
    weights, steps = made(0)
    updated(weights, steps, 1)
    copies, again = made(7)
    again.load_state_dict(copy.deepcopy(steps.state_dict()))
    with torch.no_grad():
        for one, weight in zip(copies, weights, strict=True):
            one.copy_(weight)
    updated(weights, steps, 2)
    updated(copies, again, 2)
    assert all(torch.equal(one, weight) for one, weight in zip(copies, weights, strict=True))
