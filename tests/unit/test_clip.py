"""Zero-shot classifiers against open_clip's own pipeline, on a small random network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from scipy.special import softmax

import nescio
from conftest import picture
from nescio.cli import main
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.core.plugins import load_methods
from nescio.core.stage import REGISTRY
from nescio.deploy import load
from nescio.methods.trained.neglabel import chosen
from nescio.models import Classifier, load_classifier
from nescio.models.load import new_network
from nescio.models.zoo.clip import captions
from nescio.run.passes import servable
from nescio.run.session import Session

open_clip = pytest.importorskip("open_clip", reason="needs the extra nescio[clip]")

NAMES = ["tench", "golden_retriever", "traffic light"]
WORDS = [f"{a}{b}" for a in ("st", "gr", "m", "br", "cl", "w", "t", "fl") for b in ("one", "ass", "oss", "ick", "oud")]
SAID = ["tench", "golden retriever", "traffic light"]
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """open_clip's network ``tiny-clip``, and its weights in a file."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    for name, changes in {"tiny-clip": {}, "wide-clip": {"embed_dim": 24}, "square-clip": {}}.items():
        (folder / f"{name}.json").write_text(json.dumps(config | changes))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval()
    save_file(model.state_dict(), folder / "w.safetensors")
    return model, folder / "w.safetensors"


@pytest.fixture
def weights(original: tuple[torch.nn.Module, Path]) -> Path:
    return original[1]


