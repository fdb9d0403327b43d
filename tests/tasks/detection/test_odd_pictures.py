"""Pictures as people have them, each with a box: on the right pixels, or left out; every rule is counted."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from overnight import RecordingRun
from overnight.data.dataset import Dataset
from overnight.data.images import RULES, decode
from overnight.errors import DataError
from tasks.detection.scenes import SceneParams, load_boxes

W, H = 64, 48
BOX = (8, 12, 32, 40)
TURNED = "photograph_turned_as_its_EXIF_says"
FRAMES = "first_of_several_frames_or_pages_taken"
UNSAID = "photograph_that_EXIF_turns,_its_boxes_taken_as_seen"  # of 2, 3 and 4 the size does not tell
TURN_RULES = {
    o: ({TURNED: 1} if o > 1 else {}) | ({UNSAID: 1} if o in (2, 3, 4) else {}) for o in range(1, 9)
}
DROPPED = "image_that_does_not_decode_dropped"


def pixels(width: int = W, height: int = H, box: tuple = BOX) -> np.ndarray:
    """uint8 (H, W), black with a white box."""
    found = np.zeros((height, width), np.uint8)
    found[box[1] : box[3], box[0] : box[2]] = 255
    return found


def saved(image: Image.Image, form: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **more)
    return stream.getvalue()


def turned(orientation: int, form: str) -> bytes:
    """Stored so that it is seen as `pixels`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions
    image = Image.fromarray(pixels()).convert("RGB")
    image = image.transpose(undo[orientation]) if orientation in undo else image
    return saved(image, form, exif=exif, quality=95)


def deep(values: np.ndarray) -> bytes:
    """A png of 16 bits a channel: (H, W), (H, W, 2) with alpha, or (H, W, 3)."""
    height, width, *channels = values.shape
    colour = {(): 0, (2,): 4, (3,): 2}[tuple(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def several(form: str) -> bytes:
    black = Image.new("RGB", (W, H))
    return saved(
        Image.fromarray(pixels()).convert("RGB"),
        form,
        save_all=True,
        append_images=[black, black],
        lossless=True,
    )


def of_mode(mode: str, form: str) -> bytes:
    return saved(Image.fromarray(pixels()).convert(mode), form)


def bomb() -> bytes:
    """A small file that says it has 900 million pixels."""
    return deep(np.zeros((1, 1), np.uint16)).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 30000, 30000)
    )


VALUES = pixels().astype(np.uint16)
WHOLE = saved(Image.fromarray(pixels()), "PNG")
ODD = {
    **{f"turned {o} {form}": (turned(o, form), TURN_RULES[o]) for o in range(1, 9)
       for form in ("JPEG", "TIFF")},
    **{f"turned {o} png": (turned(o, "PNG"), TURN_RULES[o]) for o in (3, 6, 8)},
    "cmyk jpeg": (of_mode("CMYK", "JPEG"), {"image_of_mode_CMYK_converted": 1}),
    "cmyk tiff": (of_mode("CMYK", "TIFF"), {"image_of_mode_CMYK_converted": 1}),
    "palette": (of_mode("P", "PNG"), {"image_of_mode_P_converted": 1}),
    "bilevel": (of_mode("1", "PNG"), {"image_of_mode_1_converted": 1}),
    "grey and alpha": (of_mode("LA", "PNG"), {"image_of_mode_LA_converted": 1}),
    "lab": (of_mode("LAB", "TIFF"), {"image_of_mode_LAB_converted": 1}),
    "16 bits": (deep(VALUES * 257), {"image_of_mode_I;16_converted": 1}),
    "12 bits in 16": (deep(VALUES * 16), {"16-bit_image_of_12-bit_values_scaled_by_those": 1,
                                          "image_of_mode_I;16_converted": 1}),
    "8 bits in 16": (deep(VALUES), {"16-bit_image_of_8-bit_values_scaled_by_those": 1,
                                    "image_of_mode_I;16_converted": 1}),
    "16 bits a colour": (deep(np.dstack([VALUES * 257] * 3)), {}),
    "float": (of_mode("F", "TIFF"), {"image_of_mode_F_converted": 1}),
    "animated gif": (several("GIF"), {FRAMES: 1, "image_of_mode_P_converted": 1}),
    "animated webp": (several("WEBP"), {FRAMES: 1}),
    "animated png": (several("PNG"), {FRAMES: 1}),
    "several pages": (several("TIFF"), {FRAMES: 1}),
    "truncated jpeg": (of_mode("RGB", "JPEG")[:-200], {DROPPED: 1}),
    "truncated png": (WHOLE[:-30], {DROPPED: 1}),
    "bomb": (bomb(), {DROPPED: 1}),
    "text": (b"not an image at all", {DROPPED: 1}),
    "12 bits a colour": (deep(np.dstack([VALUES * 16] * 3)), {DROPPED: 1}),
    "12 bits grey and alpha": (deep(np.dstack([VALUES * 16, VALUES * 0 + 65535])), {DROPPED: 1}),
    "jpeg 2000": (of_mode("RGB", "JPEG2000"), {}),
    "avif": (of_mode("RGB", "AVIF"), {}),
}  # fmt: skip
SIZED = {
    "tiny": (1, 1, (0, 0, 1, 1)),
    "long": (3000, 8, (300, 0, 1500, 8)),
    "high": (5, 900, (0, 90, 5, 450)),
}


