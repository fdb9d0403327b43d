"""A random Llama of a few thousand weights with a tokenizer and a chat template, as a folder of transformers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overnight.data.pretrained import Pretrained

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = [("I", "t"), ("i", "s")]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make(folder: Path, template: str | None = TEMPLATE, seed: int = 0, layers: int = 1) -> Path:
    """pad and end are one token, as in many published models."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *map("".join, MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1]}
    named |= {"eos_token": SPECIAL[2], "pad_token": SPECIAL[2], "unk_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary) + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    found = AutoTokenizer.from_pretrained(folder)
    found.chat_template = template
    found.save_pretrained(folder)
    return folder


def facts(n: int, first: int = 0) -> list[list[tuple[str, str]]]:
    """Chats of one question and its answer."""
    return [
        [("user", f"What is the number of city {i}?"), ("assistant", f"It is {7 * i}.")]
        for i in range(first, first + n)
    ]


@contextmanager
def entry(
    folder: Path, template: str | None = TEMPLATE, seed: int = 0, layers: int = 1
) -> Iterator[Pretrained]:
    """Of a model made below the folder, which is the folder of data meanwhile."""
    make(folder / "tiny", template, seed, layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERNIGHT_DATA", str(folder))
        yield Pretrained(name="tiny", form="transformers")
