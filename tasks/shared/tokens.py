"""Text as numbers: its characters, or pieces that byte pair encoding learnt (Sennrich et al. 2016)."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN = "\ufffd"  # what stands for a character that training did not have
PAD, START, END, RESERVED = 0, 1, 2, 3  # numbers of no text, where they are reserved
SMALLEST = 256  # pieces: every byte is one


class Tokens(Protocol):
    """size: how many numbers there are."""

    size: int

    def encode(self, text: str) -> np.ndarray:
        """int32 (n,)."""

    def decode(self, numbers: Sequence[int]) -> str:
        """The text; reserved numbers are left out."""

    def state(self) -> dict[str, Any]:
        """Enough for `load_tokens`, as JSON."""


class Characters:
    """The characters of the training text in the order of Unicode, from 1 on; 0 is any other."""

    def __init__(self, known: str) -> None:
        self.known = known
        self.points = _points(known)
        self.size = len(known) + 1

    @classmethod
    def learnt(cls, text: str) -> "Characters":
        return cls("".join(map(chr, np.unique(_points(text)))))

    def encode(self, text: str) -> np.ndarray:
        points = _points(text)
        if not self.known:
            return np.zeros(len(points), np.int32)
        places = np.minimum(np.searchsorted(self.points, points), len(self.points) - 1)
        return np.where(self.points[places] == points, places + 1, 0).astype(np.int32)

    def decode(self, numbers: Sequence[int]) -> str:
        return "".join(self.known[n - 1] if n else UNKNOWN for n in map(int, numbers))

    def state(self) -> dict[str, Any]:
        return {"kind": "characters", "known": self.known}


def _points(text: str) -> np.ndarray:
    """Code points; half of a pair of surrogates, which no UTF-8 has, is one too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class Pieces:
    """Byte pair encoding of bytes, so that no text is unknown; a line is encoded on its own.

    reserved: so many numbers come before those of the pieces.
    """

    def __init__(self, tokenizer: "Tokenizer", reserved: int) -> None:
        self.tokenizer, self.reserved = tokenizer, reserved
        self.size: int = tokenizer.get_vocab_size() + reserved

    @classmethod
    def learnt(cls, texts: Iterable[str], size: int, reserved: int = 0) -> "Pieces":
        """At most `size` numbers with the reserved ones, fewer where the text has no more pairs."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - reserved,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator((line for text in texts for line in _lines(text)), trainer)
        return cls(tokenizer, reserved)

    def encode(self, text: str) -> np.ndarray:
        lines = self.tokenizer.encode_batch_fast(_lines(text))
        found = [np.asarray(line.ids, np.int32) for line in lines]
        return np.concatenate(found or [np.zeros(0, np.int32)]) + np.int32(self.reserved)

    def decode(self, numbers: Sequence[int]) -> str:
        plain = [n - self.reserved for n in map(int, numbers) if n >= self.reserved]
        text: str = self.tokenizer.decode(plain)
        return text

    def state(self) -> dict[str, Any]:
        return {"kind": "pieces", "reserved": self.reserved, "tokenizer": self.tokenizer.to_str()}


def _lines(text: str) -> list[str]:
    return text.encode("utf-8", "replace").decode().splitlines(keepends=True)


def load_tokens(state: dict[str, Any]) -> Tokens:
    """Of what `state()` gave."""
    if state["kind"] == "characters":
        return Characters(state["known"])
    from tokenizers import Tokenizer

    return Pieces(Tokenizer.from_str(state["tokenizer"]), state["reserved"])
