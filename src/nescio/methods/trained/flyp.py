"""CLIP's own contrastive loss on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nescio.core.errors import InputError
from nescio.methods.objective import Objective, View, gathered, processes

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier
    from nescio.models.zoo.zeroshot import ZeroShot


class FLYPObjective(Objective, name="flyp"):
    """Fine-tune like you pretrain: images against captions of their classes' names, both towers and scale trained.

    Each image ``x_i`` of a batch of B is given one of its class's captions ``t_i``, drawn evenly. With embeddings at
    length 1, ``z_ij = e^s cos(v(x_i), u(t_j))`` and ``loss = (1/2B) Σ_i [CE(z_i·, i) + CE(z_·i, i)]``. A caption of
    another image of the same class counts as a wrong one, as in the authors' code. The head takes no part: its rows
    are computed again from the text tower whenever the network is evaluated or stored.

    The logged accuracy is the share of images whose nearest caption in the batch is of their class. With several
    processes the captions are those of the whole batch; with gradient accumulation, those of each part.

    Source: Goyal et al., "Finetune Like You Pretrain: Improved Finetuning of Zero-Shot Vision Models", CVPR 2023,
    section 3. Their code pairs each image with every prompt and draws from these pairs, as many batches an epoch as
    here. The recipe ``flyp`` has their settings.
    """

    detector = "mcm"

    captions: Tensor

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """No heads; but the captions, from the classes' names and the model's prompts.

        Raises:
            InputError: the network has no text tower, or the classes have no names.
        """
        from nescio.models.zoo.clip import captions
        from nescio.models.zoo.zeroshot import ZeroShot

        if not isinstance(classifier.body, ZeroShot) or classifier.body.text is None:
            raise InputError(
                f"{classifier.name} has no text tower, which flyp trains; give a CLIP model (--arch clip:NAME)"
            )
        tokens = captions(classifier.name, classifier.classes)
        self.register_buffer("captions", tokens.to(classifier.device), persistent=False)
        classifier.layer.requires_grad_(requires_grad=False)
        return {}

    def before_save(self, classifier: Classifier) -> None:
        """Make the head's rows of the text tower as it is now."""
        with torch.no_grad():
            classifier.layer.weight.copy_(classifier.body.rows(self.captions))  # type: ignore[operator]

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        network: ZeroShot = view.network.body[0]  # type: ignore[assignment]
        own = torch.arange(len(view.labels), device=view.labels.device)
        drawn = torch.randint(self.captions.shape[1], own.shape, device=own.device)
        images, texts = view.h.float(), network.read(self.captions[view.labels, drawn]).float()
        nearest = view.labels[(images @ texts.mT).argmax(dim=1)]
        if processes() > 1:
            own = own + torch.distributed.get_rank() * len(own)
        by_image = network.scale * images @ gathered(texts).mT
        by_text = network.scale * texts @ gathered(images).mT
        right = (nearest == view.labels).float().mean()
        return (cross_entropy(by_image, own) + cross_entropy(by_text, own)) / 2, {"accuracy": right}
