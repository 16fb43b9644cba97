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
# # Get started: does my classifier know this image?
#
# A small network learns the handwritten digits 0 to 7. Then it sees 8s and 9s, and patches of photographs. It
# names one of its
# eight classes for each of them. A detector says which images are not like the training images.
#
# It needs `pip install 'nescio[quickstart,pandas]'` and runs in a few seconds on a CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

import nescio

# %% [markdown]
# ## The data
# Images of 8 × 8 pixels in [0, 1]: `(N, 1, 8, 8)`.

# %%
pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(pixels))  # they come writer by writer
pixels, labels = pixels[order], labels[order]
x = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
y = torch.from_numpy(labels)
known = y < 8
x_train, y_train, x_test, y_test = x[known][:700], y[known][:700], x[known][700:], y[known][700:]

grey = np.stack([photo.mean(axis=2) for photo in load_sample_images().images]) / 255
rng = np.random.default_rng(0)
corners = zip(rng.integers(2, size=300), rng.integers(400, size=300), rng.integers(600, size=300), strict=True)
patches = np.stack([grey[i, top : top + 8, left : left + 8] for i, top, left in corners])
others = {"8 and 9": x[~known], "photographs": torch.from_numpy(patches).float()[:, None]}

# %% [markdown]
# ## The network
# Plain PyTorch: nescio takes any `nn.Module` from images to logits.

# %%
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 8),
)
optimizer = torch.optim.AdamW(net.parameters(), 0.01)
for _ in range(15):
    for rows in torch.randperm(len(x_train)).split(50):
        loss = nn.functional.cross_entropy(net(x_train[rows]), y_train[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()
accuracy = (net(x_test).argmax(dim=1) == y_test).float().mean().item()
print(f"right for {accuracy:.1%} of the test images")

# %% [markdown]
# ## A table
# A `Session` runs the network once over each set. `evaluate` judges any number of detectors on the features.

# %%
session = nescio.Session(net)
train, test = session.features((x_train, y_train)), session.features((x_test, y_test))
ood = {name: session.features(images) for name, images in others.items()}
results = nescio.evaluate(["msp", "energy", "fmls", "knn:k=10"], train=train, id=test, ood=ood)
results.frame()[["detector", "ood", "fpr95", "auroc"]]

# %% [markdown]
# FPR95: the share of OOD images that are accepted when 95 % of the ID images are; lower is better. AUROC: how
# often an ID image scores above an
# OOD image; higher is better. Both are percentages here.
#
# ## Scores
# A higher score means more like the training images.

# %%
detector = nescio.Detector("knn:k=10").fit(train)
fig, ax = plt.subplots(figsize=(7, 3))
for name, features in {"digits 0 to 7": test, **ood}.items():
    ax.hist(np.asarray(detector(features)), bins=40, histtype="step", density=True, label=name)
ax.set(xlabel="score", ylabel="density")
ax.legend()
# %% [markdown]
# ## A decision
# The threshold comes from ID images that nothing was fitted on: here the first 350 test images.

# %%
from nescio.calibration.conformal import Calibration

calibration = Calibration.fit(np.asarray(detector(test.rows(slice(0, 350)))), accept=0.95)
print(calibration.promise())
for name, features in {"digits 0 to 7": test.rows(slice(350, None)), **ood}.items():
    accepted = calibration.accepted(np.asarray(detector(features)), features.pred)
    print(f"{name}: {accepted.mean():.1%} accepted")
