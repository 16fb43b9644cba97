"""Stages that end a detector with a score: float64, higher means more in-distribution."""

from nescio.score import cosine, fdbd, gen, gradnorm, klm, knn, logits, mahalanobis, nci, nnguide, she, vim

__all__ = ["cosine", "fdbd", "gen", "gradnorm", "klm", "knn", "logits", "mahalanobis", "nci", "nnguide", "she", "vim"]
