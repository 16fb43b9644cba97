"""Ways to run a network over images, and which of them a detector reads."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.features import PLAIN_PASS, Features
from nescio.core.needs import Probe
from nescio.core.stage import InputStage, Network
from nescio.models import Classifier
from nescio.models.heads import known_heads

log = logging.getLogger(__name__)


def _unchanged(body: nn.Module) -> nn.Module:
    return body


def _plain(network: Network, x: Tensor) -> Features:
    return network(x)


@dataclass(frozen=True)
class _Staged:
    """What an input stage makes of a batch, with the detector that it belongs to."""

    stage: InputStage
    chain: Detector

    def __call__(self, network: Network, x: Tensor) -> Features:
        return self.stage.run(network, self.chain, x)


@dataclass(frozen=True)
class Pass:
    """A way to run the network over images.

    Attributes:
        key: names the pass within a bank's key, and on every record that it makes.
        features: what it makes of a batch of normalised images.
        prepare: the network's body as this pass runs it, from a copy of it.
        gradients: whether it takes gradients of the network, which PyTorch alone gives.
    """

    key: str
    features: Callable[[Network, Tensor], Features]
    prepare: Callable[[nn.Module], nn.Module] = _unchanged
    gradients: bool = False

    def run(self, network: Network, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``, marked as this pass's."""
        return self.features(network, x).with_fields(network_pass=self.key)

    def to(self, device: torch.device | str) -> Pass:
        """The same for a network on a device."""
        if not isinstance(self.features, _Staged):
            return self
        chain = copy.deepcopy(self.features.chain).to(device)
        return dataclasses.replace(self, features=_Staged(self.features.stage, chain))


PLAIN = Pass(PLAIN_PASS, _plain)


def check_model(detector: Detector, classifier: Classifier) -> None:
    """Refuse a detector whose pass or probes this network cannot serve.

    Raises:
        InputError: the network lacks what they need: batch norms, dropout, feature maps, a head.
    """
    if (detector.needs.head or detector.needs.logits) and not (classifier.has_head or classifier.awaits_probe):
        raise InputError(
            f"{classifier.name} is an encoder without a classification head; fit one on labelled "
            "training images: head='probe' (--head probe)"
        )
    for head in sorted(detector.needs.heads - set(classifier.heads)):
        hint = known_heads()[head].hint()
        raise InputError(f"{classifier.name} was not trained with the head '{head}'; {hint}")
    if detector.input_stage is not None:
        classifier.with_body(detector.input_stage.prepare)
    if detector.needs.probes:
        _ = classifier.taps


def probes_of(detectors: Iterable[Detector]) -> dict[str, Probe]:
    """What all of them want to be computed from feature maps."""
    return {name: probe for d in detectors for name, probe in d.needs.probes.items()}


def servable(specs: Iterable[str], classifier: Classifier, *, trained: bool = True) -> dict[str, Detector]:
    """The detectors that this network can serve, by their specs; what is left out is said.

    Args:
        specs: as a user would write them.
        classifier: the network.
        trained: whether there are training images to fit on.
    """
    found, left = {}, defaultdict[str, list[str]](list)
    for spec in specs:
        detector = Detector(spec, *classifier.published)
        try:
            check_model(detector, classifier)
            if not trained and detector.needs.fitting:
                raise InputError("there are no training images: give train= (--train)")
        except InputError as e:
            left[str(e)].append(spec)
        else:
            found[spec] = detector
    for why, several in left.items():
        log.info("leaving out %s: %s", ", ".join(several), why)
    return found


def training_pass(detector: Detector) -> Pass:
    """The pass that gives the features a detector is fitted on: its own if that is a fixed one, else the plain one."""
    stage = detector.input_stage
    return pass_of(detector) if stage is not None and stage.fixed else PLAIN


def pass_of(detector: Detector, device: torch.device | str = "cpu") -> Pass:
    """The pass that a detector needs, on the network's device; without an input stage, the plain one.

    Unless the pass is a fixed one, the detector must be fitted.
    """
    stage = detector.input_stage
    if stage is None:
        return PLAIN
    # detectors are fitted on banks, and score them, on the CPU; this pass needs the stages where the network is
    there = all(t.device == torch.device(device) for t in detector.buffers())
    chain = detector if stage.fixed or there else copy.deepcopy(detector).to(device)
    return Pass(detector.pass_key, _Staged(stage, chain), stage.prepare, stage.needs.gradients)
