from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from conftest import TINY_TRANSFORM, TinyNet, tiny_net
from nescio.core.errors import InputError
from nescio.data import Transform
from nescio.models import Classifier, load_classifier
from nescio.models.zoo.cifar import CIFAR_MODELS, CIFAR_TRANSFORM

SMALL = Transform(crop=64)
LIBRARY = {
    "timm:resnet18": (512, 512),
    "timm:regnety_002": (368, 368),
    "timm:mobilenetv3_small_050": (1024, 288),
    "timm:tf_efficientnet_lite0": (1280, 1280),
    "torchvision:densenet121": (1024, 1024),
    "torchvision:mobilenet_v2": (1280, 1280),
    "torchvision:mobilenet_v3_small": (1024, 576),
    "torchvision:regnet_y_400mf": (440, 440),
    "torchvision:shufflenet_v2_x0_5": (1024, 1024),
}


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    if library == "timm":
        return timm.create_model(model, pretrained=False, **options)
    return torchvision.models.get_model(model, weights=None, **options)


@pytest.mark.parametrize("name", LIBRARY)
def test_library_networks_split_into_head_neck_and_map(name: str) -> None:
    model = build(name).eval()
    c = Classifier(model, SMALL)
    x = torch.randn(2, 3, 64, 64)
    width, channels = LIBRARY[name]
    with torch.no_grad():
        f, logits = c(x), model(x)
        fmap = c.split.backbone(x)
        assert f.h.shape == (2, width)
        assert fmap.shape[:2] == (2, channels)
        assert fmap.shape[2] > 1
        torch.testing.assert_close(f.logits, logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(c.split.neck(c.split.pool(fmap)), f.h, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(c.optimised()(x).h, f.h, rtol=1e-3, atol=1e-4)


def test_vision_transformers_have_features_but_no_pooled_map() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, pretrained=False).eval()
    c = Classifier(model, SMALL)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(c(x).logits, model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no global pooling"):
        _ = c.split


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_cifar_networks_keep_the_resolution_of_their_stem(name: str) -> None:
    c = Classifier(CIFAR_MODELS[name](7).eval(), CIFAR_TRANSFORM)
    with torch.no_grad():
        fmap = c.split.backbone(torch.randn(1, 3, 32, 32))
    assert c.head.n_classes == 7
    assert fmap.shape[2] == (8 if name.startswith("densenet") else 4)


def test_densenet_bc_has_the_papers_size() -> None:
    parameters = sum(p.numel() for p in CIFAR_MODELS["densenet-bc-100-12"](10).parameters())
    assert parameters == 769_162  # "0.8M" in Huang et al., table 2


def test_batch_norms_that_end_in_an_activation_are_folded_too() -> None:
    c = Classifier(build("timm:mobilenetv3_small_050"), Transform(64), name="timm's")
    for m in c.body.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
    made, x = c.optimised(), torch.randn(3, 3, 64, 64)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.body.modules()) for net in (c, made)]
    assert norms == [34, 0]
    torch.testing.assert_close(made(x).h, c(x).h, rtol=1e-4, atol=1e-5)


def test_a_run_imports_no_library_that_it_does_not_use() -> None:
    code = (
        "import sys; from nescio import load_classifier; import nescio.evaluation.bench; "
        "load_classifier('densenet-bc-100-12', untrained=True); "
        "print([m for m in ('timm', 'pandas', 'scipy', 'sklearn', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_users_model_is_left_as_it_was() -> None:
    model = tiny_net().train()
    before, layer = copy.deepcopy(model.state_dict()), model.fc
    c = Classifier(model, TINY_TRANSFORM)
    c.optimised()(torch.randn(2, 3, 8, 8))
    assert model.training
    assert model.fc is layer
    assert all(not m._forward_hooks for m in model.modules())
    assert not nn.modules.module._global_forward_hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert c.body.conv.weight is model.conv.weight  # shared, not copied


class WithLogits(nn.Module):
    """As Hugging Face models answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()

    def forward(self, pixel_values: torch.Tensor):
        return type("Output", (), {"logits": self.net(pixel_values)})()


class ConvHead(TinyNet):
    """Ends in a 1 × 1 convolution on the pooled map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(torch.relu(self.norm(self.conv(x))))).flatten(1)


