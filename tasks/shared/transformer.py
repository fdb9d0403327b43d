"""Transformer layers for reading and writing text, alone or from one text to another.

Sources: Vaswani et al. 2017 (arXiv:1706.03762), norms before each branch as Xiong et al. 2020
(arXiv:2002.04745); RMSNorm: Zhang and Sennrich 2019 (arXiv:1910.07467); rotary positions: Su et al. 2021
(arXiv:2104.09864); squared ReLU: So et al. 2021 (arXiv:2109.08668); normalised queries and keys: Henry et al.
2020 (arXiv:2010.04245).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE = 10_000.0  # of the rotary wavelengths
Turns = tuple[Tensor, Tensor]
HIDDEN = 4  # times the width: of the layer inside


class Other(NamedTuple):
    """A text that another looks at: its values, where it is no padding, and the turns of its places."""

    values: Tensor
    mask: Tensor
    turns: Turns


class Attention(nn.Module):
    """Heads of dot products. N texts of T tokens, W values each; S tokens that are looked at."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x_NTW: Tensor, seen_NSW: Tensor, mask_NS: Tensor | None, turns: Turns, seen_turns: Turns
    ) -> Tensor:
        """mask: True where a token may be looked at, None: everywhere; turns: of both, by `Rotary`."""
        q, k, v = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.q(x_NTW), *self.kv(seen_NSW).chunk(2, 2))
        )
        q, k = _compared(q, k, turns, seen_turns)
        mask = None if mask_NS is None else mask_NS[:, None, None]
        found = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def looks(
        self, x_NTW: Tensor, seen_NSW: Tensor, mask_NS: Tensor, turns: Turns, seen_turns: Turns
    ) -> Tensor:
        """Log of the share that the first head gives to each token: (N, T, S), float32 or wider."""
        values = self.q.out_features // self.heads
        q = functional.linear(x_NTW, self.q.weight[:values])
        k = functional.linear(seen_NSW, self.kv.weight[:values])
        q, k = _compared(q, k, turns, seen_turns)
        found = q @ k.transpose(1, 2) / values**0.5
        found = found if found.dtype == torch.float64 else found.float()
        shares: Tensor = found.masked_fill(~mask_NS[:, None], -torch.inf).log_softmax(2)
        return shares


class Rotary(nn.Module):
    """Cosines and sines of the angle of each position and pair of values: (T, values of a head)."""

    def __init__(self, values: int, longest: int) -> None:
        super().__init__()
        rates = BASE ** -(torch.arange(0, values, 2) / values)
        angles = (torch.arange(longest)[:, None] * rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, length: int) -> Turns:
        return self.cos[:length], self.sin[:length]


def _compared(q: Tensor, k: Tensor, turns: Turns, seen_turns: Turns) -> tuple[Tensor, Tensor]:
    """Of one length, and turned by their places."""
    q, k = (functional.rms_norm(one, one.shape[-1:]) for one in (q, k))
    return _turned(q, *turns), _turned(k, *seen_turns)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class Block(nn.Module):
    """Attention within the text, to another one where `crossed`, and a layer for each token alone."""

    def __init__(
        self, width: int, heads: int, causal: bool = False, crossed: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, causal)
        self.crossed = Attention(width, heads, causal=False) if crossed else None
        self.up = nn.Linear(width, HIDDEN * width, bias=False)
        self.down = nn.Linear(HIDDEN * width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3 if crossed else 2))
        self.dropout = nn.Dropout(dropout)
        for last in (self.attention.out, self.down, *([self.crossed.out] if self.crossed else [])):
            nn.init.zeros_(last.weight)  # so that each block begins as the identity

    def forward(
        self,
        x_NTW: Tensor,
        turns: Turns,
        mask_NT: Tensor | None = None,
        other: Other | None = None,
    ) -> Tensor:
        """mask: of padding; other: the text that is looked at across."""
        return self.after(self.within(x_NTW, turns, mask_NT), turns, other)

    def within(self, x_NTW: Tensor, turns: Turns, mask_NT: Tensor | None = None) -> Tensor:
        """The first branch, the attention to the text itself."""
        x = self.norms[0](x_NTW)
        found: Tensor = x_NTW + self.dropout(self.attention(x, x, mask_NT, turns, turns))
        return found

    def looks(self, x_NTW: Tensor, turns: Turns, other: Other) -> Tensor:
        """Of what `within` gave, where `crossed`: as `Attention.looks`."""
        assert self.crossed is not None
        return self.crossed.looks(self.norms[1](x_NTW), other.values, other.mask, turns, other.turns)

    def after(self, x_NTW: Tensor, turns: Turns, other: Other | None = None) -> Tensor:
        """The branches after `within`."""
        if self.crossed is not None and other is not None:
            across = self.crossed(self.norms[1](x_NTW), other.values, other.mask, turns, other.turns)
            x_NTW = x_NTW + self.dropout(across)
        last = self.norms[-1]
        out: Tensor = x_NTW + self.dropout(self.down(functional.relu(self.up(last(x_NTW))).square()))
        return out
