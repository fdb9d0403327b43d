"""Weights to begin with: published ones, or those of a file."""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.data.download import download
from overnight.errors import DataError
from overnight.files import file_sha256
from overnight.paths import shown
from tasks.vision.params import CnnParams

Weights = dict[str, Tensor]
Note = Callable[[str], None]
FIRST = {
    "resnet20": "body.0.0.weight",
    "resnet18": "conv1.weight",
    "speedrun": "",
}  # the convolution that sees the image's channels
HEAD = {"resnet20": "head.", "resnet18": "fc.", "speedrun": "head."}
OPTIONAL = (
    "mean",
    "std",
    "num_batches_tracked",
)  # scale of the pixels, by the training images when the file has none; counters


def initial(params: CnnParams, net: Weights, note: Note, provisional: Note | None = None) -> Weights | None:
    """What a net with the state `net` begins with, by `init`; None: from scratch.

    provisional: takes why published weights are not here, though they may be the next time. Raises DataError
    when a file's weights do not fit.
    """
    if params.init == "scratch" or (params.init == "auto" and params.arch != "resnet18"):
        return None
    if params.weights is not None:
        return fitting(read(params.weights), net, params.arch, shown(params.weights), note)
    if (
        net["conv1.weight"].shape[2] != 7
        or net["conv1.weight"].shape[1] not in {1, 3}
        or params.first_channels != 64
    ):
        note(
            "from scratch: the published ResNet-18 has 64 channels and is for grey or coloured images of at "
            "least 64 px"
        )
        return None
    url, folder = published(), Path(torch.hub.get_dir()) / "checkpoints"
    there = cached(url, folder, provisional or note)
    return None if there is None else fitting(read(there), net, params.arch, there.name, note)


def published() -> str:
    """Where torchvision's weights are: the name ends with the first digits of the file's sha256."""
    from torchvision.models import ResNet18_Weights

    return str(ResNet18_Weights.DEFAULT.url)


def cached(url: str, folder: Path, note: Note) -> Path | None:
    """The file behind the url, in torch's own cache or fetched to there.

    None, with a note, when it cannot be had.
    """
    path = folder / url.rsplit("/", 1)[-1]
    try:
        if not path.is_file():
            download(url, path, progress=lambda _what, _done, _total: None)
        found = file_sha256(path)
    except (DataError, OSError) as error:
        note(
            f"from scratch: the published weights are not in {shown(folder)} and could not be fetched "
            f"({' '.join(str(error).split())[:200]})"
        )
        return None
    if not found.startswith(path.stem.rsplit("-", 1)[-1]):
        os.replace(path, path.with_suffix(".damaged"))
        note(
            f"from scratch: {path.name} is damaged (its sha256 begins with {found[:8]}); it was set aside, "
            "the next run fetches it anew"
        )
        return None
    return path


def read(path: Path) -> Weights:
    """The tensors of a .safetensors or .pt file by name; no code of the file is run. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(
            f"init: there is no file {shown(path)}; give the path of a .safetensors or .pt, or auto, or "
            "scratch"
        ) from None
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise DataError(
            f"init: {shown(path)} holds no weights that can be read: {_why(path, error)}"
        ) from None
    return _tensors(found, path)


def _why(path: Path, error: BaseException) -> str:
    """In a person's words: torch's own are of archives and pickles."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    if path.is_file() and not path.stat().st_size:
        return "the file is empty"
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is damaged, or holds more than tensors, and code of a file is not run; "
            "save model.state_dict() alone, or as .safetensors"
        )
    return "it is damaged, or was not written by torch.save or safetensors"


def _tensors(found: Any, path: Path) -> Weights:
    """A state dict out of what torch.save wrote: as it is, or under the names that training scripts use."""
    for name in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise DataError(
            f"init: {shown(path)} holds no state dict; save one with torch.save(model.state_dict(), path)"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def fitting(found: Weights, net: Weights, arch: str, where: str, note: Note) -> Weights:
    """`found` for this net: first layer by the images' channels, without a head of other classes.

    Raises DataError when the weights do not fit.
    """
    found = dict(found)
    first, head = FIRST[arch], [name for name in net if name.startswith(HEAD[arch])]
    if first in found:
        found[first] = _channels(found[first], net[first].shape)
    if any(name in found and found[name].shape != net[name].shape for name in head):
        classes = [len(weights[head[0]]) for weights in (found, net) if head[0] in weights]
        found = {name: tensor for name, tensor in found.items() if name not in head}
        note(f"init: the last layer begins from scratch ({' classes there, '.join(map(str, classes))} here)")
    else:
        head = []
    for name in OPTIONAL[:2]:
        if name in found and found[name].shape != net[name].shape:
            del found[name]
    missing = [name for name in net if name not in found and name not in head and not name.endswith(OPTIONAL)]
    unknown = [name for name in found if name not in net]
    wrong = [
        f"{n} is {tuple(t.shape)}, not {tuple(net[n].shape)}"
        for n, t in found.items()
        if n in net and t.shape != net[n].shape
    ]
    if missing or unknown or wrong:
        parts = [("missing: ", missing), ("not in the net: ", unknown), ("of another shape: ", wrong)]
        problem = "; ".join(f"{len(names)} {word}{', '.join(names[:3])}" for word, names in parts if names)
        raise DataError(
            f"init: the weights of {where} are not those of this net ({arch}): {problem}. {HINT[arch]}"
        )
    note(f"begins with the weights of {where}")
    return found


HINT = {
    "resnet20": "Give the same channels, blocks and stem as they were trained with, or init: scratch",
    "resnet18": "ResNet-18 has a 7x7 stem for images of at least 64 px (images.size), a 3x3 one below; else "
    "init: scratch",
    "speedrun": "Give the same channels, and images of the same size and mode, as they were trained with, "
    "or init: scratch",
}


def _channels(kernel: Tensor, wanted: torch.Size) -> Tensor:
    """Colour filters summed for grey images, grey ones spread over colours.

    The answer on the same grey image stays the same.
    """
    if kernel.ndim != 4 or kernel.shape[1] == wanted[1]:
        return kernel
    if wanted[1] == 1:
        return kernel.sum(1, keepdim=True)
    return (kernel / wanted[1]).expand(-1, wanted[1], -1, -1).contiguous() if kernel.shape[1] == 1 else kernel
