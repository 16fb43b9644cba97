"""Any PyTorch image classifier, seen as a backbone and the linear head that ends it; or an encoder, which has none."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, Missing, some
from nescio.core.features import NO_HEAD, Features, Head
from nescio.core.needs import Probe
from nescio.core.stage import Network
from nescio.data.preprocess import AnyTransform
from nescio.models import last_layer
from nescio.models.inputs import in_own_type, input_size, spread
from nescio.models.last_layer import shallow_copy
from nescio.models.outputs import Key, Single, has_no_head, key_of, picked, unwrapped
from nescio.models.probed import Probed, seen
from nescio.models.split import Split, Taps, split_backbone, tap
from nescio.models.tracing import fold_batch_norms

NONE = "none"
"""The head's name where there is none, or where the user wants none."""
PROBE = "probe"
"""The head's name where one is to be fitted on training features."""
FITTED = "nescio.probe"
"""The name of a head that was fitted, and of its weights in a file."""
_TOLERANCE = 1e-3
"""Largest difference between the head's logits and the model's, relative to the logits' scale, that is rounding."""
_FOLDING_TOLERANCE = 1e-4
"""The same for features after folding batch norms."""

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Wraps a classifier without touching it: penultimate features, head, and on demand the feature map.

    The last linear layer (or final 1 × 1 convolution) is found by running the model once on noise; a shallow copy of
    the model, sharing its parameters, gets an identity in its place. The user's model keeps no hook and no change.

    A model without a head is an *encoder*: its output is the features, ``head`` is ``NO_HEAD``, and its features have
    neither logits nor a prediction. timm's and transformers' say so themselves (``num_classes=0``); of others it is
    said with ``head="none"``, which also takes a head away that is not wanted. ``with_head`` makes a classifier of it.

    Args:
        model: normalised images ``(B, C, H, W)`` to logits or features, of any type of float. DataParallel and
            ``torch.compile`` around it are taken off.
        transform: how test images are prepared for it; None where only normalised batches are given.
        size: ``(C, H, W)`` of these batches; the transform's by default.
        head: the last linear layer's name, where it cannot be found; ``none`` for an encoder; ``probe`` for one that a
            head is to be fitted to.
        output: which output is meant, where the model returns several: a position in a tuple, a key, an attribute.
        classes: class names in label order, where known.
        name: the architecture, for messages, presets and the bank's key.
        heads: what else the network was trained with, by name: each reads its last feature map ``(B, K, H, W)``, in
            probes, or its penultimate features, in every pass.

    Raises:
        InputError: there is no linear head, or the head's logits are not the model's output; the message lists the
            layers and says what to do.
    """

    std: Tensor
    layer: nn.Module

    def __init__(
        self,
        model: nn.Module,
        transform: AnyTransform | None = None,
        *,
        size: Sequence[int] | None = None,
        head: str | None = None,
        output: Key | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        model = unwrapped(model)
        self.name = name or type(model).__name__
        self._transform = transform
        self.size = input_size(model, transform, size, self.name)
        self.classes = None if classes is None else list(classes)
        self.seen: dict[str, str] = {}
        """Identities of the data that it was trained (``train``, ``outliers``) and chosen (``val``) with."""
        self.opened: dict[str, str] = {}
        """The options of the command line that open it again (``model``, ``weights``, …), where it came from a name."""
        self.objective = ""
        """What it was trained with, as a spec string, where it was trained here."""
        self.recorded: tuple[float, str] | None = None
        """The accuracy that somebody found before, a share in [0, 1], and who: "its training recorded"."""
        self.untrained = False
        """Whether random weights are meant."""
        self.awaits_probe = head == PROBE
        """Whether a head is still to be fitted: ``with_head(fit_probe(features), classes)``."""
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        std = torch.tensor(spread(transform, self.size[0]), device=first.device, dtype=first.dtype)
        self.register_buffer("std", std, persistent=False)
        with torch.no_grad():
            self._find_head(model, head, output)
        self.heads = nn.ModuleDict(heads or {}).eval()

    def _find_head(self, model: nn.Module, wanted: str | None, output: Key | None) -> None:
        """Set body, layer and head_name, and which output is meant."""
        unwanted = wanted in (NONE, PROBE, FITTED)
        self.body = shallow_copy(model).eval()
        noise = self.noise()
        result, linear = last_layer.run(self.body, noise, self.name)
        self.output = key_of(result, output, len(noise), self.name)
        logits = picked(result, self.output).flatten(1)
        self.register_module("layer", None)
        self.head_name = NONE
        if (wanted is None or unwanted) and has_no_head(model, self.output):
            return
        try:
            self.head_name = last_layer.choose(self.body, linear, None if unwanted else wanted, self.name)
            self.layer = self.body.get_submodule(self.head_name)
            self.body = last_layer.without(self.body, self.head_name)
            self._check(noise, logits, linear)
        except InputError:
            if not unwanted:
                raise
            self.body = shallow_copy(model).eval()  # its output is the features
        if unwanted:
            self.layer, self.head_name = None, NONE  # type: ignore[assignment]

    def _check(self, noise: Tensor, logits: Tensor, linear: list[str]) -> None:
        ways_out = (
            f"wrap the model so that it returns the logits of a linear layer, or name that layer: head= (--head); "
            f"{last_layer.ENCODER}; the last linear layers that run: {some(linear[-4:])}"
        )
        ways_out = ways_out if self.output is None else f"name the output that has the logits: output=; {ways_out}"
        weight = self.head.weight
        try:
            h = self.penultimate(noise)
        except RuntimeError:  # a second head still returns logits, which no longer match
            h = logits[:, :0]
        if h.shape[1] != weight.shape[1] or logits.shape != (2, weight.shape[0]):
            raise InputError(
                f"{self.name}: layer '{self.head_name}' ({weight.shape[1]} → {weight.shape[0]}) does not end the "
                f"model, which returns {tuple(logits.shape)}; {ways_out}"
            )
        off = (self.head.linear(h.to(weight)) - logits).abs().max() / logits.abs().max().clamp(min=1e-6)
        if not off < self._rounding(_TOLERANCE):
            raise InputError(
                f"{self.name}: the output differs from that of its last linear layer '{self.head_name}' (by "
                f"{float(off):.2g} of its scale; a softmax, a scale or a second head may follow it); {ways_out}"
            )

    def _rounding(self, tolerance: float) -> float:
        """A tolerance for float32, in the type that the network computes in."""
        return max(tolerance, 8 * torch.finfo(self.noise().dtype).eps)

    @property
    def transform(self) -> AnyTransform:
        """How test images are prepared for it.

        Raises:
            Missing: it was made without one.
            InputError: it gives images of other channels than the network takes.
        """
        if self._transform is None:
            raise Missing(
                f"{self.name} was made for normalised batches; to read images, give their transform: "
                "nescio.Classifier(network, nescio.Transform(…))"
            )
        if (made := self._transform.channels) != self.size[0]:
            raise InputError(
                f"{self.name} takes images with channels={self.size[0]}, but its transform gives channels={made}; give "
                f"another: transform= (--transform crop=…,mean=…,std=…,channels={self.size[0]})"
            )
        return self._transform

    @property
    def has_transform(self) -> bool:
        """Whether it is known how test images are prepared for it."""
        return self._transform is not None

    @property
    def has_head(self) -> bool:
        """Whether there is a classification head; without, it is an encoder."""
        return self.layer is not None

    @property
    def head(self) -> Head:
        """Weight ``(C, L)`` and bias ``(C,)`` (zeros where the layer has none) of the last linear layer, if any."""
        if not self.has_head:
            return NO_HEAD
        weight: Tensor = self.layer.weight.detach().flatten(1)  # type: ignore[operator]
        bias = self.layer.bias
        return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach())  # type: ignore[operator]

    @property
    def published(self) -> tuple[str | None, int | None]:
        """Name and number of classes that published settings are found by; none for a head that was fitted here."""
        if self.head_name == FITTED or not self.has_head:
            return None, None
        return self.name, self.head.n_classes

    def noise(self) -> Tensor:
        """Two images of noise, always the same, of the size and type that the network sees."""
        noise = torch.randn(2, *self.size, generator=torch.Generator().manual_seed(0))
        return in_own_type(self.body, noise.to(self.device))

    def with_head(self, head: Head, classes: Sequence[str] | None = None) -> Classifier:
        """The same network with this head ``(C, L)`` behind its features, such as ``fit_probe`` gives. It is unchanged.

        Raises:
            InputError: there are other than C class names.
        """
        if classes is not None and len(classes) != head.n_classes:
            raise InputError(
                f"the head has {head.n_classes:,} classes, but there are {len(classes):,} names: give one per class"
            )
        layer = nn.Linear(head.weight.shape[1], head.n_classes).requires_grad_(requires_grad=False).to(self.device)
        layer.load_state_dict({"weight": head.weight, "bias": head.bias})
        twin = copy.copy(self)
        object.__setattr__(twin, "_modules", dict(self._modules))
        twin.layer, twin.head_name, twin.awaits_probe = layer, FITTED, False
        twin.classes = None if classes is None else list(classes)
        return twin

    def __repr__(self) -> str:
        what = f"{self.head.n_classes:,} classes" if self.has_head else "no head: an encoder"
        return f"Classifier({self.name}, {what}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.std.device

    def penultimate(self, x: Tensor) -> Tensor:
        """Penultimate features ``(B, L)`` of normalised images ``x (B, 3, H, W)``."""
        return picked(self.body(in_own_type(self.body, x)), self.output).flatten(1)

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``, with the raw prediction and what heads say of them."""
        return seen(self.penultimate(x), self.head, self.heads)

    def named(self, classes: Sequence[str]) -> Classifier:
        """The same classifier with these class names. The original is unchanged."""
        twin = copy.copy(self)
        twin.classes = list(classes)
        return twin

    @torch.no_grad()
    def rewrite_head(self, head: Head) -> None:
        """Other weights for the last linear layer."""
        self.layer.weight.copy_(head.weight.view_as(self.layer.weight))  # type: ignore[operator, arg-type]
        if self.layer.bias is not None:
            self.layer.bias.copy_(head.bias)  # type: ignore[operator]

    def optimised(self) -> Classifier:
        """The same classifier for inference alone: batch norms folded into convolutions, channels last.

        Its features differ from the original's by rounding only, which is checked on noise; a network that cannot be
        traced keeps its batch norms. The original is unchanged.
        """
        noise = self.noise()
        try:
            folded = fold_batch_norms(self._alone(self.body))
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)  # what a pass draws (dropout), it draws alike for both
                exact = self.penultimate(noise)
                torch.manual_seed(0)
                off = (folded(noise).flatten(1) - exact).abs().max() / exact.abs().max()
            body = folded if off < self._rounding(_FOLDING_TOLERANCE) else copy.deepcopy(self.body)
        except Exception as e:  # noqa: BLE001 - tracing runs the model's own code
            log.debug("%s: batch norms stay as they are (%s)", self.name, e)
            body = copy.deepcopy(self.body)
        for t in (*body.parameters(), *body.buffers()):
            if t.ndim == 4:  # a network may hold others, whose order Module.to would not take
                t.data = t.data.to(memory_format=torch.channels_last)
        return self.with_body(lambda _: body.requires_grad_(requires_grad=False))

    def with_body(self, change: Callable[[nn.Module], nn.Module]) -> Classifier:
        """The same classifier with a body that ``change`` makes of a copy of it. The original is unchanged."""
        twin = copy.copy(self)
        object.__setattr__(twin, "_modules", dict(self._modules))
        for stale in ("split", "taps"):
            twin.__dict__.pop(stale, None)
        twin.body = change(shallow_copy(self.body))
        return twin

    @cached_property
    def split(self) -> Split:
        """The body as ``backbone`` → feature map ``(B, K, H, W)`` → ``pool`` → ``neck`` → h, each callable by itself.

        Raises:
            InputError: the model cannot be traced, or has no global pooling that everything after it depends on.
        """
        return split_backbone(self._alone(self.body), self.noise(), self.name)

    def _alone(self, body: nn.Module) -> nn.Module:
        """The body as a function to the features alone."""
        return body if self.output is None else Single(body, self.output)

    def logits_at_positions(self, fmap: Tensor) -> Tensor:
        """The head at every position of a feature map: ``(B, K, h, w) -> (B, h · w, C)``, linear ∘ neck, no dropout."""
        return self.head.linear(self.split.at_positions(fmap))

    def training_body(self, *, split: bool) -> list[nn.Module]:
        """The body in training mode, which shares all parameters and buffers: whole, or as the three parts of a split.

        Raises:
            InputError: as ``split``.
        """
        body = shallow_copy(self.body).train()
        if not split:
            return [body]
        cut = split_backbone(body, self.noise(), self.name)
        return [module.train() for module in (cut.backbone, cut.pool, cut.neck)]

    @cached_property
    def taps(self) -> Taps:
        """The body as a function that also hands out its feature maps, for probes.

        Raises:
            InputError: the model cannot be traced, has no feature maps, or does something else when it is traced.
        """
        taps, noise = tap(self._alone(self.body), self.noise(), self.name), self.noise()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            exact = self.penultimate(noise)
            torch.manual_seed(0)
            traced = taps.rest(taps.maps(noise)[-1]).flatten(1)
        # features of weights that overflowed are alike, too: what scores make of them says so better
        scale = float(exact.nan_to_num(posinf=0, neginf=0).abs().max())
        atol = self._rounding(_FOLDING_TOLERANCE) * scale
        if not torch.isclose(traced, exact, rtol=0, atol=atol, equal_nan=True).all():
            raise InputError(
                f"{self.name} gives different features when its feature maps are recorded; use a detector that reads "
                "no feature maps"
            )
        return taps

    def compiled(self, compiled: Callable[[nn.Module], nn.Module]) -> Classifier:
        """The same classifier with what ``compiled`` makes of its body, a function of images to features.

        The original is unchanged.
        """
        body = self._alone(self.body)
        made = compiled(body)
        return self if made is body else self.with_body(lambda _: made)

    def probed(
        self, probes: Mapping[str, Probe], compiled: Callable[[nn.Module], nn.Module] = lambda maps: maps
    ) -> Network:
        """The classifier as a function of images whose features also hold what each probe makes of the feature maps.

        Column ``NAME.i`` of ``aux`` is what probe ``NAME`` made of the i-th map.

        Args:
            probes: by name.
            compiled: makes another of the function of images to feature maps.

        Raises:
            InputError: there are probes, and the model has no feature maps or cannot be traced.
        """
        if not probes:
            return self
        taps = Taps(compiled(self.taps.maps), self.taps.rest)
        return Probed(taps, probes, self.head, self.heads, self.std)

    @torch.no_grad()
    def reaction(self) -> Tensor:
        """Penultimate features ``(2, L)`` of noise that is always the same: tells two ``forward`` methods apart."""
        return self.penultimate(self.noise())

    @property
    def fingerprint(self) -> str:
        """A hash of the structure and all weights as they are now."""
        output = "" if self.output in (None, "logits") else self.output
        digest = hashlib.blake2b(f"{self.body!r}{self.layer!r}{output}".encode(), digest_size=16)
        for key, t in sorted(self.state_dict().items()):
            digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
            digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
