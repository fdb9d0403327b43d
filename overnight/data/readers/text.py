"""Running text: whole files by split, or one file cut by position."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from overnight.config import Values
from overnight.data.content import Texts
from overnight.data.readers._common import BySplit, Files, present, text


class Options(Values):
    splits: BySplit[Files] = Field(min_length=1)
    # shares cut off the end of train, last split last
    parts: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}

    @model_validator(mode="after")
    def _sensible(self) -> "Options":
        if self.parts and (
            sum(self.parts.values()) >= 1 or set(self.parts) & set(self.splits) or "train" not in self.splits
        ):
            raise ValueError(
                "parts are cut off train, must leave something of it, and name splits that have no file"
            )
        return self


def read(folder: Path, options: Options, _kind: str) -> Texts:
    """Each file as one string, with line ends of one character and no byte order mark."""
    found = {
        split: [(text(present(folder, name)), -1) for name in names]
        for split, names in options.splits.items()
    }
    if options.parts:
        found |= _parts("".join(string for string, _ in found["train"]), options.parts)
    return Texts(found)


def _parts(whole: str, parts: dict[str, float]) -> dict[str, list[tuple[str, int]]]:
    """The end belongs to the last part; what is left in front is train."""
    end, found = len(whole), dict[str, list[tuple[str, int]]]()
    for split, share in reversed(parts.items()):
        start = end - round(len(whole) * share)
        found[split] = [(whole[start:end], -1)]
        end = start
    return {"train": [(whole[:end], -1)], **dict(reversed(found.items()))}
