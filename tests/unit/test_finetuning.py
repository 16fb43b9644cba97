"""Fine-tuning as the papers about pretrained transformers do it: CLIP by its own loss, a ViT by cross entropy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax

import nescio
from conftest import coloured
from nescio.core.errors import InputError
from nescio.data import Transform
from nescio.methods.objective import TrainingNetwork, View, parse_objective
from nescio.models import Classifier, load_classifier
from nescio.models.load import new_network
from nescio.models.zoo.clip import captions
from nescio.models.zoo.zeroshot import ZeroShot
from nescio.training import Recipe, recipes
from small_runs import CPU, train

QUICK = Recipe(2, 20, "adamw:lr=1e-3", "cosine", "none")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {"train": coloured(root, "train", 20, side=32), "val": coloured(root, "val", 8, seed=1, side=32)}


def test_a_vit_is_fine_tuned_and_judged_by_mahalanobis_and_msp(sets: dict[str, Path], tmp_path: Path) -> None:
    small = "timm:vit_tiny_patch16_224:img_size=32,patch_size=8,embed_dim=24,depth=2,num_heads=2"
    options = {"objective": "ce", "hardware": CPU}
    shape = {"transform": "resize=32,crop=32"}
    first = Recipe.named("vit", epochs=1, batch_size=20)
    train(tmp_path / "first", model=small, recipe=first, **shape, **sets, **options)
    # on from weights of another number of classes, as from ImageNet-21k's
    other = {name: coloured(tmp_path, name, 12, classes=2, seed=s, side=32) for s, name in enumerate(sets)}
    again = Recipe.named("vit", epochs=3, batch_size=12)
    init = {"init": str(tmp_path / "first")}
    train(tmp_path / "run", model=small, recipe=again, **shape, **init, **other, **options)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    results = nescio.bench(
        nescio.Session(load_classifier(str(tmp_path / "run"), device="cpu"), workers=0, progress=False),
        id=other["val"],
        train=other["train"],
        ood={"third": sets["val"]},
        detectors=["mahalanobis", "rmd", "msp"],
    )
    assert [row.detector for row in results.rows] == ["mahalanobis", "rmd", "msp"]
    assert all(0 <= row.auroc <= 1 for row in results.rows)


open_clip = pytest.importorskip("open_clip", reason="needs the extra nescio[clip]")
PROMPTS = "clip:small-clip:prompt=a photo of a {}.|a drawing of a {}.|{}"
NAMES = ["class0", "class1", "class2"]


def new(weights: Path, model: str = PROMPTS) -> Classifier:
    made = new_network(model, 3, classes=NAMES, init=str(weights))
    return Classifier(made.network, made.transform, name=made.name, classes=NAMES)


def test_the_loss_is_clips_over_images_and_captions_of_their_classes(small_clip: Path) -> None:
    classifier, objective = new(small_clip), parse_objective("flyp")
    assert objective.heads(classifier) == {}
    view = View(torch.randn(5, 3, 32, 32), torch.tensor([0, 2, 1, 0, 2]), TrainingNetwork(classifier, maps=False), 0.5)
    torch.manual_seed(7)
    loss, watched = objective.loss(view, classifier.heads)
    torch.manual_seed(7)
    drawn = torch.randint(3, (5,))
    model = open_clip.create_model("small-clip").eval()
    model.load_state_dict(load_file(small_clip))
    with torch.no_grad():
        tokens = captions(PROMPTS, NAMES)[view.labels, drawn]
        z = model.get_logits(view.x, tokens)[0].double().numpy()
    expected = -(np.diag(log_softmax(z, axis=1)) + np.diag(log_softmax(z, axis=0))).mean() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert watched["accuracy"].item() == pytest.approx((view.labels[z.argmax(1)] == view.labels).float().mean().item())
    # and as open_clip's own loss has it
    features = model.encode_image(view.x, normalize=True), model.encode_text(tokens, normalize=True)
    assert loss.item() == pytest.approx(open_clip.ClipLoss()(*features, model.logit_scale.exp()).item(), rel=1e-5)


IMAGES, LABELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 2, 1, 0, 2, 1])


def gradients(weights: Path, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    classifier, objective = new(weights, "clip:small-clip"), parse_objective("flyp")
    objective.heads(classifier)
    network = TrainingNetwork(classifier, maps=False)
    loss, _ = objective.loss(View(x, y, network, 0.5), classifier.heads)
    loss.backward()
    return {"loss": loss.detach()} | {k: p.grad for k, p in network.named_parameters() if p.grad is not None}


def one_of_two(rank: int, weights: Path) -> None:
    open_clip.add_model_config(weights.parent)
    meeting = f"file://{weights.parent / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    save_file(gradients(weights, IMAGES[rank::2], LABELS[rank::2]), weights.parent / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_the_whole_batch(small_clip: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (small_clip,), nprocs=2)
    whole = gradients(small_clip, IMAGES, LABELS)
    parts = [load_file(small_clip.parent / f"{rank}.safetensors") for rank in (0, 1)]
    assert any(k.endswith("logit_scale") for k in whole)
    assert any("visual" in k for k in whole)
    for key, t in whole.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, t, rtol=1e-4, atol=1e-6)


def test_captions_are_drawn_from_all_prompts(small_clip: Path) -> None:
    classifier, objective = new(small_clip), parse_objective("flyp")
    objective.heads(classifier)
    view = View(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), TrainingNetwork(classifier, maps=False), 0)
    losses = {round(objective.loss(view, classifier.heads)[0].item(), 6) for _ in range(20)}
    assert len(losses) > 5


def test_both_towers_are_trained_and_the_head_follows_the_text(
    small_clip: Path, sets: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(12, 12, "adamw:lr=3e-3", "cosine", "none", ema=0.5)
    options = {"model": PROMPTS, "objective": "flyp", "hardware": CPU, "init": str(small_clip)}
    with caplog.at_level("WARNING", logger="nescio"):
        run = train(tmp_path / "run", recipe=recipe, keep=True, **sets, **options)
    assert not caplog.text
    assert run.model == PROMPTS
    state, before = load_file(tmp_path / "run/epoch-12.safetensors"), load_file(small_clip)
    moved = [k for k, t in before.items() if not torch.equal(t, state[k if k.startswith("visual.") else f"text.{k}"])]
    assert set(moved) == set(before)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["train_loss"] < logged[0]["train_loss"]
    assert logged[-1]["val_accuracy"] > 0.8  # by the text tower's head; at random it is 1/3
    # the head is what the stored (averaged) text tower makes of the names
    text = {k.removeprefix("text."): t for k, t in state.items() if k.startswith("text.")}
    model = open_clip.create_model("small-clip").eval()
    model.load_state_dict(text | {k: t for k, t in state.items() if k.startswith("visual.")})
    templates = [lambda c: f"a photo of a {c}.", lambda c: f"a drawing of a {c}.", str]
    tokenize = open_clip.get_tokenizer("small-clip")
    rows = open_clip.build_zero_shot_classifier(model, tokenize, NAMES, templates).T * model.logit_scale.detach().exp()
    torch.testing.assert_close(state["fc.weight"], rows, rtol=1e-4, atol=1e-5)
    # and the run is a classifier like any other, or goes on being trained
    classifier = load_classifier(str(tmp_path / "run"), device="cpu")
    assert classifier.classes == NAMES
    assert not any("text" in key for key in classifier.state_dict())
    results = nescio.bench(
        nescio.Session(classifier, workers=0, progress=False),
        id=sets["val"],
        ood={"same": sets["train"]},
        detectors=["mcm", "msp"],
    )
    assert len(results.rows) == 2
    train(tmp_path / "on", recipe=QUICK, **sets, **(options | {"init": str(tmp_path / "run")}))


def test_a_resumed_run_ends_in_the_same_weights(small_clip: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    options = {"model": PROMPTS, "objective": "flyp", "hardware": CPU, "init": str(small_clip)}
    recipe = Recipe(2, 20, "adamw:lr=1e-3", "constant", "none")
    train(tmp_path / "whole", recipe=recipe, **sets, **options)
    train(tmp_path / "parts", recipe=dataclasses.replace(recipe, epochs=1), **sets, **options)
    train(tmp_path / "parts", recipe=recipe, resume=True, **sets, **options)
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(t, parts[k]) for k, t in whole.items())


def test_cross_entropy_starts_from_the_zero_shot_head(small_clip: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    still = Recipe(1, 20, "adamw:lr=1e-12", "constant", "none")
    options = {"objective": "ce", "hardware": CPU, "init": str(small_clip)}
    train(tmp_path / "run", model="clip:small-clip", recipe=still, **sets, **options)
    found = load_classifier(str(tmp_path / "run"), device="cpu")
    expected = load_classifier("clip:small-clip", weights=small_clip, classes=NAMES, device="cpu")
    torch.testing.assert_close(found.head.weight, expected.head.weight, rtol=1e-4, atol=1e-6)


def test_what_has_no_text_is_refused(small_clip: Path) -> None:
    other = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), Transform(crop=2))
    without = new(small_clip)
    assert isinstance(without.body, ZeroShot)
    without.body.text = None
    for classifier in (other, without):
        with pytest.raises(InputError, match="no text tower, which flyp trains"):
            parse_objective("flyp").heads(classifier)
    named = new(small_clip)
    named.classes = None
    with pytest.raises(InputError, match="needs the names of the classes"):
        parse_objective("flyp").heads(named)


def test_the_papers_settings_are_recipes() -> None:
    assert Recipe.named("flyp").optimizer == "adamw:lr=1e-5,weight_decay=0.1"
    assert {"flyp", "vit"} <= set(recipes())
