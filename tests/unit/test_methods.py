"""Each method against its formula, written out independently in NumPy or autograd."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from conftest import random_features, tiny_net, training
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.models import Classifier
from nescio.run.passes import pass_of

F = random_features()


def fitted(spec: str, f: Features = F) -> Detector:
    return Detector(spec).fit(training(f))


def arrays(f: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return f.h.double().numpy(), f.head.weight.double().numpy(), f.head.bias.double().numpy(), f.pred.numpy()


def masks(W: np.ndarray, p: float) -> np.ndarray:
    keep = round(W.shape[1] * (1 - p))
    out = np.zeros_like(W)
    for c, row in enumerate(W):
        out[c, np.argsort(-row, kind="stable")[:keep]] = 1
    return out


def smoothing(f: Features) -> np.ndarray:
    h, _, _, pred = arrays(f)
    v = np.stack([F.h.double().numpy()[F.labels.numpy() == c].mean(0) for c in range(5)])[pred]
    return np.maximum(0, (h * v).sum(1) / np.maximum(1e-300, np.linalg.norm(h, axis=1) * np.linalg.norm(v, axis=1)))


SCORES = {
    "msp": lambda f: softmax(f, axis=1).max(1),
    "maxlogit": lambda f: f.max(1),
    "energy": lambda f: logsumexp(f, axis=1),
    "entropy": lambda f: (softmax(f, axis=1) * np.log(softmax(f, axis=1))).sum(1),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9])
def test_fm_react_ls_around_every_score(score: str, p: float) -> None:
    h, W, b, pred = arrays(F)
    clip = 1.3
    f_hat = smoothing(F)[:, None] * (np.minimum(masks(W, p)[pred] * h, clip) @ W.T + b)
    got = fitted(f"fm:p={p}+react:clip={clip}+ls+{score}")(F)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), SCORES[score](f_hat), rtol=2e-5, atol=1e-6)


def test_mask_ranks_signed_weights_and_keeps_at_least_one() -> None:
    head = Head(torch.tensor([[3.0, -5.0, 1.0, 2.0], [-1.0, -2.0, -3.0, -4.0]]), torch.zeros(2))
    f = Features(torch.ones(2, 4), head, torch.tensor([0, 1]))
    data = FeatureSet(head=head)
    half = Detector("fm:p=0.5+energy").fit(data).pipeline(f).h
    assert half.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert Detector("fm:p=0.99+energy").fit(data).pipeline(f).h.sum(1).tolist() == [1, 1]


def test_react_quantile_is_of_raw_training_features_even_after_fm() -> None:
    detector = fitted("fm:p=0.5+react:q=0.9+energy")
    assert detector.settings()["react"]["limit"] == pytest.approx(np.quantile(F.h.numpy(), 0.9), rel=1e-6)
    assert fitted("react+energy").settings()["react"]["limit"] == detector.settings()["react"]["limit"]


def test_temperature_divides_the_logits() -> None:
    np.testing.assert_allclose(
        fitted("temperature:T=4+msp")(F), softmax(F.logits.numpy() / 4, axis=1).max(1), rtol=1e-5
    )


def test_cosine_keeps_its_sign_and_ls_does_not_let_it_turn_the_logits() -> None:
    turned = Features(-F.h, F.head, F.pred, F.labels)
    assert (fitted("cosine")(turned) <= 0).all()
    smoothed = fitted("ls+energy")
    torch.testing.assert_close(smoothed(turned), torch.full((len(F),), np.log(5.0), dtype=torch.float64))


def test_a_zero_feature_vector_has_cosine_zero() -> None:
    zero = Features(torch.zeros(1, 12), F.head, torch.tensor([2]))
    assert fitted("cosine")(zero).item() == 0
    assert fitted("ls+energy")(zero).item() == pytest.approx(np.log(5))


def test_a_class_without_training_images_is_named() -> None:
    keep = (F.labels != 3).nonzero().flatten()
    some = Features(F.h[keep], F.head, F.pred[keep], F.labels[keep])
    for spec in ("ls+energy", "cosine"):
        with pytest.raises(InputError, match=r"class 3;"):
            fitted(spec, some)


def test_labels_are_needed_and_checked() -> None:
    unlabelled = Features(F.h, F.head, F.pred, torch.full((len(F),), -1))
    with pytest.raises(InputError, match="labels in 0…4"):
        fitted("ls+energy", unlabelled)
    with pytest.raises(InputError, match="no training features"):
        Detector("ls+energy").fit(FeatureSet(head=F.head))


def test_msp_does_not_tie_where_float32_would() -> None:
    head = Head(torch.eye(2) * 20, torch.zeros(2))
    h = torch.tensor([[1.0, 0.0], [1.1, 0.0]])
    a, b = Detector("msp").fit(FeatureSet(head=head))(Features(h, head, torch.tensor([0, 0])))
    assert a < b < 1
    assert torch.softmax(h @ head.weight.T, 1).amax(1).eq(1).all()


def odin_by_hand(net: torch.nn.Module, x: torch.Tensor, eps: float, T: float, transform, std=None) -> torch.Tensor:
    """The perturbed image from plain autograd; ``transform(h, pred)`` gives the pipeline's logits before T."""
    x = x.clone().requires_grad_()
    z = torch.relu(net.norm(net.conv(x))).mean((2, 3))
    pred = net.fc(z).argmax(1)
    log_p = torch.log_softmax(transform(z, pred) / T, 1)
    loss = -log_p[torch.arange(len(x)), pred].sum()
    loss.backward()
    step = eps * torch.sign(-x.grad) / (1 if std is None else std.view(1, 3, 1, 1))
    return (x + step).detach()