@pytest.fixture
def released(weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if two sets of weights of tiny-clip were released. What is downloaded is listed."""
    asked = []

    def download(entry: dict, **_: object) -> str:
        asked.append(entry["url"])
        return str(weights)

    released = {
        "openai": {"url": "first", "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"},
        "laion": {"url": "second"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", released)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    return asked


def zero_shot(weights: Path, model: str = "clip:tiny-clip", names: list[str] = NAMES) -> Classifier:
    return load_classifier(model, weights=weights, classes=names, device="cpu")


def test_logits_are_those_of_open_clip(original: tuple[torch.nn.Module, Path]) -> None:
    model, weights = original
    texts = open_clip.get_tokenizer("tiny-clip")([f"a photo of a {name}." for name in SAID])
    classifier = zero_shot(weights)
    with torch.no_grad():
        expected, _ = model.get_logits(X, texts)
        f = classifier(X)
        torch.testing.assert_close(f.logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(f.h, model.encode_image(X, normalize=True), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(classifier.optimised()(X).h, f.h, rtol=1e-4, atol=1e-5)
    assert f.pred.tolist() == expected.argmax(1).tolist()
    assert classifier.classes == NAMES
    assert not classifier.head.bias.any()
    assert not any(key.startswith("body.text") for key in classifier.state_dict())  # no longer needed


@pytest.mark.parametrize("prompts", ["imagenet80", "imagenet7", "a photo of a {}, a kind of thing.|an {} or {}"])
def test_an_ensemble_of_prompts_is_averaged_as_by_open_clip(prompts: str, original) -> None:
    model, weights = original
    templates = {
        "imagenet80": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "imagenet7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }.get(prompts, [lambda c: f"a photo of a {c}, a kind of thing.", lambda c: f"an {c} or {c}"])
    tokenize = open_clip.get_tokenizer("tiny-clip")
    rows = open_clip.build_zero_shot_classifier(model, tokenize, SAID, templates).T
    name = f"clip:tiny-clip:prompt={prompts}"
    found = zero_shot(weights, name)
    expected = rows * model.logit_scale.detach().exp()
    torch.testing.assert_close(found.head.weight, expected, rtol=1e-4, atol=1e-5)
    assert found.name == name
    assert found.fingerprint != zero_shot(weights).fingerprint


def test_the_network_is_known_by_its_weights_and_captions(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    save_file(state | {"visual.class_embedding": state["visual.class_embedding"] + 1}, tmp_path / "other.safetensors")
    same = [zero_shot(weights).fingerprint, zero_shot(weights, names=SAID).fingerprint]  # said alike
    others = [
        zero_shot(weights, names=["a", "b", "c"]).fingerprint,
        zero_shot(tmp_path / "other.safetensors").fingerprint,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 3


def test_wordnet_numbers_are_said_as_clips_authors_name_them() -> None:
    model = "clip:ViT-B-16"
    found = captions(model, ["n02123045", "n01440764"])
    assert found.shape == (2, 1, 77)
    assert torch.equal(found, captions(model, ["tabby cat", "tench"]))
    assert not torch.equal(captions(model, ["n02123045", "x"]), captions(model, ["tabby cat", "x"]))  # not all of them


@pytest.mark.parametrize("size", [(70, 50), (33, 90), (32, 32), (20, 24)])
def test_the_transform_gives_open_clips_pixels(size: tuple[int, int], original) -> None:
    model, weights = original
    config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)
    own = zero_shot(weights).transform
    assert (own.crop, own.resize, own.interpolation) == (32, 32, "bicubic")
    image = picture(3, size)
    torch.testing.assert_close(own.normalise(own.geometry(image)[None])[0], theirs(image), rtol=0, atol=1e-6)


def test_the_name_says_which_released_weights_were_taken(
    released: list[str], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_classifier("clip:tiny-clip", classes=NAMES, device="cpu")
    assert first.name == "clip:tiny-clip:pretrained=openai"  # the first, as for torchvision
    tag = load_classifier("clip:tiny-clip:prompt=a {}", weights="laion", classes=NAMES, device="cpu")
    assert tag.name == "clip:tiny-clip:pretrained=laion,prompt=a {}"
    assert released == ["first", "second"]
    # what follows from the tag beside the weights: activation, normalisation
    assert "QuickGELU" in repr(first.body)
    assert "QuickGELU" not in repr(tag.body)
    assert (first.transform.mean, first.transform.interpolation) == ((0.5, 0.5, 0.5), "bilinear")
    with caplog.at_level("WARNING", logger="nescio"):
        assert "QuickGELU" not in repr(zero_shot(weights).body)
    assert "released weights of tiny-clip differ in their activation" in caplog.text
    again = zero_shot(weights, first.name)
    assert again.fingerprint == first.fingerprint
    assert again.transform == first.transform
    assert released == ["first", "second"]


def test_every_stage_that_needs_no_feature_map_runs(weights: Path, make_folder: Callable[..., Path]) -> None:
    train, test = make_folder("train", 8, ("a", "b", "c")), make_folder("test", 4, ("a", "b", "c"), seed=900)
    required = {name: f"'{name}(energy,knn:k=3)'".strip("'") for name in ("mean", "max", "fisher")}
    ends = {"score": "", "shape": "+energy", "modulate": "+energy", "input": "+energy"}
    load_methods()
    specs = {name: required.get(name, name + ends[stage.place]) for name, stage in REGISTRY.items()}
    classifier = zero_shot(weights, names=["a", "b", "c"])
    left_out = set(specs.values()) - set(servable(specs.values(), classifier))
    maps = {"bats+energy", "gram", "mcdropout+energy", "multimahalanobis", "rankfeat+energy"}
    assert left_out == maps | {
        "ssod",
        "godin",
        "mos",
        "vos",
        "bal",
        "csi+energy",
        "neglabel",
    }  # heads that it was not trained with
    results = nescio.bench(
        nescio.Session(classifier, workers=0, progress=False),
        id=test,
        ood={"far": make_folder("far", 6, ("x",), seed=500)},
        train=train,
        detectors=[s for s in specs.values() if s not in left_out] + ["fmls"],
    )
    assert len(results.rows) == len(specs) - len(left_out) + 1
    assert all(0 <= row.auroc <= 1 for row in results.rows)


def test_mcm_is_its_formula_on_stored_embeddings(weights: Path, make_folder: Callable[..., Path]) -> None:
    classifier = zero_shot(weights)
    bank = Session(classifier, workers=0, progress=False).bank(nescio.open_source(str(make_folder("some", 5))))
    images = np.load(bank.path / "h.npy").astype(np.float64)
    texts = load_file(bank.path / "head.safetensors")["weight"].double().numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    (f,) = bank.chunks()
    for spec, T in {"mcm": 1.0, "mcm:T=0.05": 0.05}.items():
        expected = softmax(images @ texts.T / T, axis=1).max(1)
        detector = nescio.Detector(spec).fit(FeatureSet(head=bank.head))
        np.testing.assert_allclose(detector(f).numpy(), expected, rtol=1e-6)
    msp = nescio.Detector("msp").fit(FeatureSet(head=bank.head))(f)
    at_scale = nescio.Detector(f"mcm:T={1 / float(classifier.head.weight[0].norm())!r}")
    torch.testing.assert_close(at_scale.fit(FeatureSet(head=bank.head))(f), msp, rtol=1e-4, atol=1e-6)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{first} {second}\n" for first in WORDS for second in WORDS) + "stone moss\n\n")
    return path


def test_negative_labels_are_the_words_that_open_clip_puts_farthest_from_the_classes(original, words: Path) -> None:
    """And the score is the authors': shares of one softmax over the classes and a group, averaged."""
    model, weights = original
    classifier = zero_shot(weights, f"clip:tiny-clip:negatives={words}")
    tokenize = open_clip.get_tokenizer("tiny-clip")
    names = list(dict.fromkeys(words.read_text().split("\n")))[:-1]
    assert len(names) == len(WORDS) ** 2
    with torch.no_grad():
        own, others = (
            model.encode_text(tokenize([f"a photo of a {n}." for n in said]), normalize=True) for said in (SAID, names)
        )
        near = np.quantile((others @ own.T).numpy(), 0.95, axis=1)
        far = others[np.argsort(near, kind="stable")[: int(0.15 * len(names))]]
        assert len(far) == 240
        rows = classifier.heads["neglabel"].rows
        assert rows.shape == (100, 2, 16)
        scale = model.logit_scale.exp()
        for row in rows.flatten(0, 1) / scale:  # each one of the far ones, and none twice
            assert (far - row).abs().amax(1).min() < 1e-5
        assert len(rows.flatten(0, 1).unique(dim=0)) == 200
        f = classifier(X)
        images = model.encode_image(X, normalize=True)
        logits = [scale * images @ torch.cat([own, group / scale]).T for group in rows]
        expected = np.mean([softmax(t.double().numpy(), axis=1)[:, :3].sum(axis=1) for t in logits], axis=0)
    np.testing.assert_allclose(nescio.Detector("neglabel")(f).numpy(), expected, rtol=1e-4)


def test_negative_labels_travel_in_the_file_and_the_words_do_not(
    weights: Path, words: Path, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    name = f"clip:tiny-clip:negatives={words}"
    classifier, held = zero_shot(weights, name), make_folder("held", 10)
    fitted = nescio.fit(nescio.Session(classifier, workers=0, progress=False), "neglabel", calibrate=held, accept=0.8)
    fitted.save(tmp_path / "my.nescio")
    words.unlink()
    again = load(tmp_path / "my.nescio", device="cpu")
    assert torch.equal(again.classifier.heads["neglabel"].rows, classifier.heads["neglabel"].rows)
    with pytest.raises(InputError, match=r"negative labels in .*words.txt cannot be read"):
        zero_shot(weights, name)
    with pytest.raises(InputError, match=r"the head 'neglabel'.*negatives=FILE' has one"):
        nescio.fit(
            nescio.Session(zero_shot(weights), workers=0, progress=False), "neglabel", calibrate=held, accept=0.8
        )
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(InputError, match="has no words"):
        zero_shot(weights, f"clip:tiny-clip:negatives={tmp_path / 'none.txt'}")
    with pytest.raises(InputError, match="write pretrained=TAG,negatives=FILE"):
        zero_shot(weights, "clip:tiny-clip:negative=x")
    with pytest.raises(InputError, match="each at most once, and no comma in FILE"):
        zero_shot(weights, "clip:tiny-clip:negatives=a,b.txt")
    with pytest.raises(InputError, match="must be the last option"):
        zero_shot(weights, "clip:tiny-clip:prompt=a {},negatives=words.txt")
    with pytest.raises(InputError, match="'neglabel' is for inference, not for training"):
        new_network(name, 3, classes=NAMES)


def test_few_words_are_one_group() -> None:
    found = chosen(torch.eye(9)[:, :4] + 0.1, torch.ones(2, 4))
    assert found.shape == (1, 1, 4)


def test_mcm_of_an_image_that_is_one_of_two_unrelated_concepts() -> None:
    head = Head(100 * torch.eye(2), torch.zeros(2))
    f = Features(torch.tensor([[1.0, 0], [0.5**0.5, 0.5**0.5]]), head, torch.tensor([0, 0]))
    found = nescio.Detector("mcm").fit(FeatureSet(head=head))(f)
    np.testing.assert_allclose(found.numpy(), [np.e / (np.e + 1), 0.5], rtol=1e-6)


def test_a_file_needs_neither_tokens_nor_downloads(
    released: list[str], weights: Path, make_folder: Callable[..., Path], tmp_path: Path, monkeypatch
) -> None:
    classifier = load_classifier("clip:tiny-clip", weights="openai", classes=["a", "b", "c"], device="cpu")
    held = make_folder("held", 10, ("a", "b", "c"))
    fitted = nescio.fit(nescio.Session(classifier, workers=0, progress=False), "mcm", calibrate=held, accept=0.8)
    fitted.save(tmp_path / "my.nescio")
    fitted.save(tmp_path / "hash.nescio", weights=False)
    released.clear()
    expected = fitted([picture(5)])
    with monkeypatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", None)
        found = load(tmp_path / "my.nescio", device="cpu")
        assert found.classifier.name == "clip:tiny-clip:pretrained=openai"
        assert found.classifier.classes == ["a", "b", "c"]
        assert found([picture(5)]) == expected
    again = load(tmp_path / "hash.nescio", weights=weights, device="cpu")  # the head is made of the names in the file
    assert again([picture(5)])[0].score == pytest.approx(expected[0].score)
    assert released == []
    with pytest.raises(
        InputError, match=r"no such weights file: laion; .*give the network too: .*--model clip:tiny-clip"
    ):
        load(tmp_path / "hash.nescio", weights="laion", device="cpu")
    with pytest.raises(InputError, match="another model's weights"):
        load(tmp_path / "hash.nescio", model="clip:tiny-clip", weights="laion", device="cpu")


def test_it_is_exported_as_one_graph(weights: Path, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra nescio[onnx]")
    classifier = zero_shot(weights)
    deployed = nescio.fit(
        nescio.Session(classifier, workers=0, progress=False), "mcm", calibrate=make_folder("held", 10), accept=0.8
    )
    nescio.deploy.export(deployed, tmp_path / "my.onnx")
    session = runtime.InferenceSession(str(tmp_path / "my.onnx"))
    logits = session.run(["logits"], {session.get_inputs()[0].name: X.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(logits, classifier(X).logits.numpy(), atol=1e-4)


def nescio_(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture
def here(weights: Path, make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, seed in (("train", 0), ("id", 1000), ("far", 2000)):
        make_folder(name, per_class=8, classes=("cat", "dog", "sea_lion"), seed=seed)
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "names.txt").write_text("cat\ndog\nsea lion\n\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    return tmp_path


BENCH = ["bench", "--model", "clip:tiny-clip", "--weights", "w.safetensors", "--id", "id", "--ood", "far=far"]


@pytest.mark.usefixtures("here")
def test_bench_takes_the_class_names_of_the_images_or_of_a_file(here: Path) -> None:
    more = ["--detector", "mcm", "--detector", "msp", "--workers", "0"]
    found = [nescio_(*BENCH, *more, "--out", out, *names) for out, *names in (["a"], ["b", "--classes", "names.txt"])]
    assert [r.exit_code for r in found] == [0, 0], [r.output for r in found]
    assert (here / "a/scores.safetensors").read_bytes() == (here / "b/scores.safetensors").read_bytes()
    assert len(list((here / "cache/banks").glob("*[!k]"))) == 2  # names that are said alike make one network


@pytest.mark.usefixtures("here")
def test_from_a_fit_to_verdicts_and_a_choice() -> None:
    options = ["--model", "clip:tiny-clip", "--weights", "w.safetensors", "--workers", "0", "--train", "train"]
    fitted = nescio_("fit", *options, "--calibrate", "id", "--detector", "mcm", "--accept", "0.8", "-o", "my.nescio")
    assert fitted.exit_code == 0, fitted.output
    assert "clip:tiny-clip, 3 classes" in nescio_("show", "my.nescio").output
    scored = nescio_("score", "my.nescio", "far/cat/0.png", "--workers", "0")
    assert scored.exit_code == 0, scored.output
    assert any(name in scored.output for name in ("cat", "dog", "sea_lion"))
    tuned = nescio_("tune", "mcm:T=0.5|1", *options, "--val", "id", "--proxy", "pixels")
    assert tuned.exit_code == 0, tuned.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--model": "clip:tiny-clp"}, "did you mean 'tiny-clip'"),
        ({"--model": "clip:tiny-clip:pretrained=openai"}, "no weights 'openai' of tiny-clip"),
        ({"--model": "clip:tiny-clip:size=3"}, "write pretrained=TAG"),
        ({"--model": "clip:tiny-clip:prompt=a photo"}, "no place {} for a name"),
        ({"--model": "clip:wide-clip"}, "does not fit model 'clip:wide-clip' (other shape"),
        ({"--model": "clip:RN50"}, "does not fit model 'clip:RN50' (missing"),
        ({"--model": "clip:square-clip"}, "has no test transform"),
        ({"--weights": None}, "no pretrained weights; give weights=FILE"),
        ({"--weights": "openai"}, "no such weights file: openai"),
        ({"--id": "id/cat"}, "needs the names of the classes; give classes= (--classes FILE"),
        ({"--classes": "3"}, "needs the names of the classes"),
        ({"--classes": "0"}, "--classes=0 must be 1 or more"),
        ({"--classes": "gone.txt"}, "is neither a number nor a file of class names"),
        ({"--classes": "empty.txt"}, "empty.txt is empty"),
        ({"--classes": "gap.txt"}, "line 2 of gap.txt is empty"),
        ({"--classes": "id/cat/0.png"}, "cannot be read as text"),
        (
            {"--classes": "two.txt"},
            "the id images and the model disagree about the classes: not among cat, dog: sea_lion",
        ),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(
    changes: dict[str, str | None], said: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "square-clip", {"squashed": {"resize_mode": "squash"}})
    for name, text in {"empty": "\n", "gap": "cat\n\ndog\n", "two": "cat\ndog\n"}.items():
        (here / f"{name}.txt").write_text(text)
    options = {BENCH[i]: BENCH[i + 1] for i in range(1, len(BENCH), 2)} | {"--detector": "mcm", "--workers": "0"}
    given = [part for pair in (options | changes).items() if pair[1] is not None for part in pair]
    result = nescio_("bench", *given)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) <= 2


def test_a_missing_package_or_tokenizer_or_download_is_said(
    here: Path, released: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(open_clip.factory, "download_pretrained", offline)
        result = nescio_(*[part for part in BENCH if part not in ("--weights", "w.safetensors")])
        assert result.exit_code == 2
        assert "pretrained weights of 'clip:tiny-clip:pretrained=openai' cannot be loaded" in result.output
        assert "--weights FILE" in result.output
        patch.setattr(open_clip, "get_tokenizer", offline)
        result = nescio_(*BENCH)
        assert result.exit_code == 2
        assert "the tokenizer of 'tiny-clip' cannot be loaded: no network" in result.output
    monkeypatch.setitem(sys.modules, "open_clip", None)
    result = nescio_(*BENCH)
    assert result.exit_code == 2
    assert "pip install 'nescio[clip]'" in result.output
