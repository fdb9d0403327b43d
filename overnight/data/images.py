"""Images as they come: any size, any mode."""

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from overnight.data.content import BoxItem, CleaningCounts, ImageItem
from overnight.errors import DataError, one_line

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Item = TypeVar("Item", ImageItem, BoxItem)
DROPPED = "image that does not decode dropped"


def decode(name: str, data: bytes) -> "Image":
    """The first frame, whole; raises DataError when it does not decode."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        why = one_line(error)
        if isinstance(error, UnidentifiedImageError):
            why = "its bytes are of no format that Pillow knows"
        raise DataError(f"{name}: expected an image, but it does not decode: {why}") from None
    return image


def opener(path: Path) -> "Callable[[], Image]":
    return lambda: decode(str(path), path.read_bytes())


def of_array(pixels: "np.ndarray") -> "Callable[[], Image]":
    from PIL import Image

    return partial(Image.fromarray, pixels)


def opened(items: Iterable[Item], cleaned: CleaningCounts) -> "Iterator[tuple[Item, Image]]":
    """Those that do not decode are counted and left out; DataError when none at all decodes."""
    good, first = 0, None
    for item in items:
        try:
            image = item.open()
        except DataError as error:
            cleaned[DROPPED] += 1
            first = first or error
            continue
        good += 1
        yield item, image
    if first is not None and not good:
        raise first


def to_mode(image: "Image", mode: str = "RGB") -> "Image":
    """8 bits a channel, mode "RGB" or "L"; 16 bits are scaled, transparency is laid on white."""
    from PIL import Image, ImageCms

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image)
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        image = cast("Image.Image", ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    if image.mode in ("PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: "Image") -> "Image":
    """16 bits to 8 by the range of the type; float or 32 bits by its own when it leaves 0..65535."""
    import numpy as np
    from PIL import Image

    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    top = 65535.0
    if low < 0 or high > top:
        values = values - low
        top = max(high - low, 1.0)
    elif 1 < high <= 255 and image.mode in ("I", "F"):
        top = 255.0
    elif high <= 1 and image.mode == "F":
        top = 1.0
    return Image.fromarray(np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8))
