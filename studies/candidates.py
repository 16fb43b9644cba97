"""Changes to SSOD that are on trial. One that helps on every OOD set, without looking at them, becomes an option."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nescio.methods.background import class_confidence, sure_positions
from nescio.methods.objective import View
from nescio.methods.trained.ssod import SSODObjective
from nescio.models import Classifier


class Correct(SSODObjective, name="ssod-correct"):
    """Only images that are classified right lend patches: where the whole is misread, no patch is a background."""

    def label(self, view: View) -> tuple[Tensor, Tensor]:
        """Labels, none in images that are misread."""
        right = (view.logits.argmax(dim=1) == view.labels)[:, None]
        is_id, is_ood = super().label(view)
        return is_id & right, is_ood & right


class Detached(SSODObjective, name="ssod-detached"):
    """The OOD head reads the features and does not change them: the classifier is that of cross entropy."""

    def read(self, head: nn.Module, view: View, is_id: Tensor, is_ood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits without gradient for the backbone."""
        return head(view.fmap.detach()).flatten(1).float(), is_id, is_ood


class Pooled(SSODObjective, name="ssod-pooled"):
    """The OOD head is trained on what it reads at test time: pooled features, of the ID and of the OOD patches."""

    def read(self, head: nn.Module, view: View, is_id: Tensor, is_ood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two logits per image (the head is linear: those of the means), each with its label where it exists."""
        z = head(view.fmap).flatten(1).float()
        means = [(z * kind).sum(dim=1) / kind.sum(dim=1).clamp(min=1) for kind in (is_id, is_ood)]
        has_id, has_ood = is_id.any(dim=1), is_ood.any(dim=1)
        none = torch.zeros_like(has_id)
        return torch.stack(means, dim=1), torch.stack([has_id, none], dim=1), torch.stack([none, has_ood], dim=1)


class Teacher(SSODObjective, name="ssod-teacher"):
    """An average of the classifier over the steps (decay 0.99) labels the patches: steadier than the classifier itself.

    The average begins anew where a run is resumed.
    """

    def label(self, view: View) -> tuple[Tensor, Tensor]:
        """Labels by the average, which first takes a step towards the classifier."""
        classifier = view.network.at_rest[0]
        if not hasattr(self, "average"):
            self.average: list[Classifier] = [copy.deepcopy(classifier)]  # in a list: no part of the objective's state
        teacher = self.average[0]
        with torch.no_grad():
            ours, theirs = teacher.state_dict(), classifier.state_dict()
            for name, tensor in ours.items():
                tensor.lerp_(theirs[name], 0.01) if tensor.is_floating_point() else tensor.copy_(theirs[name])
            logits = teacher.logits_at_positions(teacher.split.backbone(view.x))
        return sure_positions(class_confidence(logits, view.labels), self.gamma)
