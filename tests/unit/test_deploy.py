"""From a fitted detector to verdicts, and through a file."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import TINY_TRANSFORM, coloured, encoded, picture, tiny_net
from nescio.core.artifact import seal
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data import open_source
from nescio.data.overlap import shared_images
from nescio.data.source import Rows
from nescio.deploy import Deployed, describe, fit, load
from nescio.deploy.file import weights_hash
from nescio.models import Classifier, load_classifier
from nescio.models.runs import state_of
from nescio.run.session import Session

OPTIONS = {"workers": 0, "progress": False}
FMLS = "fm:p=0.5+react:q=0.9+ls+energy"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("train", "held", "new")):
        coloured(root, name, per_class=30, classes=4, side=8, seed=seed)
    return root


def made(images: Path, detector: str = FMLS, network: Classifier | None = None, **options: object) -> Deployed:
    network = network or Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", classes=["red", "green", "blue", "dark"])
    return fit(Session(network, **OPTIONS), detector, train=images / "train", calibrate=images / "held", **options)


def with_head(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", heads={"ood": nn.Conv2d(6, 1, 1)})


def test_a_verdict_is_what_its_parts_say(images: Path) -> None:
    deployed = made(images)
    network, source = deployed.classifier, open_source(images / "new")
    verdicts = deployed(images / "new")
    assert len(verdicts) == len(source) == 120
    t = network.transform
    with torch.no_grad():
        x = t.normalise(torch.stack([t.geometry(Image.open(source.read(i))) for i in range(len(source))]))
        f = network(x)
        probability, pred = network.head.linear(f.h).double().softmax(1).max(1)
        score = deployed.detector(f).numpy()
    held = deployed.calibration.groups[0].scores - deployed.calibration.groups[0].tolerance
    for i, v in enumerate(verdicts):
        assert (v.index, v.label) == (int(pred[i]), network.classes[int(pred[i])])
        assert v.probability == pytest.approx(float(probability[i]), abs=1e-5)
        assert v.score == pytest.approx(score[i], abs=1e-4)
        assert v.p_value == (1 + np.count_nonzero(held <= v.score)) / 121
        assert v.accepted == (v.p_value > 0.05) == (v.score >= held[5])
        assert v.p_id is v.posterior is None
    assert 0 < sum(v.accepted for v in verdicts) <= 120


@pytest.mark.parametrize(
    "detector", [FMLS, "knn:k=5", "odin:eps=0.01+msp", "bats:lam=1+energy", "mean(energy,knn:k=5)"]
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_file_gives_the_same_verdicts(images: Path, tmp_path: Path, detector: str, *, weights: bool) -> None:
    deployed = made(images, detector)
    path = tmp_path / "my.nescio"
    deployed.save(path, weights=weights)
    save_file(tiny_net().state_dict(), tmp_path / "w.safetensors")
    again = load(path, model=tiny_net, weights=None if weights else tmp_path / "w.safetensors")
    assert again(images / "new") == deployed(images / "new")
    assert (again.about, again.calibration.promise()) == (deployed.about, deployed.calibration.promise())
    again.save(tmp_path / "again.nescio", weights=weights)
    assert (tmp_path / "again.nescio").read_bytes() == path.read_bytes()


def test_classes_are_called_as_the_images_call_them(images: Path) -> None:
    network = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny")
    deployed = fit(Session(network, **OPTIONS), "energy", calibrate=images / "held")
    assert {v.label for v in deployed(images / "new")} <= {"class0", "class1", "class2", "class3"}
    assert network.classes is None


def test_the_label_is_the_raw_prediction_whatever_the_detector_does(images: Path) -> None:
    plain = [(v.label, v.probability) for v in made(images, "msp")(images / "new")]
    for detector in ("fm:p=0.9+react:q=0.1+ls+msp", "odin:eps=2+msp", "bats:lam=0.1+msp", "dice:p=0.9+msp"):
        assert [(v.label, v.probability) for v in made(images, detector)(images / "new")] == plain


def test_every_form_of_an_image_gives_the_same_verdict(images: Path) -> None:
    deployed = made(images)
    pixels = np.asarray(picture(1))
    (expected,) = deployed(pixels)
    one = Image.fromarray(pixels)
    chw = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    rgba = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)], axis=2)
    path = images.parent / "one.png"
    one.save(path)
    for given in (
        one,
        path,
        str(path),
        encoded(one),
        chw,
        chw / 255,
        pixels / 255.0,
        (pixels / 255).astype("float32"),
        rgba,
    ):
        assert deployed(given) == [expected], type(given)
    for batch in ([one, path, chw], torch.stack([chw] * 3), np.stack([pixels] * 3), iter([pixels] * 3), (one,) * 3):
        found = deployed(batch, batch_size=2)  # whose size changes the last bits
        assert [(v.label, v.p_value, v.accepted) for v in found] == [(expected.label, expected.p_value, False)] * 3
        assert [v.score for v in found] == pytest.approx([expected.score] * 3, abs=1e-6)
    grey = pixels[:, :, 0]
    assert deployed(grey) == deployed(grey[:, :, None]) == deployed(torch.from_numpy(grey.copy())[None])
    assert deployed([]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "int is not an image"),
        (np.zeros((2, 8, 8, 8, 3), np.uint8), "expected an array"),
        (torch.zeros(8, 8), "expected a tensor"),
        (np.zeros((8, 8, 7), np.uint8), "not grey, RGB or RGBA"),
        (np.zeros((0, 8, 3), np.uint8), "not grey"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 1.5), "before normalisation"),
        (np.full((8, 8, 3), np.nan), "before normalisation"),
        (b"no image", "image 0: not an image"),
        ([np.zeros((8, 8, 3), np.uint8), b""], "image 1: zero bytes"),
        ("nowhere.png", "no such file"),
    ],
)
def test_what_is_no_image_is_named(images: Path, given: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(images, "energy")(given)


def test_features_that_are_not_finite_get_no_verdict(images: Path) -> None:
    deployed = made(images, "energy")
    judged = deployed.judged(deployed.classifier(torch.full((2, 3, 8, 8), float("nan"))))
    assert np.isnan(judged.score).all()
    assert not judged.accepted.any()
    with pytest.raises(InputError, match="not finite"):
        list(deployed.verdicts(judged))


def test_an_ood_head_gives_the_probability_of_id(images: Path, tmp_path: Path) -> None:
    for detector in ("ssod", "energy", "odin:eps=0.01+msp"):
        network = with_head()
        deployed = made(images, detector, network)
        verdicts = deployed(images / "new")
        t, source = network.transform, open_source(images / "new")
        with torch.no_grad():
            x = t.normalise(torch.stack([t.geometry(Image.open(source.read(i))) for i in range(5)]))
            maps = torch.relu(network.body.norm(network.body.conv(x)))
            expected = network.heads["ood"](maps).mean(dim=(2, 3)).sigmoid()[:, 0]
        assert [v.p_id for v in verdicts[:5]] == pytest.approx(expected.tolist(), abs=1e-5)
        assert verdicts[0].posterior == verdicts[0].probability * verdicts[0].p_id
        if detector == "ssod":
            assert all(v.p_id == v.score for v in verdicts)
        deployed.save(tmp_path / "h.nescio")
        assert load(tmp_path / "h.nescio", model=tiny_net)(images / "new") == verdicts


def test_a_calibrator_is_against_a_named_proxy(images: Path, tmp_path: Path) -> None:
    network = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny")
    deployed = made(images, "knn:k=3", network, proxy="noise:prior=0.8")
    verdicts = deployed(images / "new")
    a, b = deployed.calibrator.a, deployed.calibrator.b
    assert verdicts[0].p_id == pytest.approx(1 / (1 + np.exp(-(a * verdicts[0].score + b))))
    deployed.save(tmp_path / "c.nescio")
    assert describe(tmp_path / "c.nescio")["calibrator"] == {"a": a, "b": b, "proxy": "noise", "prior": 0.8}
    assert load(tmp_path / "c.nescio", model=tiny_net)(images / "new") == verdicts
    with pytest.raises(InputError, match="unknown proxy 'background'"):
        made(images, proxy="background")


def test_thresholds_by_predicted_class(images: Path, tmp_path: Path) -> None:
    deployed = made(images, "energy", accept=0.8, per_class=True)
    groups = deployed.calibration.groups
    assert len(groups) > 1
    assert sum(len(g.scores) for g in groups) == 120
    by_class = {c: g for g in groups for c in g.classes}
    verdicts = deployed(images / "held")
    for v in verdicts:
        assert v.accepted == (v.score >= by_class[v.index].threshold)
    for g in groups:  # on the very images that they come from
        inside = [v for v in verdicts if v.index in g.classes]
        assert sum(not v.accepted for v in inside) == g.rank - 1 == int(0.2 * (len(inside) + 1)) - 1
    deployed.save(tmp_path / "p.nescio")
    assert load(tmp_path / "p.nescio", model=tiny_net)(images / "held") == verdicts


def test_training_images_do_not_calibrate(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, classifier: Classifier
) -> None:
    with pytest.raises(InputError, match="120 of 120 calibration images are training images"):
        fit(Session(classifier, **OPTIONS), "energy", train=images / "train", calibrate=images / "train")
    some = tmp_path / "some"
    some.mkdir()
    for i, path in enumerate(sorted((images / "held").rglob("*.png"))):
        (some / f"{i:03}.png").write_bytes(path.read_bytes())
    for i, path in enumerate(sorted((images / "train").rglob("*.png"))[:7]):
        (some / f"t{i}.png").write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING, logger="nescio"):
        deployed = fit(Session(classifier, **OPTIONS), "energy", train=images / "train", calibrate=some)
    assert "leaving out 7 of 127 calibration images that are training images" in caplog.text
    assert deployed.calibration.n == 120
    with caplog.at_level(logging.WARNING, logger="nescio"):
        fit(Session(classifier, **OPTIONS), "energy", calibrate=some)
    assert "cannot be checked" in caplog.text
    classifier.seen = {"train": open_source(images / "held").identity}
    with pytest.raises(InputError, match="are the classifier's training images"):
        fit(Session(classifier, **OPTIONS), "energy", calibrate=images / "held")


def test_shared_images_are_found_by_content(images: Path, tmp_path: Path) -> None:
    train, held = open_source(images / "train"), open_source(images / "held")
    assert shared_images(held, train) == []
    assert shared_images(Rows(train, [3, 1, 4]), train) == [0, 1, 2]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(Path(held.read(0)).read_bytes())
    (other / "b.png").write_bytes(Path(train.read(5)).read_bytes())
    (other / "c.png").write_bytes(b"")
    assert shared_images(open_source(other), train) == [1]


def test_what_cannot_be_calibrated_is_refused(images: Path, classifier: Classifier) -> None:
    held = open_source(images / "held")
    with pytest.raises(InputError, match=r"10 calibration images are too few to accept 0\.95: give 19 or more"):
        fit(Session(classifier, **OPTIONS), "energy", train=images / "train", calibrate=Rows(held, range(10)))
    with pytest.raises(InputError, match=r"give train= \(--train\)"):
        fit(Session(classifier, **OPTIONS), "knn", calibrate=held)
    with pytest.raises(InputError, match="was not trained with the head"):
        fit(Session(classifier, **OPTIONS), "ssod", calibrate=held)


@pytest.fixture
def file(images: Path, tmp_path: Path) -> Path:
    made(images).save(tmp_path / "my.nescio")
    return tmp_path / "my.nescio"


def rewritten(file: Path, change: object = None, metadata: object = None) -> Path:
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["nescio"])
    tensors = load_file(file)
    if callable(change):
        change(about, tensors)
        del about["hash"]
        about["hash"] = seal(tensors, about)  # as who writes a file can
    save_file(tensors, file, metadata or {"nescio": json.dumps(about)})
    return file


def without(tensor: str) -> object:
    return lambda _, tensors: tensors.pop(tensor)


def but(entry: str, **changes: object) -> object:
    return lambda about, _: (about[entry] if entry else about).update(changes)


def without_weight(about: dict, tensors: dict) -> None:
    tensors.pop("model.conv.weight")
    about["model"]["weights"] = weights_hash({k[6:]: t for k, t in tensors.items() if k.startswith("model.")})


def group(**changes: object) -> object:
    return lambda about, _: about["calibration"]["groups"][0].update(changes)


def score_of(value: float) -> object:
    def change(about: dict, tensors: dict) -> None:
        tensors["calibration.0"][-1] = value

    return change


def tally(about: dict, tensors: dict) -> None:
    about["calibration"]["by_class"][0]["images"] += 1


def narrow(about: dict, tensors: dict) -> None:
    tensors["detector.stages.2.centres"] = tensors["detector.stages.2.centres"][:, :-1].contiguous()


def other_weights(about: dict, tensors: dict) -> None:
    tensors["model.conv.weight"] += 0.01


def other_head(about: dict, tensors: dict) -> None:
    tensors["model.fc.weight"] += 0.01
    about["model"]["weights"] = "?"


@pytest.mark.parametrize(
    ("change", "metadata", "said"),
    [
        (but("", format="nescio-deployed/4"), None, "a later version of nescio .format 4."),
        (but("", format="nescio-detector/2"), None, "has a detector without a network, which does not take model="),
        (but("", format=3), None, "its format is missing"),
        (but("", format=True), None, "its format is missing"),
        (but("", format=-1), None, "its format is missing"),
        (but("", format=None), None, "its format is missing"),
        (None, {"format": "nescio-features/2"}, "not a file that 'nescio fit' wrote"),
        (None, {"nescio": "{"}, "cannot be read"),
        (None, {"nescio": "[]"}, "its format is missing"),
        (None, {"nescio": '{"format": 1}'}, "damaged and cannot be read as a file that 'nescio fit' wrote .KeyError"),
        (without("calibration.0"), None, "damaged"),
        (without("detector.stages.1.limit"), None, "not those that detector"),
        (without("model.conv.weight"), None, "another model's weights"),
        (without_weight, None, "missing: conv.weight"),
        (but("detector", spec="nope"), None, "nope"),
        (but("model", transform="crop=x"), None, "crop=x"),
        (other_weights, None, "another model's weights"),
        (other_head, None, "another model's weights"),
        (but("model", n_classes=5), None, "number of classes"),
        (but("model", n_classes=10**9, classes=None), None, "number of classes"),
        (but("model", n_classes=5, classes=None), None, "do not match its weights"),
        (but("model", heads=["ood"]), None, "do not match its weights"),
        (but("model", embedded=False), None, "weights or not is wrong"),
        (but("calibration", accept=0.5), None, "not the one that the guarantee needs .60."),
        (but("calibration", accept=1), None, "accept=1 must be between 0 and 1"),
        (but("calibration", accept=True), None, "accept=True is not a number"),
        (but("calibration", confidence="high"), None, "confidence=high is not a number"),
        (group(rank=121), None, "the rank 121"),
        (group(rank=6.0), None, "the rank 6.0"),
        (group(rank=-1), None, "the rank -1"),
        (group(threshold=-1e9), None, "do not match its calibration scores"),
        (group(n=10_000), None, "do not match its calibration scores"),
        (group(classes=[0, 1, 2]), None, "each class once"),
        (group(classes=[0, 1, 2, 2, 3]), None, "each class once"),
        (group(classes=[0, 1, 2, 3.0]), None, "each class once"),
        (score_of(float("nan")), None, "not finite"),
        (score_of(float("inf")), None, "not finite"),
        (score_of(-1e9), None, "ascending"),
        (tally, None, "counts by class"),
        (but("", calibrator={"a": 1.0, "b": 0.0, "proxy": "noise", "prior": 2.0}), None, "a prior in"),
        (narrow, None, "damaged"),
    ],
)
def test_a_file_that_is_not_what_was_written_says_so(file: Path, change: object, metadata: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(rewritten(file, change, metadata), model=tiny_net)


def test_a_file_does_not_say_which_code_is_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("os:getcwd", "mine:make"):
        changed = rewritten(file, but("model", name=name))
        with pytest.raises(InputError, match=f"'{name}': this is code from outside nescio.*--model"):
            load(changed)
    with pytest.raises(InputError, match=r"'tiny': no library knows this name.*--model"):
        load(rewritten(file, but("model", name="tiny")))


def test_a_file_that_changed_since_it_was_written_is_refused(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["nescio"])
    tensors, kept = load_file(file), describe(file)
    save_file(tensors, file, {"nescio": json.dumps(about, indent=1, sort_keys=True)})
    assert describe(file) == kept  # its hash is over what is said, however it is spaced
    for name in tensors:
        changed = {k: t.clone() for k, t in tensors.items()}
        changed[name] = torch.where(changed[name] == changed[name].max(), changed[name] + 1, changed[name])
        save_file(changed, file, {"nescio": json.dumps(about)})
        for opening in (describe, lambda path: load(path, model=tiny_net)):
            with pytest.raises(InputError, match="do not match its hash"):
                opening(file)
    about["made_with"] = "love"
    save_file(tensors, file, {"nescio": json.dumps(about)})
    with pytest.raises(InputError, match="do not match its hash"):
        describe(file)


def test_the_promise_follows_from_the_scores(file: Path, images: Path) -> None:
    promise = describe(file)["calibration"]["promise"]
    assert promise == made(images).calibration.promise()
    assert "5 % of new ID images" in promise
    changed = describe(rewritten(file, but("calibration", promise="all is well")))
    assert changed["calibration"]["promise"] == promise


def test_other_files_are_named(tmp_path: Path, images: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "nothing.nescio")
    (tmp_path / "text.nescio").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "text.nescio")
    made(images).save(tmp_path / "hash.nescio", weights=False)
    with pytest.raises(InputError, match="has no weights"):
        load(tmp_path / "hash.nescio", model=tiny_net)
    torch.manual_seed(3)
    save_file(type(tiny_net())().state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another model's weights"):
        load(tmp_path / "hash.nescio", model=tiny_net, weights=tmp_path / "other.safetensors")


def test_features_of_another_model_are_refused(images: Path) -> None:
    torch.manual_seed(1)
    other = Classifier(type(tiny_net())(), TINY_TRANSFORM)
    with pytest.raises(InputError, match="fitted for the head of another model"):
        made(images).judged(other(torch.zeros(1, 3, 8, 8)))


def test_a_library_network_needs_nothing_but_the_file(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = load_classifier(
        "timm:test_resnet",
        weights=__import__("timm").create_model("test_resnet", num_classes=4).state_dict(),
        transform="crop=32",
    )
    deployed = made(images, "energy", network)
    deployed.save(tmp_path / "t.nescio")
    assert load(tmp_path / "t.nescio")(images / "new") == deployed(images / "new")


def test_the_state_of_a_classifier_is_the_networks_own() -> None:
    network = tiny_net()
    found = state_of(Classifier(network, TINY_TRANSFORM))
    own = network.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[k], own[k]) for k in own)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert state_of(Classifier(linear, TINY_TRANSFORM)).keys() == linear.state_dict().keys()


def test_a_failed_save_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    from nescio.core import artifact as module

    before = file.read_bytes()
    monkeypatch.setattr(module, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        made(images).save(file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir() if "nescio" in p.name] == ["my.nescio"]


def test_a_file_of_the_first_format_still_opens(images: Path) -> None:
    stored = Path(__file__).parents[1] / "reference/format-1.nescio"
    deployed = load(stored, model=tiny_net)
    kept = json.loads(stored.with_suffix(".json").read_text())
    pixels = [np.asarray(picture(i)) for i in range(5)]
    for verdict, expected in zip(deployed(pixels), kept, strict=True):
        found = vars(verdict)
        assert {k: found[k] for k in ("label", "index", "accepted")} == {
            k: expected[k] for k in ("label", "index", "accepted")
        }
        for k in ("probability", "score", "p_value", "p_id"):
            assert found[k] == pytest.approx(expected[k], abs=1e-4)
    assert repr(Detector(describe(stored)["detector"]["spec"])) == FMLS


@pytest.mark.parametrize("noise", [-4e-7, 4e-7])
@pytest.mark.parametrize("detector", [FMLS, "odin:eps=0.01+msp"])
def test_a_lone_image_gets_the_verdict_that_it_gets_in_a_batch(
    images: Path, detector: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 copies of one image at a tie, where the network's last bits depend on the batch."""
    deployed = made(images, detector)
    source, t = open_source(images / "held"), deployed.classifier.transform
    x = torch.stack([t.geometry(Image.open(source.read(i))) for i in range(len(source))])
    (group,) = deployed.calibration.groups
    scores = np.concatenate([deployed.judge(one[None]).score for one in x])
    tied = x[int(np.abs(scores - group.threshold).argmin())][None]
    features = Deployed.features

    def shaken(self: Deployed, images: torch.Tensor, *network: object) -> object:
        more = 1 + noise * (len(images) > 1)
        return [None if f is None else f.with_h(f.h * more) for f in features(self, images, *network)]

    monkeypatch.setattr(Deployed, "features", shaken)
    alone, batch = deployed.judge(tied), deployed.judge(tied.expand(40, -1, -1, -1))
    assert alone.accepted.all()
    assert batch.accepted.all()
    assert set(batch.p_value) == set(alone.p_value)
    # the same where an image lies at the least score that is accepted, not at a calibration image's
    scores = group.scores - group.threshold + alone.score[0] + group.tolerance
    deployed.calibration = dataclasses.replace(
        deployed.calibration, groups=(dataclasses.replace(group, scores=scores),)
    )
    assert set(deployed.judge(tied.expand(40, -1, -1, -1)).accepted) == set(deployed.judge(tied).accepted)
