"""Texts become padded batches; what is too long is cut, and padding is masked wherever it is."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from overnight.errors import DataError
from tasks.shared.tokens import END, RESERVED, START, Pieces
from tasks.text.reading import Ragged, bucketed, by_pieces, by_tokenizer, tokenizer_in


def words() -> Tokenizer:
    """Marks and letters, as encoders have them."""
    known = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3} | {c: i + 4 for i, c in enumerate("abcdef[]PD")}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return made


def test_sentences_stand_between_marks_and_the_longer_is_cut() -> None:
    pieces = Pieces.learnt(["a"], 259, RESERVED)
    encode = by_pieces(pieces, 8)
    (one, two) = encode([("ab",), ("abcdef", "xy")])
    assert one == ([START, *pieces.encode("ab").tolist(), END], [0] * 4)
    assert two == (
        [START, *pieces.encode("abc").tolist(), END, *pieces.encode("xy").tolist(), END],
        [0] * 5 + [1] * 3,
    )
    assert encode([("",)]) == [([START, END], [0, 0])]
    assert max(len(numbers) for numbers, _ in encode([("a" * 99, "b" * 99)])) == 8


def test_a_tokenizer_reads_marks_in_a_text_as_text() -> None:
    encode = by_tokenizer(words(), 10)
    assert encode([("ab",), ("a", "b")]) == [([1, 4, 5, 2], [0] * 4), ([1, 4, 2, 5, 2], [0, 0, 0, 1, 1])]
    ((numbers, _),) = encode([("[PAD]",)])
    assert 0 not in numbers
    assert len(encode([("abcdef" * 9, "abcdef" * 9)])[0][0]) == 10


def test_a_folder_without_a_tokenizer_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"tokenizer.json: a tokenizer was expected"):
        tokenizer_in(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json: a tokenizer was expected"):
        tokenizer_in(tmp_path)
    words().save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_in(tmp_path).token_to_id("[SEP]") == 2


def test_batches_hold_their_rows_and_mask_the_rest() -> None:
    rows = [([5] * n, [1] * n) for n in (3, 11, 1)]
    ragged = Ragged.of(rows, pad=7)
    assert ragged.lengths.tolist() == [3, 11, 1]
    batch = ragged.batch(torch.tensor([1, 0]), 11)
    assert batch["tokens"].shape == (2, 12)
    assert batch["mask"].sum(1).tolist() == [11, 3]
    assert (batch["tokens"][batch["mask"]] == 5).all()
    assert (batch["tokens"][~batch["mask"]] == 7).all()
    assert batch["kinds"].sum().item() == 14
    last = ragged.batch(torch.tensor([2]), 1)
    assert last["tokens"].tolist() == [[5] + [7] * 3]
    back = Ragged.back(ragged.data("val"), "val", 7).batch(torch.tensor([1, 0]), 11)
    assert all(torch.equal(back[name], batch[name]) for name in batch)


def test_buckets_hold_each_row_once_and_little_padding() -> None:
    lengths = torch.randint(1, 60, (1003,), generator=torch.Generator().manual_seed(0))
    found = bucketed(lengths, 10, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(found).tolist()) == list(range(1003))
    assert len(found) == 101
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in found)
    assert padded < 1.1 * int(lengths.sum())
    again = bucketed(lengths, 10, torch.Generator().manual_seed(2))
    assert torch.cat(found).tolist() != torch.cat(again).tolist()
