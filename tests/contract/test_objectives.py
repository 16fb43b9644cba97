"""What every objective promises, over the registry: a loss with a gradient, honest needs, a state to go on from."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.plugins import load_methods
from nescio.data import Transform
from nescio.methods import Objective, View
from nescio.methods.objective import OBJECTIVES, TrainingNetwork, parse_objective
from nescio.models import Classifier
from nescio.models.heads import FeatureHead, restore_heads
from nescio.models.load import new_network
from nescio.training.state import State
from tiny_networks import GroupNet

load_methods()
SPECS = [
    *sorted(OBJECTIVES),
    *(f"{name}:outliers=1" for name, kind in sorted(OBJECTIVES.items()) if "outliers" in kind.options()),
]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Trial:
    """An objective on a small network: one with classes alone or, where it asks for names and texts, a CLIP."""

    def __init__(self, spec: str, request: pytest.FixtureRequest, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.objective = parse_objective(spec)
        self.whole = GroupNet()
        self.classifier = Classifier(self.whole, Transform(crop=16))
        try:
            self.heads = self.objective.heads(self.classifier)
        except InputError:
            names, weights = ["one", "two", "three"], str(request.getfixturevalue("small_clip"))
            made = new_network("clip:small-clip", 3, classes=names, init=weights)
            self.whole = made.network
            self.classifier = Classifier(self.whole, made.transform, name=made.name, classes=names)
            self.heads = self.objective.heads(self.classifier)
        self.classifier.heads.update(self.heads)
        self.classifier.heads.train()
        self.objective.after_step(self.classifier)
        self.network = TrainingNetwork(self.classifier, maps=self.objective.needs.maps)

    def view(self) -> View:
        """A batch as the training loop makes it: every view of the images, then the outliers."""
        needs, side = self.objective.needs, self.classifier.transform.crop
        torch.manual_seed(1)
        x = torch.randn(len(LABELS) * (needs.views + needs.outliers), 3, side, side, requires_grad=True)
        return View(x, LABELS.repeat(needs.views), self.network, 0.5)

    def loss(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.objective.loss(self.view(), self.classifier.heads)

    def state(self) -> State:
        """All that is stored of it, after one loss and one step of each tensor that has a gradient."""
        state = State(self.whole, self.classifier, self.objective)
        every = [*self.network.parameters(), *self.classifier.heads.parameters(), *self.objective.parameters()]
        state.optimizer = torch.optim.SGD(every, lr=1e-3)
        self.loss()[0].backward()
        state.optimizer.step()
        self.objective.after_step(self.classifier)
        return state


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_finite_and_reads_all_that_the_objective_needs(spec: str, request: pytest.FixtureRequest) -> None:
    trial = Trial(spec, request)
    view = trial.view()
    images, needs = view.x, trial.objective.needs
    loss, watched = trial.objective.loss(view, trial.classifier.heads)
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(t.shape == () and t.isfinite() and not t.requires_grad for t in watched.values())
    assert set(trial.objective.shown) <= set(watched)
    loss.backward()
    assert (images.grad.flatten(1).abs().amax(dim=1) > 0).all(), "every view and every outlier takes part"
    assert ("fmaps" in vars(view)) == needs.maps
    assert set(trial.heads) == needs.heads
    for name, p in (*trial.classifier.heads.named_parameters(), *trial.objective.named_parameters()):
        assert p.grad is not None, f"{name} is not trained"
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_heads_are_restored_from_their_weights(name: str, request: pytest.FixtureRequest) -> None:
    trial = Trial(name, request)
    restored = restore_heads(trial.classifier.heads.state_dict())
    assert set(restored) == set(trial.heads)
    h, head = torch.randn(5, trial.classifier.head.weight.shape[1]), trial.classifier.head
    for kind, own in trial.heads.items():
        read = (h, head) if isinstance(own, FeatureHead) else (h[..., None, None],)
        assert torch.equal(own.eval()(*read), restored[kind].eval()(*read))
        assert "--objective" in own.hint()
        assert own.objective == name


@pytest.mark.parametrize("spec", SPECS)
def test_training_goes_on_from_what_is_stored(spec: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    first, other = Trial(spec, request), Trial(spec, request, seed=5)
    first.state().save(tmp_path / "last.safetensors")
    state = other.state()
    state.load(tmp_path / "last.safetensors")
    assert first.loss()[0].item() == other.loss()[0].item()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_docstring_says_what_the_options_mean_and_whence(name: str) -> None:
    kind, objective = OBJECTIVES[name], parse_objective(name)
    text = inspect.getdoc(kind) or ""
    assert "Source:" in text
    assert all(f"{option}:" in text for option in kind.options())
    assert repr(parse_objective(repr(objective))) == repr(objective)
    assert Detector(kind.detector).needs.heads <= objective.needs.heads, "its own score reads no head but its own"


def test_a_subclass_with_a_name_is_an_objective() -> None:
    class Halved(Objective, name="halved-for-a-test"):
        """Half the cross entropy. Source: none."""

        detector = "msp"

        def loss(self, view: View, heads: torch.nn.ModuleDict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            del heads
            return torch.nn.functional.cross_entropy(view.logits, view.labels) / 2, {}

    try:
        view = Trial("halved-for-a-test", None).view()
        halved, plain = (parse_objective(name).loss(view, None)[0] for name in ("halved-for-a-test", "ce"))
        assert halved.item() == pytest.approx(plain.item() / 2)
    finally:
        del OBJECTIVES["halved-for-a-test"]
