"""The transforms that people have: options, torchvision's compositions, functions of their own."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, v2

from conftest import picture
from nescio.core.errors import InputError
from nescio.data import Preprocess, Transform, as_transform
from nescio.data.corruptions import Corrupted
from nescio.data.loader import read_batches
from nescio.data.source import as_source

GREY = Transform(crop=9, mean=(0.13,), std=(0.31,), channels=1)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def seen(transform: Any, image: Image.Image) -> Tensor:
    return transform.normalise(transform.geometry(image)[None])[0]


@pytest.mark.parametrize(
    ("composed", "expected"),
    [
        (
            v1.Compose([v1.Resize(40), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(*IMAGENET)]),
            Transform(crop=32, resize=40),
        ),
        (
            v2.Compose(
                [
                    v2.Resize([40], interpolation=InterpolationMode.BICUBIC),
                    v2.CenterCrop(32),
                    v2.PILToTensor(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
                ]
            ),
            Transform(crop=32, resize=40, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
        ),
        (ResNet18_Weights.IMAGENET1K_V1.transforms(), Transform(crop=224, resize=256)),
        (
            v1.Compose([v1.Grayscale(), v1.Resize(9), v1.CenterCrop(9), v1.ToTensor(), v1.Normalize((0.13,), (0.31,))]),
            GREY,
        ),
    ],
)
def test_a_usual_composition_becomes_a_transform_with_the_same_numbers(composed: Any, expected: Transform) -> None:
    made = as_transform(composed)
    assert (str(made), type(made)) == (str(expected), Transform)
    image = picture(3, size=(50, 41))
    torch.testing.assert_close(seen(made, image), composed(image), atol=1e-6, rtol=0)


def test_a_composition_that_keeps_the_size_needs_one() -> None:
    composed = v1.Compose([v1.ToTensor(), v1.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))])
    with pytest.raises(InputError, match=re.escape("as_transform(function, crop=32)")):
        as_transform(composed)
    assert as_transform(composed, crop=12) == Transform(crop=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    grey = as_transform(v1.Compose([v1.ToTensor(), v1.Normalize((0.13,), (0.31,))]), crop=9)
    assert grey == GREY


class Squashed:
    """Neither resizes in proportion nor has a name of its own."""

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def __call__(self, image: Image.Image) -> Tensor:
        return v1.functional.to_tensor(image.resize((8, 8))) * self.by - 1

    def __repr__(self) -> str:
        return f"Squashed(by={self.by})"


def test_any_other_function_is_a_transform_that_its_repr_names() -> None:
    made = as_transform(Squashed())
    assert isinstance(made, Preprocess)
    assert (str(made), made.crop, made.channels, made.mean, made.std) == ("Squashed(by=2.0)", 8, 3, (0,) * 3, (1,) * 3)
    assert str(as_transform(Squashed(3.0))) == "Squashed(by=3.0)"
    image = picture(1)
    assert torch.equal(seen(made, image), Squashed()(image))
    composed = v2.Compose([v2.Resize((9, 9)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                           v2.Normalize(*IMAGENET)])  # fmt: skip
    made = as_transform(composed)
    assert isinstance(made, Preprocess)
    assert (made.crop, made.mean, made.std) == (9, *IMAGENET)
    assert torch.equal(seen(made, image), composed(image))
    (batch,) = read_batches(as_source([image, picture(2)]), made, 0, 4, 0)
    assert torch.equal(made.normalise(batch.images), torch.stack([composed(image), composed(picture(2))]))
    corrupted = Corrupted(as_source([image]), "pixels", made)
    assert made.geometry(corrupted.read(0)).shape == (3, 9, 9)
    assert as_transform(made) is made
    assert as_transform("crop=8,mean=half") == Transform(crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_function_without_a_lasting_name_needs_a_key() -> None:
    def function(image: Image.Image) -> Tensor:
        return Squashed()(image)

    with pytest.raises(InputError, match=r"no stable name: give one, as .*key="):
        as_transform(function)
    assert str(as_transform(function, key="mine-1")) == "mine-1"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (v1.Compose([v1.RandomResizedCrop(8), v1.ToTensor()]), "is random: give the one for test images"),
        (v1.Compose([v1.Resize((8, 9)), v1.ToTensor()]), r"gives \(3, 8, 9\): expected one square image"),
        (v1.Resize((8, 8)), "gives Image: expected a tensor; add ToTensor"),
        (v1.Normalize((0.5,), (0.5,)), "fails on an RGB image: TypeError"),
        (7, "int is not a transform"),
    ],
)
def test_a_function_that_is_no_test_transform_is_refused(function: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        as_transform(function)


def test_grey_images_have_one_channel() -> None:
    image = Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9))
    rgb = image.convert("RGB")
    assert GREY.geometry(rgb).tolist() == [np.asarray(image).tolist()]
    expected = (torch.arange(81).view(1, 9, 9) / 255 - 0.13) / 0.31
    torch.testing.assert_close(seen(GREY, rgb), expected)
    assert str(GREY).endswith("mean=0.13,std=0.31,channels=1")
    assert Transform.parse(str(GREY)).geometry(rgb).equal(GREY.geometry(rgb))
    assert Transform.parse("crop=9,mean=0.13,std=0.31,channels=1") == GREY
    assert "channels" not in str(Transform(crop=9))
    with pytest.raises(InputError, match=r"channels=1, but mean=0.485/0.456/0.406: give one number, for grey images"):
        Transform(crop=9, channels=1)
    with pytest.raises(InputError, match="3 for RGB, 1 for grey"):
        Transform(crop=9, channels=4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (31, 47), (90, 41), (64, 64), (100, 101)])
def test_pixels_are_those_of_torchvision(size: tuple[int, int], mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for resize in (32, 37):
        theirs = v2.Compose([v2.Resize(resize, InterpolationMode(mode)), v2.CenterCrop(32), v2.PILToTensor()])
        assert torch.equal(Transform(32, resize=resize, interpolation=mode).geometry(image), theirs(image))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_numbers_do_not_depend_on_the_order_in_memory(channels: int) -> None:
    transform = Transform(16, mean=(0.45,), std=(0.22,)) if channels == 1 else Transform(16)
    images = torch.randint(0, 256, (5, channels, 16, 16), dtype=torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    expected = (images.to(torch.float32) / 255 - mean) / std
    for given in (images, last):
        found = transform.normalise(given)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last) or given is images
