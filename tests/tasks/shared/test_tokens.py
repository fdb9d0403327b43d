"""Text comes back from its numbers; what training did not have is known as unknown."""

import json

import numpy as np
import pytest

from tasks.shared.tokens import RESERVED, UNKNOWN, Characters, Pieces, load_tokens

TEXTS = ["to be, or not to be\n" * 5, "sein oder nicht sein: \u00e4\u00f6\u00fc\u00df\r\n"]
ODD = ["", "\n\n\n", " a  b ", "\u65e5\u672c \U0001f600", "x\u2028y\x0bz\ttab", "\x00"]


@pytest.mark.parametrize("text", [*TEXTS, *ODD])
@pytest.mark.parametrize("reserved", [0, RESERVED])
def test_pieces_of_any_text_give_it_back(text: str, reserved: int) -> None:
    pieces = Pieces.learnt(TEXTS, 300, reserved)
    numbers = pieces.encode(text)
    assert pieces.decode(numbers.tolist()) == text
    assert numbers.dtype == np.int32
    assert numbers.min(initial=reserved) >= reserved
    assert numbers.max(initial=0) < pieces.size


def test_pieces_are_as_many_as_asked_or_as_there_are() -> None:
    assert Pieces.learnt(TEXTS, 262, RESERVED).size == 262
    assert Pieces.learnt(["ab"], 1000, RESERVED).size == 256 + RESERVED
    longer = Pieces.learnt(TEXTS, 300)
    assert len(longer.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert longer.decode([*longer.encode("to be").tolist()]) == "to be"


def test_reserved_numbers_are_left_out_of_the_text() -> None:
    pieces = Pieces.learnt(TEXTS, 300, RESERVED)
    assert pieces.decode([1, *pieces.encode("to be").tolist(), 2, 0, 0]) == "to be"


def test_characters_are_those_of_train_and_any_other_is_unknown() -> None:
    characters = Characters.learnt("hello \u00e4\U0001f600")
    assert characters.size == 1 + len(set("hello \u00e4\U0001f600"))
    assert characters.decode(characters.encode("hole \U0001f600").tolist()) == "hole \U0001f600"
    assert characters.decode(characters.encode("hz").tolist()) == f"h{UNKNOWN}"
    assert characters.encode("").tolist() == []


@pytest.mark.parametrize("made", [Pieces.learnt(TEXTS, 270, RESERVED), Characters.learnt("".join(TEXTS))])
def test_what_is_kept_encodes_alike(made: Pieces | Characters) -> None:
    again = load_tokens(json.loads(json.dumps(made.state())))
    assert again.size == made.size
    for text in (*TEXTS, *ODD):
        assert again.encode(text).tolist() == made.encode(text).tolist()