class MapHead(ConvHead):
    """A 1 × 1 convolution at every position, then the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.fc(torch.relu(self.norm(self.conv(x))))).flatten(1)


@pytest.mark.parametrize("make", [WithLogits, ConvHead, MapHead, lambda: tiny_net(bias=False)])
def test_other_ways_to_end_in_a_linear_layer(make) -> None:
    torch.manual_seed(0)
    model = make().eval()
    c = Classifier(model, TINY_TRANSFORM)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        out = model(x)
        torch.testing.assert_close(c(x).logits, getattr(out, "logits", out), rtol=1e-4, atol=1e-5)
    assert c.head.bias.shape == (4,)


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


class Softmaxed(TinyNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


class TwoHeads(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1)
        return (self.fc(z) + self.second(z)) / 2


class Tuple(TinyNet):
    def forward(self, x: torch.Tensor):
        return (super().forward(x),)


@pytest.mark.parametrize(
    ("make", "head", "told"),
    [
        (NoHead, None, r"no linear head.*conv \(Conv2d\)"),
        (Softmaxed, None, "softmax"),
        (TwoHeads, None, "'second'"),
        (TinyNet, "fcc", "did you mean 'fc'"),
        (TinyNet, "norm", "BatchNorm2d"),
        (TinyNet, None, None),
    ],
)
def test_models_without_a_linear_head_are_refused(make, head: str | None, told: str | None) -> None:
    if told is None:
        assert Classifier(make(), TINY_TRANSFORM, head=head).head_name == "fc"
        return
    with pytest.raises(InputError, match=told):
        Classifier(make(), TINY_TRANSFORM, head=head)


def test_images_of_the_wrong_size_are_named() -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 8, 8\)"):
        Classifier(timm.create_model("vit_tiny_patch16_224", pretrained=False), TINY_TRANSFORM)


def test_fingerprint_is_of_weights_and_structure() -> None:
    a, b = Classifier(tiny_net(), TINY_TRANSFORM), Classifier(tiny_net(), TINY_TRANSFORM)
    assert a.fingerprint == b.fingerprint
    changed = tiny_net()
    changed.norm.running_var[0] += 1
    strided = tiny_net()
    strided.conv.stride = (2, 2)
    prints = {Classifier(m, TINY_TRANSFORM).fingerprint for m in (tiny_net(), changed, strided)}
    assert len(prints) == 3


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "users_model.py").write_text(
        "from conftest import tiny_net\ndef make(): return tiny_net()\nwrong = 3\n"
    )
    return tmp_path


WRAPPED = {
    "plain.pt": lambda s: s,
    "lightning.ckpt": lambda s: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in s.items()}},
    "ddp.pth": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}},
    "compiled.pt": lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("kind", [*WRAPPED, "plain.safetensors"])
def test_weights_load_through_common_wrappers(in_tmp: Path, kind: str) -> None:
    torch.manual_seed(5)
    trained = TinyNet().eval()
    if kind.endswith("safetensors"):
        save_file(trained.state_dict(), in_tmp / kind)
    else:
        torch.save(WRAPPED[kind](trained.state_dict()), in_tmp / kind)
    c = load_classifier("users_model:make", weights=in_tmp / kind, transform="crop=8", device="cpu")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(c(x).logits, trained(x), rtol=1e-5, atol=1e-6)


class NamedModel(nn.Module):
    """Whose own keys all begin with what wrappers put before theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_a_prefix_that_belongs_to_the_model_stays(in_tmp: Path) -> None:
    (in_tmp / "named.py").write_text("from test_models import NamedModel as make\n")
    torch.save({f"module.{k}": v for k, v in NamedModel().state_dict().items()}, in_tmp / "w.pt")
    assert load_classifier("named:make", weights=in_tmp / "w.pt", transform="crop=8").head_name == "model.fc"


