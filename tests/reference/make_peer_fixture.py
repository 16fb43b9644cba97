"""Scores of ``pytorch-ood`` 0.4.0 on made-up features, for ``test_peers.py``.

    python -m venv peers && peers/bin/pip install torch pytorch-ood==0.4.0 && peers/bin/python make_peer_fixture.py

Rewrites ``peers.npz`` beside this file: features, labels, head, and the peer's scores with their sign turned, so that a
higher one means more in-distribution.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pytorch_ood import detector as peer

N_TRAIN, N_TEST, L, C = 500, 200, 24, 6


def features(n: int, seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (n,), generator=g)
    centres = torch.randn(C, L, generator=torch.Generator().manual_seed(9))
    return (centres[labels] * 1.5 + spread * torch.randn(n, L, generator=g)).relu(), labels


def openmax(train: torch.Tensor, y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """As an outlier score of any scale; the peer averages over all images of a class, the paper over those right."""
    right = train.argmax(1) == y
    probability = peer.OpenMax(None, tailsize=25, alpha=3).fit_logits(train[right], y[right]).predict_logits(logits)
    return probability.log()


def main() -> None:
    h, y = features(N_TRAIN, 0, 0.7)
    x, _ = features(N_TEST, 1, 1.3)
    head = torch.nn.Linear(L, C)
    torch.manual_seed(0)
    head.weight.data = 0.3 * torch.randn(C, L, generator=torch.Generator().manual_seed(2))
    for c in range(C):  # rows that point to their class, so that most predictions are right
        head.weight.data[c] += 0.3 * h[y == c].mean(0)
    head.bias.data = torch.linspace(-0.4, 0.4, C)
    same = torch.nn.Identity()
    maps = x[:, :, None, None]

    def shaped(kind: str, p: float) -> torch.Tensor:
        shaping = {"ashp": peer.ash.ash_p, "ashb": peer.ash.ash_b, "ashs": peer.ash.ash_s, "scale": peer.scale.scale}
        return peer.EnergyBased.score(head(shaping[kind](maps, p).flatten(1)))

    logits = head(x)
    spread = float(torch.stack([h[y == c].var(dim=0, correction=0).mean() for c in range(C)]).mean())
    fitted = {
        "mahalanobis": peer.Mahalanobis(same),
        "rmd": peer.RMD(same),
        "knn:k=7": peer.KNN(same, k=7),
        "she": peer.SHE(same, head),
        "fdbd": peer.fDBD(same, head),
        "nci": peer.NCI(same, head),
        "nci:alpha=0.05": peer.NCI(same, head, alpha=0.05),
        "nnguide:k=7": peer.NNGuide(same, head, k=7),
        "vim:dim=10": peer.ViM(same, d=10, w=head.weight, b=head.bias),
        "dice:p=0.7+energy": peer.DICE(same, head.weight, head.bias, p=0.7),
        "gmm:covariance=full,shrink=1e-06": peer.GMM(same, reg=1e-6 * spread),
        "pnml:shrink=1e-12": peer.PNML(same, head),
    }
    with torch.no_grad():
        scores = {
            "msp": peer.MaxSoftmax.score(logits),
            "maxlogit": peer.MaxLogit.score(logits),
            "energy": peer.EnergyBased.score(logits),
            "entropy": peer.Entropy.score(logits),
            "gen:gamma=0.1": peer.GEN.score(logits, gamma=0.1),
            "gen:gamma=0.3,M=3": peer.GEN.score(logits, gamma=0.3, M=3),
            "react:clip=1.5+energy": peer.EnergyBased.score(head(x.clamp(max=1.5))),
            "ashp:p=0.6+energy": shaped("ashp", 0.6),
            "ashb:p=0.65+energy": shaped("ashb", 0.65),
            "ashs:p=0.8+energy": shaped("ashs", 0.8),
            "scale:p=0.8+energy": shaped("scale", 0.8),
            "vra:low=0.6,high=0.95+energy": peer.EnergyBased.score(
                head(torch.where(x < h.quantile(0.6), 0, x.clamp(max=h.quantile(0.95))))
            ),
            "lts:p=0.1+energy": peer.LTS(same, head, p=0.1).predict_features(x),
            **{name: d.fit_features(h, y).predict_features(x) for name, d in fitted.items()},
        }
    gradnorm = peer.GradNorm(head, param_filter=lambda name: name == "weight")
    scores["gradnorm"] = gradnorm.predict(x)
    templates = peer.KLMatching(head)
    scores["klm"] = templates.fit_logits(head(h).detach()).predict_logits(logits.detach())
    scores["openmax:tail=25,alpha=3"] = openmax(head(h).detach(), y, logits.detach())
    temperature = peer.TemperatureScaling(head)
    for _ in range(300):  # one call of its optimiser stops short of the optimum
        temperature.fit_logits(head(h).detach(), y)
    scores["temperature+msp"] = temperature.predict_logits(logits.detach())
    peer.Gram.validation_fraction = 0  # ranges and scale from the same images, as the test has it
    unflatten = torch.nn.Unflatten(1, (6, 2, 2))
    flat_head = torch.nn.Sequential(torch.nn.Flatten(), head)
    gram = peer.Gram(flat_head, [unflatten, torch.nn.ReLU()], C, num_poles_list=[1, 2, 3])
    gram.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(h, head(h).argmax(1)), batch_size=100))
    scores["gram:orders=3"] = gram.predict(x)
    scores["rankfeat+energy"] = peer.RankFeat(unflatten, flat_head).predict(x)
    np.savez_compressed(
        Path(__file__).with_name("peers.npz"),
        h=h.numpy(),
        y=y.numpy(),
        x=x.numpy(),
        weight=head.weight.detach().numpy(),
        bias=head.bias.detach().numpy(),
        **{f"score {name}": -s.detach().numpy().astype(np.float64) for name, s in scores.items()},
    )


if __name__ == "__main__":
    main()
