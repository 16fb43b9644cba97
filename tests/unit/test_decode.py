from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from conftest import encoded, picture
from nescio.core.errors import BadImage
from nescio.data import decode as decoding
from nescio.data.decode import decode


def rgb(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_lossless_pixels_come_back_unchanged() -> None:
    image = picture(0)
    for raw in (encoded(image), encoded(image, "WEBP", lossless=True), encoded(image, "BMP"), image):
        np.testing.assert_array_equal(rgb(decode(raw)), np.asarray(image))


def test_grey_palette_and_one_bit_look_as_they_do_on_screen() -> None:
    grey = picture(1).convert("L")
    np.testing.assert_array_equal(rgb(decode(encoded(grey)))[:, :, 1], np.asarray(grey))
    palette = picture(2).quantize(16)
    np.testing.assert_array_equal(rgb(decode(encoded(palette))), np.asarray(palette.convert("RGB")))
    bits = grey.convert("1")
    assert set(np.unique(rgb(decode(encoded(bits))))) == {0, 255}


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert rgb(decode(encoded(image))).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    assert rgb(decode(encoded(palette, transparency=0))).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    raw = encoded(Image.fromarray(values), kind)
    assert rgb(decode(raw))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_in_unit_range_is_scaled() -> None:
    raw = encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF")
    assert rgb(decode(raw))[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_keeps_its_colour() -> None:
    colour = Image.new("RGB", (8, 8), (200, 40, 90))
    got = rgb(decode(encoded(colour.convert("CMYK"), "JPEG", quality=95))).reshape(-1, 3).mean(0)
    assert np.abs(got - [200, 40, 90]).max() < 6


def test_exif_orientation_is_applied() -> None:
    image = picture(3, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90° clockwise to show it
    shown = rgb(decode(encoded(image, "PNG", exif=exif)))
    np.testing.assert_array_equal(shown, np.rot90(np.asarray(image), k=3))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert rgb(decode(raw))[0, 0].tolist() == [255, 0, 0]


def damaged() -> dict[str, bytes]:
    png, jpeg = encoded(picture(4, (64, 64))), encoded(picture(4, (64, 64)), "JPEG")
    return {
        "nothing": b"",
        "text": b"<!doctype html><title>404</title>",
        "half a PNG": png[: len(png) // 2],
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "a PNG with flipped bytes": png[:60] + bytes(255 - b for b in png[60:200]) + png[200:],
        "half a WebP": encoded(picture(4, (64, 64)), "WEBP")[:200],
        "a header alone": png[:30],
    }


@pytest.mark.parametrize("what", damaged())
def test_damaged_images_are_bad_with_a_reason(what: str) -> None:
    with pytest.raises(BadImage) as e:
        decode(damaged()[what])
    assert str(e.value).strip()


def test_enormous_images_are_refused_by_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    with pytest.raises(BadImage, match="12 × 10 pixels"):
        decode(encoded(picture(5)))
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    monkeypatch.undo()
    with pytest.raises(BadImage, match="900000000 pixels"):
        decode(bomb.getvalue())
