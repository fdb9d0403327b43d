"""What steps hand on: a folder on disk, its kind and its digest; never a tensor, a frame or a model."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.config import Values
from overnight.errors import DiskFull, file_error
from overnight.files import is_disk_full, tree_sha256
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np

Writer = Callable[[Path], object]


class DataSpec(Values):
    """Enough to build a model for some data without opening a file."""

    shape: tuple[int, ...] = ()  # of one sample: (C, H, W) for images, (F,) for features
    dtype: str = "uint8"
    classes: tuple[str, ...] = ()
    counts: dict[str, int] = {}  # samples by split
    boxes: int = 0  # the most boxes on one image
    nodes: int = 0
    edges: int = 0  # undirected edges, each counted once
    nonzeros: int = 0  # stored values of sparse node features, 0 when they are dense
    tokens: int = 0
    rows: int = 0


class Artifact(Values):
    """A folder with `arrays.safetensors` (named arrays), `meta.json` and any other files."""

    kind: str
    path: Path
    digest: str
    spec: DataSpec = DataSpec()

    def arrays(self, *names: str) -> dict[str, "np.ndarray"]:
        from safetensors import safe_open

        with safe_open(self.path / "arrays.safetensors", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}

    def meta(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "meta.json").read_text(encoding="utf-8")))

    def expect(self, kind: str) -> "Artifact":
        """Raises DataError when it is of another kind."""
        if self.kind != kind:
            raise file_error(
                self.path, f"expected an artifact of kind {kind!r}, this is {self.kind!r}; check the flow"
            )
        return self


def _replace(part: Path, folder: Path) -> None:
    """Put `part` at its place; a crash meanwhile leaves the old folder, whole, or none."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def save(
    folder: Path,
    kind: str,
    spec: DataSpec | None = None,
    arrays: Mapping[str, "np.ndarray"] | None = None,
    meta: dict[str, Any] | None = None,
    files: Mapping[str, Writer] | None = None,
) -> Artifact:
    """Whole or not at all: a crash or a full disk leaves nothing that looks finished."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        if arrays is not None:
            import numpy as np
            from safetensors.numpy import save_file

            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(contiguous, part / "arrays.safetensors")
        (part / "meta.json").write_text(json.dumps(meta or {}, ensure_ascii=False, indent=1), "utf-8")
        for name, write in (files or {}).items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            write(part / name)
        found = tree_sha256(part)
        _replace(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                f"{shown(folder)}: the disk is full; free some room (old runs are folders in "
                ".overnight/steps) and run it again"
            ) from None
        raise
    return Artifact(kind=kind, path=folder, digest=found, spec=spec or DataSpec())
