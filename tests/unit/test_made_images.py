"""Noise, draws, and ID images changed into stand-ins for OOD ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from conftest import TINY_TRANSFORM
from nescio.core.errors import InputError
from nescio.data import Transform, open_source
from nescio.data.corruptions import CORRUPTIONS, Corrupted
from nescio.data.decode import decode
from nescio.data.formats.synthetic import Gaussian, NoiseSource


def test_noise_is_normal_for_the_network_and_the_same_every_time() -> None:
    t = Transform(crop=64, mean=(0.5, 0.5, 0.5), std=(0.15, 0.15, 0.15))
    source = NoiseSource(Gaussian(images=4, size=64, mean="0.5", std="0.15"))
    x = t.normalise(torch.stack([t.geometry(decode(source.read(i))) for i in range(4)])).numpy()
    assert kstest(x.ravel()[::7], "norm").statistic < 0.02  # 8 bits are steps of 0.026
    assert abs(np.corrcoef(x[0].ravel(), x[1].ravel())[0, 1]) < 0.03
    assert np.array_equal(np.asarray(source.read(2)), np.asarray(source.read(2)))
    other = NoiseSource(Gaussian(images=4, size=64, mean="0.5", std="0.15", seed=1))
    assert other.identity != source.identity
    assert not np.array_equal(np.asarray(other.read(2)), np.asarray(source.read(2)))


def test_noise_by_its_name() -> None:
    source = open_source("noise:uniform:images=5,size=9")
    assert len(source) == 5
    assert source.labels.tolist() == [-1] * 5
    assert source.read(0).size == (9, 9)
    assert len(open_source("noise:gaussian[:3]")) == 3
    for text, said in (
        ("noise:gausian", "did you mean 'gaussian'"),
        ("noise:uniform:mean=1", "has no option 'mean'"),
        ("noise:gaussian:std=0", "above 0"),
        ("noise:gaussian:mean=1/2", "or three"),
        ("noise:uniform:images=0", "1 or more"),
    ):
        with pytest.raises(InputError, match=said):
            open_source(text)


def test_a_draw_is_always_the_same_images_in_their_order(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("many", per_class=20)
    drawn = open_source(f"{folder}[~15]")
    names = [drawn.name(i) for i in range(len(drawn))]
    assert names == [open_source(f"{folder}[~15]").name(i) for i in range(15)]
    assert names == sorted(set(names))
    assert sorted(drawn.labels) != [0] * 15
    assert len(open_source(f"{folder}[~100]")) == 40
    with pytest.raises(InputError, match="one or more"):
        open_source(f"{folder}[~0]")


@pytest.mark.parametrize("change", CORRUPTIONS)
def test_a_change_follows_from_the_image_alone_and_keeps_what_it_says(
    make_folder: Callable[..., Path], change: str
) -> None:
    base = open_source(make_folder("plain", per_class=3))
    source = Corrupted(base, change, TINY_TRANSFORM)
    plain, changed = (np.asarray(decode(s.read(1))) for s in (base, source))
    assert changed.shape == (8, 8, 3)
    again = Corrupted(base, change, TINY_TRANSFORM)
    assert np.array_equal(changed, np.asarray(again.read(1)))
    assert (source.identity == again.identity, source.identity == base.identity) == (True, False)
    shown = TINY_TRANSFORM.geometry(decode(base.read(1))).numpy()
    if change in ("tiles", "pixels"):  # another order of the same pixels
        assert sorted(map(tuple, changed.reshape(-1, 3))) == sorted(map(tuple, shown.reshape(3, -1).T))
        assert not np.array_equal(changed.transpose(2, 0, 1), shown)
    if change == "blur":
        assert changed.std() < shown.std() / 2
        assert changed.mean() == pytest.approx(shown.mean(), rel=0.1)
    assert plain.shape != changed.shape  # the network's geometry comes first


def test_pixels_of_one_place_stay_one_colour() -> None:
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    mixed = CORRUPTIONS["pixels"](image, torch.Generator().manual_seed(0))
    red = mixed[0, 0].flatten().tolist()
    assert sorted(red) == list(range(16))
    assert mixed[0, 1].flatten().tolist() == [v + 16 for v in red]
