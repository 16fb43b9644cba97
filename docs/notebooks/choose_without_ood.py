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
# # Choose a detector without OOD images
#
# Stand-ins for OOD images are made from ID validation images: shuffled, blurred, noise. Detectors are ranked by
# how well they tell the two
# apart. At the end we look at real OOD images, to see whether the choice was good. It needs `pip install
# 'nescio[quickstart,pandas]'`.

# %%
import logging

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import nescio

logging.getLogger("nescio").setLevel(logging.ERROR)  # what is left out, and why


def picture(digit):
    """A digit of 8 × 8 as a colour image of 16 × 16."""
    return Image.fromarray((digit.reshape(8, 8) * 15.9).astype(np.uint8)).resize((16, 16)).convert("RGB")


pixels, labels = load_digits(return_X_y=True)
images = [picture(digit) for digit in pixels]
known = np.random.default_rng(0).permutation(np.flatnonzero(labels < 8))  # they come writer by writer
train, val, test = known[:900], known[900:1150], known[1150:]


def labelled(rows):
    return [images[i] for i in rows], labels[rows]


# %%
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 8),
)
x = torch.from_numpy(np.stack([np.asarray(images[i]) for i in train])).permute(0, 3, 1, 2) / 255
x, y = (x - 0.5) / 0.25, torch.from_numpy(labels[train])
optimizer = torch.optim.AdamW(net.parameters(), 0.01)
for _ in range(6):
    for rows in torch.randperm(len(x)).split(50):
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
session = nescio.Session(net, transform="resize=16,crop=16,mean=0.5,std=0.25", workers=0, progress=False)

# %% [markdown]
# ## Among settings of one method

# %%
space = "fm:p=0.3|0.6|0.9+react:q=0.9|0.98+ls+energy"
choice = nescio.tune(session, space, train=labelled(train), val=labelled(val))
for c in choice.candidates:
    print(f"{c.detector:32} AUROC {c.mean('auroc', choice.proxies):.1%}")

# %% [markdown]
# ## Among methods
# `nescio.recommend` takes all of them; here are five.

# %%
methods = ["msp", "energy", "fmls", "knn:k=10", "vim"]
choice = nescio.tune(session, methods, train=labelled(train), val=labelled(val))
for c in choice.candidates:
    print(f"{c.detector:10}", {proxy: f"{c.auroc[proxy]:.1%}" for proxy in choice.proxies})
print("chosen:", choice.best)

# %% [markdown]
# ## Was it a good choice?
# On real OOD images, which took no part in it:

# %%
results = nescio.bench(
    session,
    train=labelled(train),
    id=labelled(test),
    ood={"8 and 9": [images[i] for i in np.flatnonzero(labels >= 8)]},
    detectors=methods,
)
results.frame()[["detector", "fpr95", "auroc"]].sort_values("auroc", ascending=False)
