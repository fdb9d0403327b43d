"""What a token may look at, and that places matter."""

import pytest
import torch

from tasks.shared.transformer import Block, Other, Rotary


def block(causal: bool = False, crossed: bool = False) -> Block:
    torch.manual_seed(0)
    made = Block(16, 2, causal, crossed).double().eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made


def moved(made: Block, place: int, **more: torch.Tensor) -> list[bool]:
    """Which places of five answer otherwise when the token at one is another."""
    turns = tuple(one.double() for one in Rotary(8, 5)(5))
    x = torch.randn(1, 5, 16, dtype=torch.double)
    other = x.clone()
    other[0, place] += 1
    return [
        not torch.allclose(a, b)
        for a, b in zip(made(x, turns, **more)[0], made(other, turns, **more)[0], strict=True)
    ]


def test_a_causal_block_sees_no_later_token() -> None:
    assert moved(block(causal=True), 2) == [False, False, True, True, True]
    assert moved(block(), 2) == [True] * 5


def test_padding_is_not_looked_at() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    assert moved(block(), 4, mask_NT=mask) == [False] * 4 + [True]


def test_the_other_text_is_seen_up_to_its_padding() -> None:
    made, turns = block(crossed=True), tuple(one.double() for one in Rotary(8, 5)(5))
    x, other = torch.randn(2, 5, 16, dtype=torch.double), torch.randn(2, 3, 16, dtype=torch.double)
    mask = torch.tensor([[True, True, False]] * 2)
    cut = tuple(one[:3] for one in turns)
    found = made(x, turns, None, Other(other, mask, cut))
    short = Other(other[:, :2], mask[:, :2], tuple(one[:2] for one in turns))
    assert torch.allclose(found, made(x, turns, None, short))
    assert not torch.allclose(found, made(x, turns, None, Other(other, ~mask, cut)))
    assert not torch.allclose(found, made(x, turns, None))


def test_only_distances_between_places_matter() -> None:
    cos, sin = Rotary(8, 12)(12)
    made = block()
    x = torch.randn(1, 5, 16, dtype=torch.double)
    near, far = ((cos[at : at + 5].double(), sin[at : at + 5].double()) for at in (0, 7))
    assert torch.allclose(made(x, near), made(x, far), atol=1e-5)
    assert not torch.allclose(made(x, near)[:, 0], made(x.flip(1), near)[:, 4], atol=1e-3)


@pytest.mark.parametrize("crossed", [False, True])
def test_a_new_block_is_the_identity(crossed: bool) -> None:
    x = torch.randn(2, 5, 16)
    turns = Rotary(8, 5)(5)
    other = Other(x, torch.ones(2, 5, dtype=torch.bool), turns)
    assert torch.equal(Block(16, 2, crossed=crossed)(x, turns, None, other), x)
