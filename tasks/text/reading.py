"""Texts as padded batches of numbers: by a pretrained model's tokenizer, or by pieces learnt from train."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from overnight.errors import file_error, one_line
from overnight.training.batches import Batch
from tasks.shared.tokens import END, PAD, START, Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MULTIPLE = 4  # of the length of a batch, so that there are few shapes
CHUNK = 50  # batches whose texts are sorted by length together
Row = tuple[list[int], list[int]]  # numbers, and to which sentence each belongs
Encode = Callable[[Sequence[tuple[str, ...]]], list[Row]]


def by_pieces(pieces: Pieces, longest: int) -> Encode:
    """Sentences between marks; of two that are too long the longer is cut first."""

    def row(texts: tuple[str, ...]) -> Row:
        parts = [pieces.encode(text).tolist() for text in texts]
        while sum(map(len, parts)) > longest - 1 - len(parts):
            max(parts, key=len).pop()
        numbers, kinds = [START], [0]
        for kind, part in enumerate(parts):
            numbers += [*part, END]
            kinds += [kind] * (len(part) + 1)
        return numbers, kinds

    return lambda rows: [row(texts) for texts in rows]


def by_tokenizer(tokenizer: "Tokenizer", longest: int) -> Encode:
    """As the pretrained model has read; a text that spells a mark of it is text."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    tokenizer.encode_special_tokens = True

    def rows(texts: Sequence[tuple[str, ...]]) -> list[Row]:
        given = [text if len(text) > 1 else text[0] for text in texts]
        return [(one.ids, one.type_ids) for one in tokenizer.encode_batch(given)]

    return rows


def tokenizer_in(folder: Path) -> "Tokenizer":
    """Of a folder of weights. Raises DataError."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises no other type
        raise file_error(
            file,
            f"a tokenizer was expected ({one_line(error)}); save_pretrained of transformers' AutoTokenizer "
            "writes one beside the weights",
        ) from None


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths behind one another; pad: what fills a batch."""

    tokens: Tensor
    kinds: Tensor
    starts: Tensor  # of each row, and the end of the last
    pad: int

    @classmethod
    def of(cls, rows: Sequence[Row], pad: int = PAD) -> "Ragged":
        starts = np.concatenate([[0], np.cumsum([len(numbers) for numbers, _ in rows], dtype=np.int64)])
        flat = [np.fromiter((n for row in rows for n in row[i]), np.int64, int(starts[-1])) for i in (0, 1)]
        return cls(torch.from_numpy(flat[0]), torch.from_numpy(flat[1]), torch.from_numpy(starts), pad)

    def data(self, split: str) -> dict[str, Tensor]:
        """As tensors by name, for a training."""
        return {
            f"{split}_tokens": self.tokens.int(),
            f"{split}_kinds": self.kinds.to(torch.uint8),
            f"{split}_starts": self.starts,
        }

    @classmethod
    def back(cls, data: dict[str, Tensor], split: str, pad: int) -> "Ragged":
        """Of what `data` gave."""
        return cls(data[f"{split}_tokens"], data[f"{split}_kinds"], data[f"{split}_starts"], pad)

    @property
    def lengths(self) -> Tensor:
        """On the host, so that no batch waits for a card."""
        starts = self.starts.cpu()
        return starts[1:] - starts[:-1]

    def batch(self, chosen: Tensor, longest: int) -> Batch:
        """Rows (n, T) with a mask that is False at padding. T: `longest` rounded up."""
        device = self.tokens.device
        within = torch.arange(MULTIPLE * math.ceil(longest / MULTIPLE), device=device)
        first, last = (self.starts[chosen.to(device) + i][:, None] for i in (0, 1))
        places = (first + within).clamp(max=max(0, len(self.tokens) - 1))
        mask = first + within < last
        tokens = torch.where(mask, self.tokens[places].long(), self.pad)
        return {"tokens": tokens, "kinds": torch.where(mask, self.kinds[places].long(), 0), "mask": mask}


def bucketed(lengths: Tensor, batch: int, generator: torch.Generator) -> list[Tensor]:
    """All rows in a random order, those of a batch of about equal length; what is left makes a small one."""
    order = torch.randperm(len(lengths), generator=generator)
    found = list[Tensor]()
    for chunk in order.split(CHUNK * batch):  # type: ignore[no-untyped-call]
        found += chunk[lengths[chunk].argsort(stable=True)].split(batch)
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
