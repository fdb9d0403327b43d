"""Bytes of a language model's weights: by arithmetic, or from the header of a file."""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from overnight.errors import FAILURES, BadInput
from overnight.memory.architectures.shapes import Shape

BLOCKS = {  # of the GGUF formats: number of the type in a file, bytes and weights of a block
    "f32": (0, 4, 1), "f16": (1, 2, 1), "bf16": (30, 2, 1),
    "q4_0": (2, 18, 32), "q4_1": (3, 20, 32), "q5_0": (6, 22, 32), "q5_1": (7, 24, 32), "q8_0": (8, 34, 32),
    "q2_k": (10, 84, 256), "q3_k": (11, 110, 256), "q4_k": (12, 144, 256), "q5_k": (13, 176, 256),
    "q6_k": (14, 210, 256), "q8_k": (15, 292, 256),
}  # fmt: skip
NUMBERS = {number: (block, weights) for number, block, weights in BLOCKS.values()}
MIXES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}  # of which some tensors are q6_k
TRANSFORMERS = ("fp32", "fp16", "bf16", "int8", "nf4")
LLAMA_CPP = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
WAYS = (*TRANSFORMERS, *LLAMA_CPP)


def weight_bytes(shape: Shape, way: str) -> int:
    """Bytes of all weights; way: one of WAYS."""
    return sum(tensor_bytes(shape, name, size, way) for name, size in shape.tensors())


def tensor_bytes(shape: Shape, name: str, size: tuple[int, ...], way: str) -> int:
    count = math.prod(size)
    if way in TRANSFORMERS:
        return _of_transformers(name, size, count, way)
    kind = "f32" if len(size) == 1 else _of_gguf(shape, name, way)
    _, block, weights = BLOCKS[kind]
    return -(-count // weights) * block


def _of_transformers(name: str, size: tuple[int, ...], count: int, way: str) -> int:
    if way in ("fp32", "fp16", "bf16") or len(size) == 1 or name in ("token_embd", "output"):
        return count * (4 if way == "fp32" else 2)
    if way == "int8":
        return count + 4 * size[0]  # a scale for each output
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)


def _of_gguf(shape: Shape, name: str, way: str) -> str:
    """The mixes (..._m) spend more bits on the most sensitive tensors."""
    plain = MIXES.get(way, way)
    if name == "output" or (name == "token_embd" and shape.tied):
        return plain if plain in ("f16", "q8_0") else "q6_k"
    if way not in MIXES or not name.endswith(("attn_v", "ffn_down")):
        return plain
    n = shape.layers
    layer = int(name.split(".")[1])
    if layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2:
        return "q6_k"
    shared = name.endswith("attn_v") and n == 80  # by eight heads in a 70B
    return "q5_k" if shared and plain == "q4_k" else plain


@dataclass(frozen=True)
class Weights:
    """values: of the model's sizes (GGUF only). tied: whether a GGUF has no output matrix of its own."""

    bytes: int
    values: dict[str, Any]
    tied: bool = False


def read_header(path: Path) -> Weights:
    """Of a .gguf, a .safetensors or its index (.json). Raises BadInput."""
    try:
        readers = {".gguf": _gguf, ".safetensors": _safetensors}
        found = readers.get(path.suffix, _index)(path)
        if found.bytes <= 0:
            raise ValueError(f"{found.bytes} bytes of weights")
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror or error}; give a .gguf, a .safetensors or its index"
        ) from None
    except (*FAILURES, struct.error, OverflowError, MemoryError) as error:
        raise BadInput(
            f"{path}: no header of weights can be read ({type(error).__name__}: {str(error)[:80]}); "
            "is the file whole?"
        ) from None
    return found


def _index(path: Path) -> Weights:
    return Weights(int(json.loads(path.read_text(encoding="utf-8"))["metadata"]["total_size"]), {})


def _safetensors(path: Path) -> Weights:
    with path.open("rb") as file:
        read = _Reader(file)
        header = json.loads(read.take(read.number("Q")))
    spans = [value["data_offsets"] for name, value in header.items() if name != "__metadata__"]
    if any(not 0 <= begin <= end for begin, end in spans):
        raise ValueError("a tensor that ends before it begins")
    return Weights(sum(end - begin for begin, end in spans), {})


def _gguf(path: Path) -> Weights:
    with path.open("rb") as file:
        read = _Reader(file)
        magic = read.take(4)
        version = read.number("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"begins with {magic!r}, version {version}")
        tensors, values = read.number("Q"), read.number("Q")
        found = {read.text(): read.value(read.number("I")) for _ in range(values)}
        sizes = dict(read.tensor() for _ in range(tensors))
    return Weights(sum(sizes.values()), found, "output.weight" not in sizes)


SCALARS = "BbHhIif?"  # types 0 to 7 of a GGUF value; 8 a text, 9 a list, 10 to 12 numbers of 64 bits


class _Reader:
    """Raises ValueError at the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.size:
            raise ValueError(f"a part of {count} bytes in a file of {self.size}")
        found = self.file.read(count)
        if len(found) != count:
            raise ValueError("it ends early")
        return found

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind < len(SCALARS):
            return self.number(SCALARS[kind])
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.number("I"), self.number("Q")
            if inner == 9:
                raise ValueError("a list of lists")
            return [self.value(inner) for _ in range(count)]
        return self.number({10: "Q", 11: "q", 12: "d"}[kind])

    def tensor(self) -> tuple[str, int]:
        """Its name and bytes."""
        name = self.text()
        sizes = [self.number("Q") for _ in range(self.number("I"))]
        block, weights = NUMBERS[self.number("I")]
        self.number("Q")
        return name, int(-(-math.prod(sizes) // weights) * block)