@pytest.mark.parametrize("per_std", [False, True])
@pytest.mark.parametrize("around", ["", "fm:p=0.5+react:clip=0.4+ls+"])
def test_odin_perturbs_along_the_whole_pipelines_gradient(classifier: Classifier, around: str, per_std: bool) -> None:
    net = tiny_net()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, 8, 8, generator=g)
    with torch.no_grad():
        raw = classifier(x)
    data = training(Features(raw.h, raw.head, raw.pred, torch.arange(40) % 4))
    eps, T = 0.05, 10.0
    detector = Detector(f"odin:eps={eps},T={T}{',per_std=true' if per_std else ''}+{around}msp").fit(data)

    W, b = net.fc.weight.detach(), net.fc.bias.detach()
    mask = torch.from_numpy(masks(W.numpy(), 0.5))
    v = torch.stack([raw.h[torch.arange(40) % 4 == c].mean(0) for c in range(4)])

    def pipeline(h: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
        if not around:
            return h @ W.T + b
        s = torch.cosine_similarity(h, v[pred], dim=1).clamp(min=0)
        return s[:, None] * ((h * mask[pred]).clamp(max=0.4) @ W.T + b)

    moved = odin_by_hand(net, x, eps, T, pipeline, classifier.std if per_std else None)
    z = torch.relu(net.norm(net.conv(moved))).mean((2, 3)).detach()
    expected = torch.softmax(pipeline(z, (z @ W.T + b).argmax(1)).double() / T, 1).amax(1)
    network_pass = pass_of(detector)
    torch.testing.assert_close(detector(network_pass.run(classifier, x)), expected, rtol=1e-6, atol=1e-8)
    if not per_std:  # a small step, so the confidence can only rise on average
        assert detector(network_pass.run(classifier, x)).mean() > detector.of_any_pass(raw).mean()


def test_the_odin_pass_is_named_by_all_that_decides_it() -> None:
    keys = [
        pass_of(fitted(spec)).key
        for spec in ("odin+msp", "odin+energy", "odin:eps=0.1+msp", "odin+fm+msp", "odin+fm:p=0.1+msp", "msp")
    ]
    assert keys[0] == keys[1]  # the score plays no part in the pass
    assert len(set(keys)) == 5


def test_vra_and_residual_by_hand() -> None:
    h = F.h.double().numpy()
    low, high = np.quantile(h, [0.7, 0.9])
    np.testing.assert_allclose(
        fitted("vra:low=0.7,high=0.9+energy").pipeline(F).h, np.where(h < low, 0, np.minimum(h, high)), rtol=1e-5
    )
    _, W, b, _ = arrays(F)
    centred = h + np.linalg.pinv(W) @ b
    _, _, directions = np.linalg.svd(centred, full_matrices=True)
    np.testing.assert_allclose(
        fitted("residual:dim=4")(F), -np.linalg.norm(centred @ directions[4:].T, axis=1), rtol=1e-6
    )


def test_dice_takes_its_mean_from_raw_features_and_masks_any_head() -> None:
    h, W, b, _ = arrays(F)
    contribution = W * h.mean(0)
    kept = np.where(contribution > np.quantile(contribution, 0.5), W, 0)
    expected = logsumexp(np.minimum(h, 0.8) @ kept.T + b, axis=1)
    np.testing.assert_allclose(fitted("react:clip=0.8+dice:p=0.5+energy")(F), expected, rtol=1e-5)


def line_by_hand(p_a: float, p_w: float, clip: float) -> np.ndarray:
    """With one whole mask per class, as the authors have it."""
    h, W, b, pred = arrays(F)
    contribution = W * np.stack([h[F.labels.numpy() == c].mean(0) for c in range(5)])
    active = np.stack([row > np.quantile(row, p_a) for row in contribution])
    kept = np.stack([abs(row) * W > np.quantile(abs(row) * W, p_w) for row in contribution])
    pruned = np.minimum(h, clip) * active[pred]
    return np.einsum("bl,bkl->bk", pruned, kept[pred] * W) + b


@pytest.mark.parametrize(("p_a", "p_w"), [(0.5, 0.5), (0.1, 0.9), (0, 0)])
def test_line_prunes_by_predicted_class(p_a: float, p_w: float) -> None:
    logits = line_by_hand(p_a, p_w, 0.9)
    spec = f"line:p_a={p_a},p_w={p_w},clip=0.9"
    np.testing.assert_allclose(fitted(f"{spec}+energy")(F), logsumexp(logits, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        fitted(f"{spec}+ls+energy")(F), logsumexp(smoothing(F)[:, None] * logits, axis=1), rtol=1e-5
    )


def test_other_stages_keep_a_head_that_depends_on_the_class() -> None:
    _, W, b, pred = arrays(F)
    contribution = W * F.h.double().numpy().mean(0)
    dice = contribution > np.quantile(contribution, 0.2)
    f = fitted("line:p_a=0.1,p_w=0.5,clip=0.9+dice:p=0.2+energy").pipeline(F)
    kept = np.stack([f.head.keep(c).numpy() for c in range(5)])[pred] * dice
    expected = np.einsum("bl,bkl->bk", f.h.double().numpy(), kept * W) + b
    np.testing.assert_allclose(f.logits, expected, rtol=1e-4, atol=1e-5)


def test_ls_can_take_the_heads_rows_for_prototypes() -> None:
    h, W, _, pred = arrays(F)
    s = (h * W[pred]).sum(1) / np.maximum(1e-300, np.linalg.norm(h, axis=1) * np.linalg.norm(W[pred], axis=1))
    detector = Detector("ls:prototypes=head+energy").fit(FeatureSet(head=F.head))
    np.testing.assert_allclose(detector(F), logsumexp(np.maximum(0, s)[:, None] * F.logits.numpy(), axis=1), rtol=1e-5)
    np.testing.assert_allclose(Detector("cosine:prototypes=head").fit(FeatureSet(head=F.head))(F), s, rtol=1e-5)


@pytest.mark.parametrize("covariance", ["diag", "tied", "full"])
def test_gmm_is_the_mixtures_density(covariance: str) -> None:
    h, y = F.h.double().numpy(), F.labels.numpy()
    groups = [h[y == c] for c in range(5)]
    full = [np.cov(g.T, bias=True) for g in groups]
    tied = sum(len(g) * c for g, c in zip(groups, full, strict=True)) / len(h)
    chosen = {"diag": [np.diag(np.diag(c)) for c in full], "tied": [tied] * 5, "full": full}[covariance]
    level = np.mean([np.diag(c).mean() for c in chosen])
    logs = [
        multivariate_normal(g.mean(0), c + 0.01 * level * np.eye(12)).logpdf(h) + np.log(len(g) / len(h))
        for g, c in zip(groups, chosen, strict=True)
    ]
    got = fitted(f"gmm:covariance={covariance},shrink=0.01")(F)
    np.testing.assert_allclose(got, logsumexp(np.stack(logs, 1), axis=1), rtol=1e-6, atol=1e-6)


def test_a_fitted_temperature_is_the_most_likely_one() -> None:
    noisy = Features(F.h, F.head, F.pred, torch.where(torch.arange(len(F)) % 5 == 0, (F.labels + 1) % 5, F.labels))
    data = training(F).with_held_out(training(noisy))
    T = Detector("temperature+msp").fit(data).settings()["temperature"]["temperature"]
    y = noisy.labels.numpy()

    def loss(t: float) -> float:
        return -np.log(softmax(F.logits.double().numpy() / t, axis=1)[np.arange(len(y)), y]).mean()

    assert pytest.approx(minimize_scalar(loss, bounds=(0.01, 100), method="bounded").x, rel=1e-3) == T


def test_a_temperature_without_an_optimum_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    right = Features(F.h, F.head, F.pred, F.pred)
    detector = fitted("temperature+msp", right)
    assert detector.settings()["temperature"]["temperature"] == 1
    assert "--held-out" in caplog.text


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_faiss_finds_the_same_neighbours_or_ones_farther_away(index: str) -> None:
    pytest.importorskip("faiss")
    exact, other = fitted("knn:k=7")(F), fitted(f"knn:k=7,index={index}")
    found = np.isclose(other(F), exact, rtol=1e-5, atol=1e-6)
    assert found.mean() >= {"flat": 1, "ivf": 0.5, "hnsw": 0.9}[index]
    assert (other(F) <= exact + 1e-5).all()  # a neighbour that is missed is replaced by one farther away
    again = copy.deepcopy(other)
    np.testing.assert_array_equal(again(F), other(F))


def test_knn_without_faiss_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"nescio\[faiss\]"):
        Detector("knn:index=flat")


def test_scores_are_fitted_on_what_the_stages_before_them_produce() -> None:
    h, y = F.h.double().numpy().clip(max=0.5), F.labels.numpy()
    v = np.stack([h[y == c].mean(0) for c in range(5)])[F.pred.numpy()]
    lengths = np.linalg.norm(h, axis=1) * np.linalg.norm(v, axis=1)
    expected = (h * v).sum(1) / np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(fitted("react:clip=0.5+cosine")(F), expected, rtol=1e-5)


def test_knn_subsample_is_the_same_for_any_chunking_and_k_is_capped() -> None:
    few = Detector("knn:k=5,alpha=0.3")
    a, b = few.fit(training(F, 7))(F), Detector("knn:k=5,alpha=0.3").fit(training(F, 1000))(F)
    assert torch.equal(a, b)
    assert 40 <= len(few.stages[0].bank) <= 80
    z = torch.nn.functional.normalize(F.h.double())
    torch.testing.assert_close(fitted("knn:k=999")(F), -torch.cdist(z, z).amax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "told"),
    [("knn:k=0", "1 or more"), ("vim:dim=12", "dim=12 leaves none of 12"),
     ("vra:low=0.9,high=0.1+energy", "low <= high"),
     ("gen:gamma=0", "gamma above 0"), ("lts:p=0+energy", "p above 0"), ("nci:alpha=-1", "0 or more"),
     ("gram:orders=0", "1 or more"), ("openmax:tail=1", "tail=1 must be 2 or more"),
     ("gmm:covariance=round", "not one of the choices"),
     ("ls:prototypes=heads+energy", "did you mean 'head'"), ("mcdropout:n=0+msp", "1 or more"),
     ("bats:last=-1+msp", "or more"), ("perturb:eps=-1+msp", "0 or more"),
     ("knn:index=tree", "not one of the choices")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        fitted(spec)
