"""A decoder of text: which token comes next."""

from torch import Tensor, nn

from tasks.shared.transformer import Block, Rotary


class Gpt(nn.Module):
    """Logits of the next token at each place. N texts of T tokens, V tokens are known, W values each.

    Source: Radford et al. 2019 for the whole, tasks/shared/transformer.py for its layers; input and output
    share their matrix (Press and Wolf 2017, arXiv:1608.05859).
    """

    def __init__(
        self, vocabulary: int, context: int, layers: int, heads: int, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.rotary = Rotary(width // heads, context)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True, dropout=dropout) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.RMSNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        turns = self.rotary(tokens_NT.shape[1])
        x_NTW = self.dropout(self.embedding(tokens_NT))
        for block in self.blocks:
            x_NTW = block(x_NTW, turns)
        logits: Tensor = nn.functional.linear(self.norm(x_NTW), self.embedding.weight)
        return logits