def test_the_class_count_follows_the_weights_unless_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(CIFAR_MODELS["resnet18-cifar"](17).state_dict(), path)
    assert load_classifier("resnet18-cifar", weights=path).head.n_classes == 17
    with pytest.raises(InputError, match=r"has 17 classes.*not 10"):
        load_classifier("resnet18-cifar", weights=path, classes=10)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_weights_that_cannot_be_used_are_refused(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tiny_net().state_dict()
    torch.save({"state_dict": Evil()}, in_tmp / "evil.pt")
    torch.save({"epoch": 3}, in_tmp / "empty.pt")
    torch.save({**good, "extra": torch.ones(1)}, in_tmp / "extra.pt")
    torch.save({k: v for k, v in good.items() if k != "conv.bias"}, in_tmp / "missing.pt")
    torch.save({**good, "conv.weight": torch.ones(6, 3, 5, 5)}, in_tmp / "shape.pt")
    (in_tmp / "text.pt").write_text("hello")
    (in_tmp / "text.safetensors").write_text("hello")
    for name, told in {
        "gone.pt": "no such weights file",
        "evil.pt": "could run code",
        "empty.pt": "no state dict",
        "extra.pt": "not in the model: extra",
        "missing.pt": r"missing: conv\.bias",
        "shape.pt": r"other shape: conv\.weight",
        "text.pt": "text.pt is text; give weights",
        "text.safetensors": "not a readable safetensors",
    }.items():
        with pytest.raises(InputError, match=told):
            load_classifier("users_model:make", weights=in_tmp / name, transform="crop=8")
    assert "code ran" not in capsys.readouterr().out


def test_names_that_cannot_be_used_are_refused(in_tmp: Path) -> None:
    for name, told in {
        "resnet18-cifr": "did you mean 'resnet18-cifar'",
        "timm:resnet18x": "timm has no model",
        "torchvision:resnet19": "torchvision has no classifier",
        "users_model:gone": "cannot be imported",
        "no_module:make": "cannot be imported",
        "resnet18-cifar": "no pretrained weights",
    }.items():
        with pytest.raises(InputError, match=told):
            load_classifier(name, transform="crop=8")
    with pytest.raises(InputError, match="has no test transform"):
        load_classifier("users_model:make")


def test_transforms_come_from_the_library_and_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(build("torchvision:mobilenet_v3_small").state_dict(), path)
    c = load_classifier("torchvision:mobilenet_v3_small", weights=path)
    assert str(c.transform) == (
        "resize=256,crop=224,interpolation=bilinear,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
    )
    torch.save(build("timm:tf_efficientnet_lite0").state_dict(), path)
    c = load_classifier("tf_efficientnet_lite0", weights=path, transform="interpolation=nearest")
    assert str(c.transform) == "resize=256,crop=224,interpolation=nearest,mean=0.5/0.5/0.5,std=0.5/0.5/0.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean=0.485,0.456,0.406", "mean=0.485/0.456/0.406,std=0.3/0.3/0.3"),
        ("mean=0.485/0.456/0.406,std=0.229,0.224,0.225", "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"),
        ("std=0.5,0.4,0.3,mean=0.1", "mean=0.1/0.1/0.1,std=0.5/0.4/0.3"),
        (" mean = 0.1, 0.2, 0.3 , std = 0.4", "mean=0.1/0.2/0.3,std=0.4/0.4/0.4"),
        ("mean=imagenet", "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"),
        ("mean=cifar10", "mean=0.4914/0.4822/0.4465,std=0.2023/0.1994/0.201"),
        ("mean=half", "mean=0.5/0.5/0.5,std=0.5/0.5/0.5"),
        ("mean=half,std=0.25", "mean=0.5/0.5/0.5,std=0.25/0.25/0.25"),
        ("std=imagenet,mean=clip", "mean=0.48145466/0.4578275/0.40821073,std=0.229/0.224/0.225"),
        ("std=half", "mean=0.2/0.2/0.2,std=0.5/0.5/0.5"),
    ],
)
def test_a_normalisation_may_be_written_as_people_do(text: str, expected: str) -> None:
    default = Transform(crop=8, mean=(0.2,) * 3, std=(0.3,) * 3)
    found = Transform.parse(text, default)
    assert str(found) == f"resize=8,crop=8,interpolation=bilinear,{expected}"
    assert str(Transform.parse(str(found))) == str(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crop=8,mean=0.4,0.5", r"mean=0\.4,0\.5 cannot be read; .*three \(mean=0\.485,0\.456,0\.406\).*imagenet"),
        ("crop=8,std=imagnet", "one of the names imagenet, cifar10, cifar100, clip, half"),
        ("crop=8,0.5", "unknown transform option '0.5'"),
        ("crop=big", "crop=big is not a number of pixels"),
        ("crop=8,crop=9", "has crop twice"),
        ("crop=8,mean=1,2,3,4", "cannot be read"),
        ("crop=8,mean=nan", "must be finite"),
    ],
)
def test_a_transform_that_cannot_be_read_says_how_it_is_written(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Transform.parse(text)


def test_hugging_face_models_from_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra nescio[hf]")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(tmp_path)
    c = load_classifier(f"hf:{tmp_path}", device="cpu")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(c(x).logits, model(x).logits, rtol=1e-4, atol=1e-5)
    assert c.head.weight.shape == (6, 24)
    assert (c.transform.crop, c.transform.interpolation) == (32, "bicubic")
    assert c.classes == [f"LABEL_{i}" for i in range(6)]


def test_the_librarys_own_weights_bring_the_classes_names() -> None:
    classes = load_classifier("efficientnet-lite0").classes
    assert classes is not None
    assert (len(classes), classes[0], classes[207]) == (1000, "tench", "golden retriever")
    network = timm.create_model("test_resnet", num_classes=1000)
    assert load_classifier("timm:test_resnet", weights=network.state_dict()).classes is None  # of whatever they are


def test_a_network_with_buffers_of_five_dimensions_runs_all_the_same() -> None:
    network = tiny_net()
    network.register_buffer("mask", torch.zeros(1, 1, 1, 1, 1))  # as Swin transformers have
    found = Classifier(network, TINY_TRANSFORM)
    x = found.noise()
    with torch.no_grad():
        assert torch.allclose(found.optimised()(x).h, found(x).h, atol=1e-5)
