"""One text out of another: an encoder that reads, a decoder that writes, and beam search."""

import math

import torch
from torch import Tensor, nn

from tasks.shared.tokens import END, PAD, START
from tasks.shared.transformer import Block, Other, Rotary
from tasks.text.translate_params import TranslateParams

LENGTH = 0.6  # of the penalty by which long texts may have a lower score


class Seq2Seq(nn.Module):
    """N texts; S tokens are read, T are written, V are known, W values each.

    Source: Vaswani et al. 2017; one table for what is read, written and asked (Press and Wolf 2017,
    arXiv:1608.05859).
    """

    def __init__(self, params: TranslateParams, vocabulary: int) -> None:
        super().__init__()
        width, heads, dropout = params.width, params.heads, params.dropout
        self.embedding = nn.Embedding(vocabulary, width)
        self.rotary = Rotary(width // heads, params.longest + 1)
        self.reads = nn.ModuleList(Block(width, heads, dropout=dropout) for _ in range(params.layers))
        self.writes = nn.ModuleList(
            Block(width, heads, causal=True, crossed=True, dropout=dropout) for _ in range(params.layers)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        # So that what a token is stands beside what the blocks add, and logits begin at about 1.
        self.scale = width**0.5
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)

    def forward(
        self, source_NS: Tensor, mask_NS: Tensor, target_NT: Tensor, look: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the token after each of `target`: (N, T, V), and where `look`: as `Attention.looks`."""
        x_NTW, looks = self.decode(target_NT, self.encode(source_NS, mask_NS), mask_NS, look)
        return self.logits(x_NTW), looks

    def encode(self, source_NS: Tensor, mask_NS: Tensor) -> Tensor:
        x_NSW = self.dropout(self.scale * self.embedding(source_NS))
        turns = self.rotary(source_NS.shape[1])
        for block in self.reads:
            x_NSW = block(x_NSW, turns, mask_NS)
        found: Tensor = self.norms[0](x_NSW)
        return found

    def decode(
        self, target_NT: Tensor, read_NSW: Tensor, mask_NS: Tensor, look: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """What `logits` takes, and where `look`: to what the first head of the middle block looks."""
        turns = self.rotary(target_NT.shape[1])
        x_NTW: Tensor = self.dropout(self.scale * self.embedding(target_NT))
        # Turned as well, since the order of words is much the same on both sides.
        other = Other(read_NSW, mask_NS, self.rotary(read_NSW.shape[1]))
        looks = None
        for place, block in enumerate(self.writes):
            assert isinstance(block, Block)
            x_NTW = block.within(x_NTW, turns)
            if look and place == len(self.writes) // 2:
                looks = block.looks(x_NTW, turns, other)
            x_NTW = block.after(x_NTW, turns, other)
        return x_NTW, looks

    def logits(self, x_NTW: Tensor) -> Tensor:
        """Of what `decode` gave: over all known tokens."""
        found: Tensor = nn.functional.linear(self.norms[1](x_NTW), self.embedding.weight)
        return found


@torch.inference_mode()
def beam_search(model: Seq2Seq, source_NS: Tensor, mask_NS: Tensor, beams: int, limits_N: Tensor) -> Tensor:
    """What the model writes for each source: (N, T) with START, END and PAD; 1 beam is greedy.

    The best of `beams` texts, by log probability over ((5 + length) / 6) ** 0.6 (Wu et al. 2016,
    arXiv:1609.08144); limits: the most tokens of each text.
    """
    n = len(source_NS)
    read = model.encode(source_NS, mask_NS).repeat_interleave(beams, 0)
    mask = mask_NS.repeat_interleave(beams, 0)
    text = torch.full((n, beams, 1), START, device=source_NS.device)
    scores = torch.full((n, beams), -math.inf, device=source_NS.device)
    scores[:, 0] = 0.0
    ended = torch.zeros((n, beams), dtype=torch.bool, device=source_NS.device)
    lengths = torch.zeros((n, beams), device=source_NS.device)
    for length in range(1, int(limits_N.max()) + 1):
        logits = model.logits(model.decode(text.flatten(0, 1), read, mask)[0][:, -1]).float()
        steps = logits.log_softmax(1).view(n, beams, -1)
        steps[..., [PAD, START]] = -math.inf
        steps = torch.where(ended[..., None], -math.inf, steps)
        steps[..., PAD] = torch.where(ended, 0.0, -math.inf)
        scores, places = (scores[..., None] + steps).flatten(1).topk(beams, 1)
        beam, token = places // steps.shape[2], places % steps.shape[2]
        text = torch.cat([text.gather(1, beam[..., None].expand(-1, -1, text.shape[2])), token[..., None]], 2)
        ended, lengths = ended.gather(1, beam), lengths.gather(1, beam)
        lengths = lengths + ~ended
        ended = ended | (token == END) | (limits_N[:, None] <= length)
        scores, ended = _decided(scores, lengths, ended, limits_N)
        if bool(ended.all()):
            break
    best = _per_length(scores, lengths).argmax(1)
    return text[torch.arange(n, device=text.device), best]


def _per_length(scores: Tensor, lengths: Tensor) -> Tensor:
    return scores / ((5 + lengths) / 6) ** LENGTH


def _decided(scores: Tensor, lengths: Tensor, ended: Tensor, limits_N: Tensor) -> tuple[Tensor, Tensor]:
    """With the texts given up that can no longer become better than one that has ended."""
    found = _per_length(scores, lengths).where(ended, -math.inf).amax(1, keepdim=True)
    hopeless = ~ended & (_per_length(scores, limits_N[:, None]) < found)
    return scores.masked_fill(hopeless, -math.inf), ended | hopeless
