"""Maps of positions, and their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nescio
from conftest import picture
from nescio.core.errors import InputError
from nescio.data import Transform, open_source
from nescio.explanation.maps import explain, patch_maps
from nescio.methods.trained.ssod import SSODHead
from nescio.models import Classifier
from tiny_networks import GroupNet

T = Transform(crop=16)


def made(*, ood: bool, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    network = GroupNet()
    network.fc.weight.data *= 10
    heads = {"ood": SSODHead(16)} if ood else None
    return Classifier(network, T, name="tiny", classes=["cat", "dog", "emu"], heads=heads)


@torch.no_grad()
def test_maps_position_by_position() -> None:
    classifier = made(ood=True)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    maps = patch_maps(classifier, images, torch.tensor([2, 0]))
    body, head, ood = classifier.body, classifier.head, classifier.heads["ood"]
    fmap = body.features(T.normalise(images))
    for i, label in enumerate((2, 0)):
        for r, s in np.ndindex(4, 4):
            p = head.linear(fmap[i, :, r, s][None]).softmax(1)[0]
            assert maps.confidence[i, r, s].item() == pytest.approx(p[label].item(), rel=1e-4)
            z = ood.weight.flatten() @ fmap[i, :, r, s] + ood.bias[0]
            assert maps.ood[i, r, s].item() == pytest.approx(z.sigmoid().item(), rel=1e-4)
    f = classifier.probed(nescio.Detector("ssod").needs.probes)(T.normalise(images))
    torch.testing.assert_close(maps.p_id.double(), nescio.Detector("ssod")(f))
    torch.testing.assert_close(maps.probability, f.logits.softmax(1))
    kinds = maps.sampled(0.8)
    assert torch.equal(kinds == 1, maps.confidence >= 0.8)
    assert torch.equal(kinds == -1, maps.confidence < 1 - 0.8)
    assert patch_maps(classifier, images).labels.tolist() == f.pred.tolist()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        picture(i, (40, 30)).save(tmp_path / f"photos/{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_and_its_arrays(suffix: str, photos: Path, tmp_path: Path) -> None:
    models = {"ce": made(ood=False), "ssod": made(ood=True, seed=1)}
    out = tmp_path / f"new/maps{suffix}"
    arrays = np.load(explain(models, open_source(photos), out, gamma=0.9, label="dog"))
    assert arrays["ce/confidence"].shape == (3, 4, 4)
    assert arrays["ssod/ood"].shape == (3, 4, 4)
    assert arrays["ssod/label"].tolist() == [1, 1, 1]
    assert "ce/ood" not in arrays
    assert np.isin(arrays["ce/sampled"], (-1, 0, 1)).all()
    if suffix == ".png":
        with Image.open(out) as image:
            assert image.width > image.height > 300
    else:
        assert "<svg" in out.read_text()
    assert not list(out.parent.glob(".*partial"))


def test_which_class_is_shown(tmp_path: Path, make_folder) -> None:
    """The true one only where the images name classes as the model does."""
    same, other = make_folder("same", 1, ("cat", "dog", "emu")), make_folder("$other_$", 1, ("boat", "car"))
    (other / "boat/0.png").rename(other / "boat/$x_$.png")
    model, nameless = made(ood=True), made(ood=False)
    nameless.classes = None
    sources = [open_source(same), open_source(other)]
    arrays = np.load(explain({"m": model, "n": nameless}, sources, tmp_path / "maps.svg"))
    assert arrays["m/label"][:3].tolist() == [0, 1, 2]
    assert arrays["m/label"][3:].tolist() == arrays["m/probability"][3:].argmax(1).tolist()
    assert arrays["n/label"].tolist()[:3] == [0, 1, 2], "as many classes, in order"
    assert arrays["n/label"][3:].tolist() == arrays["n/probability"][3:].argmax(1).tolist()
    text = (tmp_path / "maps.svg").read_text()
    assert "$x_$.png" in text or "<!-- $x_$.png -->" in text, "a name with dollars is no formula"


def test_what_cannot_be_drawn(photos: Path, tmp_path: Path) -> None:
    models, source = {"m": made(ood=False)}, open_source(photos)
    for message, options in (
        ("must end in .png or .svg", {"out": tmp_path / "maps.pdf"}),
        ("unknown class 'cow'; known: cat, dog, emu", {"out": tmp_path / "m.png", "label": "cow"}),
        (r"gamma=0.4 must be in", {"out": tmp_path / "m.png", "gamma": 0.4}),
    ):
        with pytest.raises(InputError, match=message):
            explain(models, source, **options)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        explain(models, source, tmp_path / "file/maps.png")
    with pytest.raises(InputError, match="25 images do not fit in one picture"):
        explain(models, nescio.data.source.Rows(source, [0] * 25), tmp_path / "m.png")
    (photos / "bad.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"bad.png cannot be read: zero bytes"):
        explain(models, open_source(photos), tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()
