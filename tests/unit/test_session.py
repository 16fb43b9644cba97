"""A session gives what the network itself gives, whatever form the images come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nescio
from conftest import TINY_TRANSFORM, coloured, random_features, tiny_net
from nescio.core.errors import InputError
from nescio.core.features import NO_HEAD
from nescio.core.stage import REGISTRY, Score
from nescio.models import Classifier
from nescio.report import write_report
from nescio.run.session import Session

X = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4


class Pairs(torch.utils.data.Dataset[Any]):
    """Dicts, as a Hugging Face data set in torch format gives them."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": X[i], "label": int(Y[i])}


FORMS = {
    "array": X.numpy,
    "pair": lambda: (X, Y),
    "list of tensors": lambda: list(X),
    "loader of pairs": lambda: DataLoader(TensorDataset(X, Y), 7),
    "loader of tensors": lambda: DataLoader(X, 7),
    "loader of dicts": lambda: DataLoader(Pairs(), 7),
    "tensor": lambda: X,
    "data set": lambda: TensorDataset(X, Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_normalised_batches_need_no_transform(form: str) -> None:
    network = tiny_net()
    session = Session(network)
    features = session.features(FORMS[form]())
    with torch.no_grad():
        expected = network.eval()(X)
    torch.testing.assert_close(features.record().logits, expected, rtol=1e-4, atol=1e-5)
    assert (
        features.labels == (-1 if form in ("loader of tensors", "tensor", "array", "list of tensors") else Y.numpy())
    ).all()
    scores = session.scores(["energy", "msp"], FORMS[form]())
    np.testing.assert_allclose(scores["energy"], expected.double().logsumexp(1), rtol=1e-4)
    torch.testing.assert_close(session(X).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_call_may_be_any(form: str, tmp_path: Path) -> None:
    """Whichever is given images first, a network of which nobody has said how large they are is wrapped then."""
    x, far = FORMS[form](), DataLoader(X + 3, 7)
    session = Session(tiny_net())
    train, test, other = (session.features(images) for images in (x, X, far))
    np.testing.assert_array_equal(
        Session(tiny_net()).scores("energy", x)["energy"], session.scores("energy", x)["energy"]
    )
    detector = nescio.Detector("knn:k=3")
    Session(tiny_net()).fit(detector, x)
    table = nescio.bench(tiny_net(), train=x, id=X, ood={"far": far}, detectors=["knn:k=3", "energy"])
    own = nescio.evaluate([detector, "energy"], train=train, id=test, ood={"far": other})
    assert [row.auroc for row in table.rows] == [row.auroc for row in own.rows]
    table.save(tmp_path / "results")
    write_report(nescio.load(tmp_path / "results"), tmp_path / "report.html")
    assert "far" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_detector_of_arrays_scores_what_the_session_gives() -> None:
    network = tiny_net()
    session = Session(network)
    train = session.features(DataLoader(TensorDataset(X, Y), 8))
    h, y = train.record().h.numpy(), train.labels
    fitted = session.fit("mahalanobis", DataLoader(TensorDataset(X, Y), 8))
    assert fitted["mahalanobis"].fit_seconds > 0
    assert len(session.scores(fitted, X)["mahalanobis"]) == len(X)
    alone = nescio.Detector("mahalanobis").fit(h, y)
    np.testing.assert_allclose(alone(h), alone(train).numpy(), rtol=1e-9)
    fmls = nescio.Detector("fmls").fit(h, y, head=network.fc)
    np.testing.assert_allclose(fmls(h), fmls(session(X)).numpy(), rtol=1e-3, atol=1e-4)
    assert isinstance(fmls(torch.from_numpy(h)), torch.Tensor)


def test_evaluate_on_features_is_bench_on_their_images(tmp_path: Path) -> None:
    folders = {n: coloured(tmp_path, n, per_class=12, classes=4, side=8, seed=i) for i, n in enumerate(("a", "b", "c"))}
    session = Session(Classifier(tiny_net(), TINY_TRANSFORM), cache=tmp_path / "banks", workers=0, progress=False)
    detectors = ["msp", "knn:k=3", "ls+energy"]
    by_images = nescio.bench(session, id=folders["a"], train=folders["b"], ood={"c": folders["c"]}, detectors=detectors)
    rows = {name: session.features(folder) for name, folder in folders.items()}
    by_features = nescio.evaluate(detectors, id=rows["a"], train=rows["b"], ood={"c": rows["c"]})
    for one, other in zip(by_images.rows, by_features.rows, strict=True):
        assert (one.detector, one.auroc, one.fpr95, one.aurc) == (other.detector, other.auroc, other.fpr95, other.aurc)
    by_features.save(tmp_path / "results")
    assert nescio.Results.load(tmp_path / "results").rows[0].auroc == pytest.approx(by_features.rows[0].auroc, abs=1e-4)


def test_a_fitted_detector_a_sum_of_stages_and_a_function_are_judged_beside_specs() -> None:
    class Length(Score):
        """Length of the features."""

        def forward(self, f: Any) -> torch.Tensor:
            return f.h.norm(dim=1)

    def largest(f: Any) -> torch.Tensor:
        return f.logits.amax(dim=1)

    f, other = random_features(), random_features(n=50, seed=5)
    sets = {n: nescio.FeatureSet(r.h, r.labels, head=f.head, pred=r.pred) for n, r in (("id", f), ("far", other))}
    from nescio.methods.shape.react import ReAct

    fitted = nescio.Detector("knn:k=3").fit(sets["id"])
    bank = fitted.state_dict()["stages.0.bank"].clone()
    detectors = [fitted, ReAct(q=0.9) + Length(), "maxlogit", largest]
    results = nescio.evaluate(detectors, id=sets["id"], train=sets["far"], ood={"far": sets["far"]})
    assert results.detectors == ["knn:k=3", "react:q=0.9+length", "maxlogit", "largest"]
    assert torch.equal(fitted.state_dict()["stages.0.bank"], bank)  # judged as it is
    auroc = {r.detector: r.auroc for r in results.rows}
    assert auroc["maxlogit"] == auroc["largest"]


def test_a_cold_session_fits_scores_and_judges_batches() -> None:
    loader = lambda start: DataLoader(TensorDataset(X[start : start + 15], Y[start : start + 15]), 4)  # noqa: E731
    knn = nescio.Detector("knn:k=3")
    assert len(Session(tiny_net()).scores("energy", loader(0))["energy"]) == 15
    Session(tiny_net()).fit([knn], loader(0))
    results = nescio.bench(tiny_net(), id=loader(0), train=loader(15), ood={"far": X * 3}, detectors=["knn:k=3", "msp"])
    assert [r.n_ood for r in results.rows] == [30, 30]
    one = Session(tiny_net(), size=(3, 8, 8))
    torch.testing.assert_close(one(X[0]).h, one(X[:1].numpy()).h)
    with pytest.raises(InputError, match="needs images, not normalised batches"):
        nescio.fit(tiny_net(), "energy", calibrate=loader(0))


def test_detectors_of_one_name_are_told_apart_and_options_need_no_star(tmp_path: Path) -> None:
    f, far = random_features(), random_features(n=50, seed=5)
    sets = {n: nescio.FeatureSet(r.h, r.labels, head=f.head) for n, r in (("id", f), ("far", far))}
    two = [nescio.Detector("knn:k=3").fit(rows) for rows in sets.values()]
    detectors = [*two, two[0], "msp", "msp", lambda f: f.h.sum(1), lambda f: -f.h.sum(1)]
    results = nescio.evaluate(detectors, id=sets["id"], ood={"far": sets["far"]})
    assert results.detectors == ["knn:k=3", "knn:k=3 (2)", "msp", "<lambda>", "<lambda> (2)"]
    auroc = {r.detector: r.auroc for r in results.rows}
    assert auroc["<lambda>"] == pytest.approx(1 - auroc["<lambda> (2)"])
    assert nescio.Detector(lambda f: f.logits.amax(1))(logits=np.eye(3)).tolist() == [1, 1, 1]

    class Far(Score, name="far-in-test"):
        """A distance."""

        needs = nescio.Needs(train=True, labels=True)

        def __init__(self, p: float = 2.0) -> None:
            super().__init__()
            self.p = p

        def forward(self, f: Any) -> torch.Tensor:
            return -f.h.norm(p=self.p, dim=1)

    try:
        detector = nescio.Detector(Far(p=1.0)).fit(f.h, f.labels)
        assert repr(detector) == "far-in-test:p=1"
        detector.save(tmp_path / "far.nescio")
        assert torch.equal(nescio.load(tmp_path / "far.nescio")(f.h), detector(f.h))
        with pytest.raises(InputError, match="'far-in-test' must be fitted, but no training features"):
            nescio.Detector(Far()).fit()
        with pytest.raises(InputError, match="'far-in-test' is fitted on labelled features"):
            nescio.Detector(Far()).fit(f.h)
    finally:
        REGISTRY.pop("far-in-test")


def test_a_set_takes_another_head_and_a_fitted_detector_is_deployed_as_it_is(tmp_path: Path) -> None:
    f = random_features()
    head = (f.head.weight, f.head.bias)
    bare = nescio.FeatureSet(f.h, f.labels)
    fmls = nescio.Detector("fmls").fit(bare, head=head)
    torch.testing.assert_close(fmls(f.h), nescio.Detector("fmls").fit(f.h, f.labels, head=head)(f.h))
    torch.testing.assert_close(nescio.Detector("energy")(bare, head=head), nescio.Detector("energy")(f.h, head=head))
    folders = [coloured(tmp_path, name, per_class=30, classes=4, side=8, seed=i) for i, name in enumerate("ab")]
    session = Session(Classifier(tiny_net(), TINY_TRANSFORM), cache=tmp_path / "banks", workers=0, progress=False)
    knn = nescio.Detector("knn:k=3")
    session.fit([knn], folders[0])
    assert nescio.fit(session, knn, calibrate=folders[1], accept=0.9).detector is knn


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: nescio.Detector("knn").fit(np.ones((5, 3)))(np.ones((2, 4))), "of length 3, but these have length 4"),
        (lambda: nescio.Detector("knn").fit(np.ones((5, 3)), [0, 1]), r"labels: expected one for each of 5 rows"),
        (lambda: nescio.Detector("knn")(np.ones((5, 3))), "not fitted"),
        (
            lambda: nescio.Detector("knn").fit(np.ones((5, 3)))(logits=np.ones((5, 3))),
            "'knn' reads penultimate features",
        ),
        (lambda: nescio.Detector("energy")(np.ones((5, 3))), "'energy' reads logits, but there is no head"),
        (lambda: nescio.Detector("fm+energy").fit(np.ones((5, 3))), "classification head"),
        (lambda: nescio.Detector("mahalanobis").fit(np.ones((5, 3))), "labels"),
        (lambda: nescio.Detector("mahalanobis").fit(np.ones((2, 3)), ["a", "b"]), "whole numbers"),
        (lambda: nescio.Detector("mahalanobis").fit(np.ones((4, 3)), [0, 0, 2, 2]), "none of class 1"),
        (lambda: nescio.Detector("energy")(np.ones((5, 3)), head=(np.ones((2, 4)), np.ones(2))), r"\(B, 4\)"),
        (lambda: nescio.Detector("energy")(np.ones(5), head=nn.Linear(5, 2)), "expected a matrix"),
        (lambda: nescio.Detector("energy")(np.array(["a"])), "numbers"),
        (nescio.Detector("energy"), "give one of them"),
        (lambda: nescio.Detector("energy").fit(head=nn.ReLU()), "not a linear layer"),
        (lambda: Session(tiny_net()).scores("energy", DataLoader(X, 4, shuffle=True)), "shuffles"),
        (lambda: Session(tiny_net()).features("images/"), "the size of its images is unknown"),
        (lambda: Session(tiny_net()).features(DataLoader((X * 255).byte(), 4)), "normalise"),
        (lambda: Session(tiny_net(), engine="steam"), "unknown engine 'steam'"),
        (lambda: nescio.evaluate("msp", id="images/", ood={}), "expected features"),
        (lambda: nescio.Detector(lambda f: f.h)(np.ones((4, 3))), r"scores of shape \(4, 3\) for 4 rows"),
        (
            lambda: nescio.Detector("knn").fit(nescio.FeatureSet(np.ones((4, 3))), [0, 0, 1, 1]),
            "labels in the Fea",
        ),
        (lambda: Session(tiny_net())("images/"), "expected normalised images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_rows_that_are_not_finite_score_nan_and_logits_alone_suffice() -> None:
    z = np.array([[1.0, 2.0], [np.nan, 0.0]])
    scores = nescio.Detector("energy")(logits=z)
    assert scores[0] == pytest.approx(np.log(np.exp(z[0]).sum()))
    assert np.isnan(scores[1])
    assert nescio.Detector("msp").fit().head is NO_HEAD


def test_what_is_at_hand_shows_itself_in_one_line() -> None:
    session = Session(tiny_net())
    assert repr(session) == "Session(TinyNet, not run yet)"
    assert repr(Session("torchvision:resnet50")) == "Session(torchvision:resnet50, not run yet)"
    train = session.features(TensorDataset(X, Y))
    assert repr(session) == "Session(TinyNet on cpu)"
    assert repr(train) == "FeatureSet(30 rows of 6 features, labelled)"
    assert repr(session(X)) == "Features(30 rows of 6 features)"
    assert repr(session.scores(["energy", "msp"], X)) == "Scores(energy, msp: 30 images)"
    assert repr(train.head) == "Head(4 classes of 6 features)"
    assert repr(nescio.FeatureSet(logits=np.ones((5, 4)))) == "FeatureSet(5 rows of 4 logits)"
    assert repr(nescio.FeatureSet()) == "FeatureSet(no rows)"
