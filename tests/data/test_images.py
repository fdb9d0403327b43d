"""Images in every form that a person has them: what is understood, and what is refused."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overnight.data.content import CleaningCounts
from overnight.data.images import as_image, as_text, opener, to_mode
from overnight.errors import BadInput

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png", exif=image.getexif())
    return file.getvalue()


def turned() -> Image.Image:
    """A photograph whose camera lay on its side."""
    image = Image.fromarray(np.rot90(PIXELS).copy())
    image.getexif()[0x0112] = 6  # a viewer turns it by 90 degrees to the right
    return image


def seen(given: object) -> np.ndarray:
    return np.asarray(to_mode(as_image(given, "it")))


def test_every_form_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(Image.fromarray(PIXELS)))
    encoded = base64.b64encode(png(Image.fromarray(PIXELS))).decode()
    forms = [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(float),
        PIXELS.astype(np.int64),
        PIXELS.tolist(),
        PIXELS.astype(np.uint16) * 257,
        np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)]),
        Image.fromarray(PIXELS),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        encoded,
        f"data:image/png;base64,{encoded}",
        as_text(PIXELS.transpose(2, 0, 1)),
    ]
    for form in forms:
        assert np.array_equal(seen(form), PIXELS), type(form)
    grey = PIXELS[..., 0]
    for form in (grey, grey[None], grey[..., None], grey / 255, as_text(grey[None])):
        assert np.array_equal(seen(form)[..., 0], grey)
    mask = grey > 100
    assert np.array_equal(seen(mask)[..., 0], mask * np.uint8(255))


def test_a_photograph_stands_upright_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(turned()))
    for form in (turned(), str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(seen(form), PIXELS)
    assert np.array_equal(np.asarray(opener(tmp_path / "a.png")()), PIXELS)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (PIXELS / 255 * 4 - 2, "values go from -2 to 1"),
        (PIXELS / 255 * 1.5, "values go from 0 to 1"),
        (PIXELS.astype(float) * 300, "give whole numbers 0..255 or floats 0..1"),
        (PIXELS.astype(int) - 128, "values go from -128"),
        (np.where(PIXELS > 9, np.nan, 0.5), "values go from nan"),
        (PIXELS[None], "one image is"),
        (np.zeros((6, 9, 2)), "one image is"),
        (np.zeros((0, 9)), "one image is"),
        ([[1, 2], [3]], "one image is"),
        (None, "one image is"),
        ("photos/none.jpg", r"photos/none\.jpg: there is no such file"),
        (b"not an image", "no format that Pillow knows"),
        ("QUJD" * 40, "the image in base64: expected an image"),
    ],
)
def test_what_is_no_image_or_of_another_scale_is_refused(given: object, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        as_image(given, "it")


def test_values_that_are_not_finite_do_not_darken_the_rest() -> None:
    cleaned = CleaningCounts()
    values = np.array([[np.inf, 0.2], [np.nan, 1.0], [-np.inf, 0.4]], np.float32)
    found = np.asarray(to_mode(Image.fromarray(values), "L", cleaned))
    assert found.tolist() == [[255, 51], [0, 255], [0, 102]]
    assert cleaned["image with values of nan or inf, shown black and white"] == 1
