"""Scores of ``oodeel`` 0.4.0 on the features of ``peers.npz``, for ``test_peers.py``.

    python -m venv peers && peers/bin/pip install torch oodeel==0.4.0 && peers/bin/python make_oodeel_fixture.py

Run ``make_peer_fixture.py`` first. Rewrites ``oodeel.npz`` beside this file, with the sign of the scores turned. Its
detectors want a network: here it is two reshapes, which are the layers of a multi-layer method, and the head. Left out:
its ViM centres the features on their mean, and its Gram takes roots before it sums, unlike the papers' code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from oodeel import methods as peer
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent


class Network(torch.nn.Module):
    """Features in, logits out, with layers that can be named: the maps of a probe, the features, the head."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.first = torch.nn.Unflatten(1, (6, 2, 2))
        self.second = torch.nn.Flatten()
        self.head = torch.nn.Linear(weight.shape[1], weight.shape[0])
        self.head.weight.data, self.head.bias.data = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)))


def main() -> None:
    with np.load(HERE / "peers.npz", allow_pickle=False) as file:
        h, y, x, weight, bias = (torch.from_numpy(file[k]) for k in ("h", "y", "x", "weight", "bias"))
    network = Network(weight, bias).eval()
    train = DataLoader(TensorDataset(h, y), batch_size=50)
    test = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.int64)), batch_size=50)
    scores = {}

    def run(spec: str, detector: object, layers: list[str] | None = None, **options: object) -> None:
        detector.fit(network, fit_dataset=train, feature_layers_id=layers or [], head_layer_id="head", **options)
        scores[spec] = -np.asarray(detector.score(test)[0], dtype=np.float64)

    run("maxlogit", peer.MLS(output_activation="linear"))
    run("msp", peer.MLS(output_activation="softmax"))
    run("energy", peer.Energy())
    run("entropy", peer.Entropy())
    run("gen:gamma=0.1", peer.GEN(gamma=0.1, k=6))
    run("react:q=0.9+energy", peer.Energy(use_react=True, react_quantile=0.9))
    run("knn:k=7", peer.DKNN(nearest=7), ["second"])
    run("mahalanobis", peer.Mahalanobis(eps=0.0), ["second"])
    run("rmd", peer.RMDS(eps=0.0), ["second"])
    run("multimahalanobis", peer.Mahalanobis(eps=0.0), ["first", "second"])
    np.savez_compressed(HERE / "oodeel.npz", **{f"score {name}": s for name, s in scores.items()})


if __name__ == "__main__":
    main()
