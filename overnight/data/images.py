"""Images as they come: any size, any mode."""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from overnight.data.content import BoxItem, CleaningCounts, ImageItem
from overnight.errors import FAILURES, BadInput, DataError, one_line

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Item = TypeVar("Item", ImageItem, BoxItem)
DROPPED = "image that does not decode dropped"
# what Pillow and its decoders raise for files that are damaged
DAMAGED = (ArithmeticError, EOFError, MemoryError, SyntaxError, struct.error, zlib.error, *FAILURES)
ORIENTATION = 0x0112  # of EXIF
QUARTERS = (5, 6, 7, 8)  # its values that swap width and height
RULES = "overnight"  # where an image's `info` says which rules it was decoded by
SLACK = 1e-3  # beyond 0..1, by rounding
SMALL = 64  # pixels of a side up to which an example is stored without loss
MOST_PATH = 64  # characters; shorter text without a file of its name is no base64 either
SHAPES = "(height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels"


def decode(name: str, data: bytes) -> "Image":
    """The first frame, whole, turned as its EXIF says; raises DataError when it does not decode."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        turned = image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1  # by Pillow, in load
        cut = _is_cut(image)
        image.load()
        top = max(image.convert("RGB").tobytes(), default=255) if cut else 255
        if top < 1 << 12 - 8:
            raise ValueError("of its 16 bits a colour at most 12 are in use, and Pillow cuts off the lower 8")
    except (*DAMAGED, Image.DecompressionBombError) as error:
        why = one_line(error)
        if isinstance(error, UnidentifiedImageError):
            why = "its bytes are of no format that Pillow knows"
        raise DataError(f"{name}: expected an image, but it does not decode: {why}") from None
    found = _upright(image)
    rules = {"photograph turned as its EXIF says": turned or found is not image}
    rules["first of several frames or pages taken"] = getattr(image, "is_animated", False)
    rules["dark image whose 16 bits a colour are not all in use kept"] = top < 1 << 7
    found.info[RULES] = [rule for rule, applied in rules.items() if applied]
    return found


def _is_cut(image: "Image") -> bool:
    """Whether its channels have 16 bits of which Pillow reads the upper 8: all images of 16 bits but grey."""
    args = [str(getattr(tile, "args", "")) for tile in getattr(image, "tile", ())]
    return any(";16" in arg and "I;16" not in arg for arg in args) or any("65535" in arg for arg in args)


def _upright(image: "Image") -> "Image":
    """A photograph as its EXIF says that it is seen."""
    from PIL import ImageOps

    with suppress(*DAMAGED):  # of the EXIF alone
        if image.getexif().get(ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def header(path: Path) -> tuple[tuple[int, int], int] | None:
    """Width and height as the pixels are stored, and EXIF's orientation (1 to 8); None: it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            size = image.size
            try:
                orientation = int(image.getexif().get(ORIENTATION, 1))
            except DAMAGED:  # of the EXIF alone
                orientation = 1
            if image.format == "TIFF" and orientation in QUARTERS:  # Pillow tells the size as seen
                size = size[::-1]
    except (*DAMAGED, Image.DecompressionBombError):
        return None
    return size, orientation if orientation in range(1, 9) else 1


def as_seen(boxes: "np.ndarray", size: tuple[float, float], orientation: int) -> "np.ndarray":
    """Boxes (n, 4) over an image as stored, of this width and height, where EXIF's orientation shows them."""
    import numpy as np

    width, height = size
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    sides = [y1, x1, y2, x2] if orientation in QUARTERS else [x1, y1, x2, y2]
    return np.stack(sides, axis=1)


def opener(path: Path) -> "Callable[[], Image]":
    def open_it() -> "Image":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
        return decode(str(path), data)

    return open_it


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
            cleaned.at(DROPPED, str(error))
            first = first or error
            continue
        good += 1
        for rule in image.info.pop(RULES, ()):
            cleaned.at(rule, item.name)
        yield item, image
    if first is not None and not good:
        raise first


