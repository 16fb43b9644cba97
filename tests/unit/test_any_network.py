"""Networks as people hold them: wrapped, with several outputs, in half precision, grey-scale, without a head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from conftest import TINY_TRANSFORM, TinyNet, tiny_net
from nescio import Classifier, InputError, Transform, load_classifier
from nescio.core.features import NO_HEAD
from nescio.models.coerce import as_classifier
from nescio.models.zoo.zeroshot import Tower

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SIZE = (3, 8, 8)


class Returning(TinyNet):
    """Logits and features, in whatever form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        self.form = form
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        h = self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1)
        return self.form(self.fc(h), h)


def logits_of(net: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


FORMS = {
    "logits first": (lambda z, h: (z, h), None),
    "logits behind an aside": (lambda z, h: [h.mean(), z], None),
    "a position": (lambda z, h: (h, z), 1),
    "a position as the command line says it": (lambda z, h: (h, z), "1"),
    "a dict of one": (lambda z, _: {"y": z}, None),
    "a key": (lambda z, h: {"features": h, "logits": z}, "logits"),
    "an attribute": (lambda z, h: SimpleNamespace(scores=z, h=h), "scores"),
}


@pytest.mark.parametrize(("form", "output"), FORMS.values(), ids=FORMS)
def test_the_logits_may_be_one_of_several_outputs(form: Any, output: Any) -> None:
    c = Classifier(Returning(form), size=SIZE, output=output)
    with torch.no_grad():
        f = c(X)
        torch.testing.assert_close(f.logits, logits_of(tiny_net()))
        torch.testing.assert_close(c.optimised()(X).h, f.h, rtol=1e-4, atol=1e-6)
        split = c.split
        torch.testing.assert_close(split.neck(split.pool(split.backbone(X))), f.h)


def test_outputs_that_are_not_there_or_not_told_apart_are_named() -> None:
    several = Returning(lambda z, h: {"features": h, "logits": z})
    with pytest.raises(InputError, match=r"returns features, logits; choose the logits: output="):
        Classifier(several, size=SIZE)
    with pytest.raises(InputError, match=r"has no output 'logit'; did you mean 'logits'"):
        Classifier(several, size=SIZE, output="logit")
    with pytest.raises(InputError, match=r"has no output '2'; known: 0, 1"):
        Classifier(Returning(lambda z, h: (z, h)), size=SIZE, output=2)
    with pytest.raises(InputError, match=r"does not end the model.*name the output that has the logits"):
        Classifier(Returning(lambda z, h: (h, z)), size=SIZE)
    with pytest.raises(InputError, match="returns float; expected logits"):
        Classifier(Returning(lambda *_: 1.0), size=SIZE)
    with pytest.raises(InputError, match="returns one tensor: drop output"):
        Classifier(tiny_net(), size=SIZE, output=1)


def test_what_is_around_a_network_is_taken_off() -> None:
    net = tiny_net()
    compiled = torch.compile(nn.DataParallel(net), backend="eager")
    expected = Classifier(net, TINY_TRANSFORM).fingerprint
    for wrapped in (nn.DataParallel(net), compiled):
        assert Classifier(wrapped, TINY_TRANSFORM).fingerprint == expected
    net.compile(backend="eager")
    with torch.no_grad():
        assert Classifier(net, TINY_TRANSFORM)(X).h.shape == (3, 6)


def test_networks_whose_layers_are_sealed_are_refused() -> None:
    exported = torch.export.export(tiny_net(), (X,))
    for sealed in (torch.jit.script(tiny_net()), torch.jit.trace(tiny_net(), X), exported, exported.module()):
        with pytest.raises(InputError, match=r"scripted, traced or exported.* give the nn\.Module that it was made of"):
            as_classifier(sealed, size=SIZE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_computes_in_its_own_type_and_its_head_in_float32_or_more(dtype: torch.dtype) -> None:
    c = Classifier(tiny_net().to(dtype), TINY_TRANSFORM)
    with torch.no_grad():
        f = c(X)
        torch.testing.assert_close(f.logits.float(), logits_of(tiny_net()), rtol=0.05, atol=0.05)
        torch.testing.assert_close(c.optimised()(X).h, f.h, rtol=0.05, atol=0.05)
    assert c.noise().dtype == dtype
    assert f.h.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_grey_scale_network_gets_grey_noise() -> None:
    net = timm.create_model("test_resnet", in_chans=1, num_classes=5).eval()
    for c in (Classifier(net, size=(1, 32, 32)), Classifier(net, TINY_TRANSFORM)):
        assert c.noise().shape[1] == len(c.std) == 1
        x = torch.randn(2, *c.size)
        with torch.no_grad():
            torch.testing.assert_close(c(x).logits, net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"with channels=1, but its transform gives channels=3; .*,channels=1\)"):
        _ = c.transform
    assert Classifier(net, Transform(crop=8, mean=(0.5,), std=(0.2,), channels=1)).transform.channels == 1


def test_normalised_batches_need_no_transform_but_a_size() -> None:
    c = as_classifier(tiny_net(), size=X.shape[1:], classes=["a", "b", "c", "d"])
    assert (c.size, c.classes, c.std.tolist()) == (SIZE, ["a", "b", "c", "d"], [1, 1, 1])
    assert repr(c) == "Classifier(TinyNet, 4 classes, on cpu)"
    with pytest.raises(InputError, match=r"made for normalised batches; .*nescio\.Transform"):
        _ = c.transform
    with pytest.raises(InputError, match=r"the size of its images is unknown\. Give size=\(3, 224, 224\)"):
        as_classifier(tiny_net())
    with pytest.raises(InputError, match=r"must be the \(channels, height, width\)"):
        as_classifier(tiny_net(), size=(8, 8))


def test_a_classifier_is_made_of_a_network_a_name_or_itself() -> None:
    c = as_classifier(tiny_net(), "crop=8,mean=half")
    assert as_classifier(c) is c
    assert c.transform.crop == 8
    network = timm.create_model("test_resnet", num_classes=4)
    assert as_classifier(network).transform.crop == 160  # timm's own
    with pytest.raises(InputError, match="has 4 classes, not 3"):
        as_classifier(network, classes=["a", "b", "c"])
    with pytest.raises(InputError, match="did you mean 'resnet18-cifar'"):
        as_classifier("resnet18-cifr")
    with pytest.raises(InputError, match="TinyNet is a classifier already: give head, classes when you create it"):
        as_classifier(c, head="fc", classes=4)
    with pytest.raises(InputError, match="expected a classifier, a network or a name, got int"):
        as_classifier(3)


class Headless(TinyNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1)


def assert_encoder(c: Classifier, x: torch.Tensor, h: torch.Tensor) -> None:
    with torch.no_grad():
        f = c(x)
        torch.testing.assert_close(f.h, h, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(c.optimised()(x).h, h, rtol=1e-3, atol=1e-4)
    assert c.head is NO_HEAD
    assert c.classes is None
    assert "an encoder" in repr(c)
    assert not f.has_logits


def test_a_network_without_a_head_or_whose_head_is_not_wanted_is_an_encoder() -> None:
    net = tiny_net()
    with torch.no_grad():
        h = Classifier(net, TINY_TRANSFORM)(X).h
    headless = Headless()
    headless.load_state_dict(net.state_dict())
    for encoder in (net, headless):
        assert_encoder(Classifier(encoder.eval(), TINY_TRANSFORM, head="none"), X, h)
    del headless.fc
    with pytest.raises(InputError, match=r"no linear head.*give head='none'"):
        Classifier(headless, TINY_TRANSFORM)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_timm_says_which_networks_have_no_head(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0).eval()
    c = load_classifier(f"timm:{name}:num_classes=0", weights=net.state_dict(), device="cpu")
    x = torch.randn(2, *c.size)
    with torch.no_grad():
        assert_encoder(c, x, net(x).flatten(1))


def test_the_head_in_a_file_of_weights_may_be_left_out() -> None:
    net = timm.create_model("test_resnet", num_classes=7).eval()
    c = load_classifier("timm:test_resnet", weights=net.state_dict(), head="none", device="cpu")
    x = torch.randn(2, *c.size)
    with torch.no_grad():
        assert_encoder(c, x, Classifier(net, c.transform)(x).h)


def test_transformers_backbones_are_encoders_and_their_pooled_output_the_features(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra nescio[hf]")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    c = load_classifier(f"hf:{tmp_path}", transform="crop=28", device="cpu")
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert_encoder(c, x, model(x).pooler_output)


def test_clips_image_tower_alone_needs_no_class_names(tmp_path: Any) -> None:
    open_clip = pytest.importorskip("open_clip", reason="needs the extra nescio[clip]")
    torch.manual_seed(0)
    model = open_clip.create_model("RN50").eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    c = load_classifier("clip:RN50:pretrained=openai", weights=tmp_path / "w.pt", head="none", device="cpu")
    assert isinstance(c.body, Tower)
    with torch.no_grad():
        torch.testing.assert_close(c.penultimate(c.noise()).norm(dim=1), torch.ones(2))
