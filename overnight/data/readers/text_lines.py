"""Labelled sentences, one a line: the label first, or in a column of its own."""

from pathlib import Path

from pydantic import Field, model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, Texts
from overnight.data.readers._common import BySplit, count_alike, count_empty, present, text
from overnight.errors import file_error


class Options(Values):
    splits: BySplit[str] = Field(min_length=1)
    # between the columns; with " " the rest of the line is the sentence
    separator: str = Field(" ", min_length=1)
    label: int = Field(0, ge=0)  # column of the label, counted from 0
    text: int = Field(1, ge=0)  # column of the sentence
    second: int | None = Field(None, ge=0)  # column of another sentence, of texts that are pairs
    header: bool = False  # the first line names the columns
    # name of the class by label, in the order of their indices; the sorted labels when left out
    classes: dict[str, str] = {}

    @model_validator(mode="after")
    def _two_columns(self) -> "Options":
        columns = [self.label, self.text, *([] if self.second is None else [self.second])]
        if len(set(columns)) < len(columns):
            raise ValueError("label, text and second are columns of their own")
        if self.second is not None and self.separator == " ":
            raise ValueError('second: sentences hold spaces; give another separator, such as "\\t"')
        return self


def read(folder: Path, options: Options, _kind: str) -> Texts:
    cleaned = CleaningCounts()
    rows = {split: _rows(present(folder, file), options, cleaned) for split, file in options.splits.items()}
    labels = tuple(options.classes) or tuple(sorted({label for some in rows.values() for label, _ in some}))
    index = {label: i for i, label in enumerate(labels)}
    for split, some in rows.items():
        unknown = next((label for label, _ in some if label not in index), None)
        if unknown is not None:
            raise file_error(
                folder / options.splits[split],
                f"label {unknown!r} is not among {', '.join(map(repr, labels))}",
            )
    splits = {split: [(sentence, index[label]) for label, sentence in some] for split, some in rows.items()}
    classes = tuple(options.classes.values()) or labels
    count_alike(labels, cleaned)
    count_empty(classes, (i for some in splits.values() for _, i in some), cleaned)
    return Texts(splits, classes, cleaned, sentences=1 if options.second is None else 2)


def _rows(path: Path, options: Options, cleaned: CleaningCounts) -> list[tuple[str, str]]:
    rows = list[tuple[str, str]]()
    sentences = [options.text, *([] if options.second is None else [options.second])]
    last = max(options.label, *sentences)
    for number, line in enumerate(text(path).removesuffix("\n").split("\n"), 1):
        if not line.strip():
            cleaned["blank line dropped"] += 1
            continue
        if options.header and number == 1:
            continue
        fields = line.split(options.separator, last if options.separator == " " else -1)
        if len(fields) <= last or not fields[options.label].strip():
            raise file_error(
                path,
                f"line {number}: expected a label and a sentence, found {line[:60]!r}; mend "
                "the line or the options",
            )
        rows.append((fields[options.label].strip(), "\n".join(fields[i].strip() for i in sentences)))
    return rows