def to_mode(image: "Image", mode: str = "RGB", cleaned: CleaningCounts | None = None) -> "Image":
    """8 bits a channel, mode "RGB" or "L"; more bits are scaled, transparency is laid on white."""
    from PIL import Image, ImageCms

    if cleaned is not None:
        cleaned[f"image of mode {image.mode} converted"] += image.mode not in ("L", "RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image, cleaned)
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        image = cast("Image.Image", ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    if image.mode in ("PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: "Image", cleaned: CleaningCounts | None) -> "Image":
    """16 bits to 8 by the range of 8, 12 or 16 bits, the first that holds all values.

    Float or 32 bits by its own range when it leaves 0..65535.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        if cleaned is not None:
            cleaned["image with values of nan or inf, shown black and white"] += 1
        top = float(values[finite].max(initial=0))
        values = np.nan_to_num(values, posinf=top, neginf=float(values[finite].min(initial=0)))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    top = 65535.0
    if low < 0 or high > top:
        values = values - low
        top = max(high - low, 1.0)
    elif high <= 1 and image.mode == "F":
        top = 1.0
    else:
        bits = next(bits for bits in (8, 12, 16) if high < 1 << bits)
        top = float((1 << bits) - 1)
        if cleaned is not None and bits < 16:
            cleaned[f"16-bit image of {bits}-bit values scaled by those"] += image.mode != "F"
    return Image.fromarray(np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------ as given


def as_image(given: object, name: str) -> "Image":
    """The image that a person sees, given as a path, bytes, base64 text, an array, or an image of Pillow.

    Arrays have one of SHAPES, with whole numbers 0..255, uint16 of the full range, or floats 0..1. Raises
    BadInput for another scale or shape.
    """
    import numpy as np
    from PIL import Image

    if isinstance(given, Image.Image):
        return _upright(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return decode(name, bytes(given))
    if isinstance(given, str | Path):
        return _of_text(str(given))
    try:
        array = np.asarray(given)
    except ValueError:  # rows of unequal length
        array = np.empty(0, object)
    return Image.fromarray(_to_bytes(_to_hwc(array, name), name))


def as_text(pixels: "np.ndarray") -> str:
    """uint8 (1 or 3, H, W) as text that as_image reads back; a large one loses some detail."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _of_text(text: str) -> "Image":
    with suppress(OSError):  # too long for a path
        if Path(text).is_file():
            return decode(text, Path(text).read_bytes())
    head, _, rest = text.partition(",")
    encoded = rest if head.startswith("data:") else text
    try:
        if len(encoded) < MOST_PATH and encoded is text:
            raise binascii.Error
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{text[:200]}: there is no such file, and it is no image in base64") from None
    return decode("the image in base64", data)


def _to_hwc(array: "np.ndarray", name: str) -> "np.ndarray":
    """(H, W) or (H, W, 3 | 4)."""
    shape = array.shape
    last = array.ndim == 3 and shape[2] in (1, 3, 4)
    if array.ndim == 3 and not last and shape[0] in (1, 3, 4):
        array, last = array.transpose(1, 2, 0), True
    if array.dtype.kind not in "buif" or not array.size or not (array.ndim == 2 or last):
        raise BadInput(f"{name}: {array.dtype} of shape {shape} is no image; one image is {SHAPES}")
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _to_bytes(array: "np.ndarray", name: str) -> "np.ndarray":
    import numpy as np

    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low = float(array.min())
    high = float(array.max())
    tops = {"b": 1.0, "f": 1.0 if high <= 1 + SLACK else 255.0}
    top = 65535.0 if array.dtype == np.uint16 else tops.get(array.dtype.kind, 255.0)
    between = array.dtype.kind == "f" and 1 + SLACK < high < 2  # neither of 0..1 nor of 0..255
    if not (low >= -SLACK and high <= top + SLACK) or between:  # also where one is nan
        raise BadInput(
            f"{name}: its {array.dtype} values go from {low:g} to {high:g}; give whole numbers 0..255 or "
            "floats 0..1, before any normalisation"
        )
    return np.asarray(np.rint(array.astype(np.float64) * (255 / top)).clip(0, 255).astype(np.uint8))