def loaded(tmp_path, folder, data: bytes, size: tuple, box: tuple):
    for name, content in (("odd", data), ("whole", WHOLE)):
        width, height, corners = (*size, box) if name == "odd" else (W, H, BOX)
        (folder / f"{name}.png").write_bytes(content)
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        corners_xml = "".join(f"<{side}>{v}</{side}>" for side, v in sides)
        (folder / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>x</name>"
            f"<bndbox>{corners_xml}</bndbox></object></annotation>"
        )
    run = RecordingRun(tmp_path)
    entry = Dataset(name="made", kind="boxes", reader="voc")
    out = load_boxes.body(run, SceneParams(size=64, val=0), entry)
    counts = {k.removeprefix("data/"): v for e in run.of("metrics") for k, v in e["values"].items()}
    return out.arrays(), {k: v for k, v in counts.items() if not k.endswith("_boxes")}


@pytest.mark.parametrize("name", [*ODD, *SIZED])
def test_a_box_lies_on_its_pixels_whatever_the_picture(tmp_path, folder, name: str) -> None:
    width, height, box = SIZED.get(name, (W, H, BOX))
    data, rules = ODD.get(name) or (saved(Image.fromarray(pixels(width, height, box)), "PNG"), {})
    arrays, counts = loaded(tmp_path, folder, data, (width, height), box)
    assert counts == rules
    assert len(arrays["train_images"]) == 2 - (DROPPED in rules)
    for image, (corners, *_) in zip(arrays["train_images"], arrays["train_boxes"], strict=True):
        white = image.min(0) > 150
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(seen - corners).max() <= 1.5
    assert len(ODD) + len(SIZED) >= 40


def test_the_same_with_a_size_that_no_view_of_it_has(tmp_path, folder) -> None:
    arrays, counts = loaded(tmp_path, folder, turned(6, "JPEG"), (W + 9, H), BOX)
    assert counts == {"image_of_another_size_than_its_annotation_states_left_out": 1}
    assert len(arrays["train_images"]) == 1
    for path in folder.glob("*.png"):
        path.write_bytes(b"not an image")
    run, entry = RecordingRun(tmp_path), Dataset(name="made", kind="boxes", reader="voc")
    with pytest.raises(DataError, match="does not decode"):
        load_boxes.body(run, SceneParams(size=64), entry)


def test_colours_that_do_not_use_their_16_bits_are_counted():
    dark = decode("dark.png", deep(np.dstack([VALUES * 64] * 3)))
    assert dark.info[RULES] == ["dark image whose 16 bits a colour are not all in use kept"]
    assert decode("whole.png", deep(np.dstack([VALUES * 257] * 3))).info[RULES] == []
