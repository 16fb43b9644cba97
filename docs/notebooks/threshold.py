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
# # A threshold with a promise
#
# What split conformal calibration promises, checked by drawing many calibration sets; p-values; a threshold by
# costs; and a test for drift.
# Scores are enough for all of it. It needs `pip install 'nescio[quickstart]'`.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import nescio
from nescio.calibration.conformal import Calibration
from nescio.calibration.cost import Costs
from nescio.calibration.drift import Drift

# %%
x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))  # they come writer by writer
x, y = x[order], y[order]
known = y < 8
x_train, y_train, x_new = x[known][:500], y[known][:500], x[known][500:]
net = MLPClassifier((128, 64), max_iter=500, tol=1e-3, random_state=0).fit(x_train, y_train)


def features(x):
    """What the last layer reads ``(N, 64)``."""
    for W, b in zip(net.coefs_[:-1], net.intercepts_[:-1], strict=True):
        x = np.maximum(x @ W + b, 0)
    return x


knn = nescio.Detector("knn:k=10").fit(features(x_train))
ids, others = knn(features(x_new)), knn(features(x[~known]))
print(len(ids), "ID scores,", len(others), "of 8s and 9s")

# %% [markdown]
# ## One threshold

# %%
calibration = Calibration.fit(ids[:400], accept=0.95)
pred = np.zeros(len(ids), dtype=np.int64)  # the predicted classes; they matter for thresholds by class alone
print("threshold", round(calibration.groups[0].threshold, 3))
print(calibration.promise())
print(f"rejected of the other ID images: {1 - calibration.accepted(ids[400:], pred[400:]).mean():.1%}")

# %% [markdown]
# ## Many calibration sets
# The mean over sets is at most 5 %. A single set may be above it. `confidence=0.9` holds for nine in ten sets.
# The shares are measured on 543 new images, so they vary a little beyond that by themselves.

# %%
rng = np.random.default_rng(0)
shares = {None: [], 0.9: []}
for _ in range(300):
    order = rng.permutation(len(ids))
    for confidence, found in shares.items():
        made = Calibration.fit(ids[order[:400]], accept=0.95, confidence=confidence)
        found.append(1 - made.accepted(ids[order[400:]], pred[400:]).mean())
fig, ax = plt.subplots(figsize=(7, 3))
for confidence, found in shares.items():
    name = f"confidence {confidence}" if confidence else "on average"
    ax.hist(found, bins=30, histtype="step", label=name)
    print(f"{name}: mean {np.mean(found):.1%}, above 5 % in {np.mean(np.array(found) > 0.05):.0%} of the draws")
ax.axvline(0.05, color="grey", linestyle=":")
ax.set(xlabel="share of new ID images rejected", ylabel="draws")
ax.legend()
# %% [markdown]
# ## Never on training images
# A network is surer of the images that it was trained on.

# %%
W, b = net.coefs_[-1], net.intercepts_[-1]
seen, new = (nescio.msp(features(rows) @ W + b) for rows in (x_train, x_new))
wrong = Calibration.fit(seen, accept=0.95)
print(f"a threshold from training images rejects {1 - wrong.accepted(new, pred).mean():.1%} of new ID images")

# %% [markdown]
# ## p-values
# Of ID images they are uniform, whatever the detector. Those of other images are small where the detector works.

# %%
p_id = calibration.p_values(ids[400:], pred[400:])
p_other = calibration.p_values(others, np.zeros(len(others), dtype=np.int64))
for level in (0.01, 0.05, 0.2):
    print(f"p ≤ {level}: {np.mean(p_id <= level):.1%} of new ID images, {np.mean(p_other <= level):.1%} of the others")

# %% [markdown]
# ## A threshold by costs
# With OOD images like those that will come: an accepted one costs ten times as much as a rejected ID image, and
# one image in twenty is OOD.

# %%
point = nescio.operating_point(ids, others, Costs(accept_ood=10, reject_id=1, share_ood=0.05))
print(
    f"threshold {point.threshold:.3f}:",
    f"rejects {point.reject_id:.1%} of ID, accepts {point.accept_ood:.1%} of the others",
)
print(
    f"cost per new image {point.new_cost:.3f}; the better of accepting all and rejecting all: {point.trivial_cost:.3f}"
)

# %% [markdown]
# ## Drift
# A stream of ID images, into which others are mixed after 200.

# %%
drift = Drift(calibration)
stream = np.concatenate([ids[400:600], rng.permutation(np.concatenate([ids[600:700], others[:100]]))])
print(drift.update(stream, np.zeros(len(stream), dtype=np.int64)))
