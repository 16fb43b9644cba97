# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which detector?
#
# Many detectors on one set of features: what they need, how they do, and how they are combined. Arrays are
# enough; there is no
# network here but scikit-learn's. It needs `pip install 'nescio[quickstart,pandas]'`.

# %%
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import nescio
from nescio.methods import FM, LS, Energy, ReAct

# %%
x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))  # they come writer by writer
x, y = x[order], y[order]
known = y < 8
x_train, y_train, x_test, y_test = x[known][:1000], y[known][:1000], x[known][1000:], y[known][1000:]
net = MLPClassifier((128, 64), max_iter=500, tol=1e-3, random_state=0).fit(x_train, y_train)


def features(x):
    """What the last layer reads ``(N, 64)``."""
    for W, b in zip(net.coefs_[:-1], net.intercepts_[:-1], strict=True):
        x = np.maximum(x @ W + b, 0)
    return x


head = (net.coefs_[-1].T, net.intercepts_[-1])
noise = np.random.default_rng(0).uniform(0, 16, (300, 64))
train = nescio.FeatureSet(features(x_train), y_train, head=head)
test = nescio.FeatureSet(features(x_test), y_test, head=head)
ood = {
    "8 and 9": nescio.FeatureSet(features(x[~known]), head=head),
    "noise": nescio.FeatureSet(features(noise), head=head),
}

# %% [markdown]
# ## What do they need?

# %%
for spec in ("energy", "knn", "fmls", "vim", "mahalanobis"):
    needs = nescio.Detector(spec).needs
    print(f"{spec:12} head: {needs.head!s:6} training features: {needs.fitting!s:6} labels: {needs.labels}")

# %% [markdown]
# ## How do they do?

# %%
specs = ["msp", "maxlogit", "energy", "gen", "react:q=0.98+energy", "fmls", "knn:k=10", "vim", "mahalanobis", "fdbd"]
results = nescio.evaluate(specs, train=train, id=test, ood=ood)
results.frame().pivot(index="detector", columns="ood", values="auroc").round(1)

# %% [markdown]
# ## Put your own together
# Stages are objects, joined with `+`. A detector prints as the text that makes it again.

# %%
own = FM(p=0.6) + ReAct(q=0.98) + LS() + Energy()
print(own, "=", nescio.Detector(repr(own)))
both = "mean(fmls,knn:k=10)"  # each is standardised on a fifth of the training rows, then averaged
results = nescio.evaluate([own, "knn:k=10", both], train=train, id=test, ood=ood)
results.frame()[["detector", "ood", "fpr95", "auroc"]]

# %% [markdown]
# ## Several values of an option

# %%
specs = [f"knn:k={k}" for k in (1, 5, 10, 50, 200)]
results = nescio.evaluate(specs, train=train, id=test, ood=ood)
results.frame().pivot(index="detector", columns="ood", values="auroc").loc[specs].round(1)

# %% [markdown]
# The OOD sets above are for the final judgement. Do not choose `k` by them: see the notebook on choosing without
# OOD images.
