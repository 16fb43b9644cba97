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
# # Your own model and weights
#
# From a network that nescio has never seen, and a file of its weights, to a file that gives verdicts.
# It needs `pip install 'nescio[quickstart,pandas]'`.

# %%
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import nescio

# %% [markdown]
# ## A third party's code and weights
# In your work, this is somebody's repository and checkpoint.


# %%
class TheirNet(nn.Module):
    def __init__(self, width=32, classes=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        h = self.block(self.stem(x)).mean(dim=(2, 3))
        return self.fc(h), h  # the logits, and an embedding


def picture(digit):
    """A digit of 8 × 8 as a colour image of 16 × 16."""
    return Image.fromarray((digit.reshape(8, 8) * 15.9).astype(np.uint8)).resize((16, 16)).convert("RGB")


pixels, labels = load_digits(return_X_y=True)
images = [picture(digit) for digit in pixels]
known = np.random.default_rng(0).permutation(np.flatnonzero(labels < 8))  # they come writer by writer
train, held_out, new = known[:900], known[900:1200], known[1200:]

torch.manual_seed(0)
x = torch.from_numpy(np.stack([np.asarray(images[i]) for i in train])).permute(0, 3, 1, 2) / 255
x, y = (x - 0.5) / 0.25, torch.from_numpy(labels[train])
net = TheirNet()
optimizer = torch.optim.AdamW(net.parameters(), 0.01)
for _ in range(6):
    for rows in torch.randperm(len(x)).split(50):
        loss = nn.functional.cross_entropy(net(x[rows])[0], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save({"state_dict": net.state_dict()}, "their_weights.pth")

# %% [markdown]
# ## Load it, and say how images are prepared

# %%
net = TheirNet()
net.load_state_dict(torch.load("their_weights.pth", weights_only=True)["state_dict"])
transform = nescio.Transform(resize=16, crop=16, mean=(0.5,) * 3, std=(0.25,) * 3)
names = [f"digit {i}" for i in range(8)]
session = nescio.Session(net, transform=transform, classes=names, workers=0, progress=False)
print(session.classifier)
print("head:", session.classifier.head_name, "· logits are output", session.classifier.output)

# %% [markdown]
# nescio ran it once on noise. It found the last linear layer and checked that this layer's logits are the first
# output.
#
# ## Judge detectors
# Images may be PIL images, with their labels beside them.

# %%
features = session.features(([images[i] for i in train], labels[train]))
test = session.features(([images[i] for i in new], labels[new]))
others = {"8 and 9": session.features([images[i] for i in np.flatnonzero(labels >= 8)])}
print(f"right for {test.accuracy:.1%}")
results = nescio.evaluate(["msp", "energy", "fmls", "knn:k=10"], train=features, id=test, ood=others)
results.frame()[["detector", "ood", "fpr95", "auroc"]]

# %% [markdown]
# ## A file that gives verdicts

# %%
deployed = nescio.fit(
    session,
    "knn:k=10",
    train=([images[i] for i in train], labels[train]),
    calibrate=[images[i] for i in held_out],
)
deployed.save("digits.nescio")
print(deployed.calibration.promise())

# %% [markdown]
# A file does not say which code to run, so give the network again when you load it.

# %%
digits = nescio.load("digits.nescio", model=TheirNet)
for i in [*new[:3], *np.flatnonzero(labels >= 8)[:3]]:
    (verdict,) = digits(images[i])
    print(labels[i], "→", verdict.label if verdict.accepted else "I do not know", f"(p-value {verdict.p_value:.3f})")
