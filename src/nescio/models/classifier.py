"""Any PyTorch image classifier, seen as a backbone and the linear head that ends it."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, nearest, some
from nescio.core.features import Columns, Features, Head
from nescio.core.needs import Maps, Probe
from nescio.core.stage import Network
from nescio.data.transform import Transform
from nescio.models.heads import decide, read
from nescio.models.split import Split, Taps, split_backbone, tap
from nescio.models.tracing import fold_batch_norms

_TOLERANCE = 1e-3
"""Largest difference between the head's logits and the model's, relative to the logits' scale, that is rounding."""


_FOLDING_TOLERANCE = 1e-4
"""The same for features after folding batch norms."""

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Wraps a classifier without touching it: penultimate features, head, and on demand the feature map.

    The last linear layer (or final 1 × 1 convolution) is found by running the model once on noise; a shallow copy of
    the model, sharing its parameters, gets an identity in its place. The user's model keeps no hook and no change.

    Args:
        model: images ``(B, 3, H, W)`` to logits ``(B, C)``, as a tensor or as an object with ``.logits``.
        transform: how test images are prepared for it.
        name: the architecture, for messages, presets and the bank's key.
        head: the last linear layer's name, where it cannot be found.
        classes: class names in label order, where known.
        heads: what else the network was trained with, by name: each reads its last feature map ``(B, K, H, W)``, in
            probes, or its penultimate features, in every pass.

    Raises:
        InputError: there is no linear head, or the head's logits are not the model's output; the message lists the
            layers and says what to do.
    """

    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        *,
        name: str | None = None,
        head: str | None = None,
        classes: list[str] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        _check_parts(model, transform)
        self.name = name or type(model).__name__
        self.transform = transform
        self.classes = classes
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
        self.body = shallow_copy(model).eval()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.register_buffer("std", torch.tensor(transform.std, device=device), persistent=False)
        noise = self.noise()
        with torch.no_grad():
            logits, linear = _run_and_list_linear_layers(self.body, noise, self.name)
            self.head_name = _choose_head(self.body, linear, head, self.name)
            self.layer = self.body.get_submodule(self.head_name)
            self._replace_head()
            self._check(noise, logits, linear)
        self.heads = nn.ModuleDict(heads or {}).eval()

    def noise(self) -> Tensor:
        """Two images of noise, always the same, of the size that the network sees."""
        side = self.transform.crop
        return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)

    def _replace_head(self) -> None:
        owner, _, attribute = self.head_name.rpartition(".")
        if not self.head_name:  # the model is one linear layer
            self.body = nn.Flatten()
        else:
            setattr(self.body.get_submodule(owner), attribute, nn.Identity())

    def _check(self, noise: Tensor, logits: Tensor, linear: list[str]) -> None:
        ways_out = (
            f"wrap the model so that it returns the logits of a linear layer, or name that layer with head= (--head); "
            f"the last linear layers it runs: {some(linear[-4:])}"
        )
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
        off = (self.head.linear(h) - logits).abs().max() / logits.abs().max().clamp(min=1e-6)
        if not off < _TOLERANCE:
            raise InputError(
                f"{self.name}: the output is not that of its last linear layer '{self.head_name}' (off by "
                f"{float(off):.2g} of its scale; a softmax, a scale or a second head may follow it); {ways_out}"
            )

    @property
    def head(self) -> Head:
        """Weight ``(C, L)`` and bias ``(C,)`` (zeros where the layer has none) of the last linear layer."""
        weight: Tensor = self.layer.weight.detach().flatten(1)  # type: ignore[operator]
        bias = self.layer.bias
        return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach())  # type: ignore[operator]

    @property
    def has_head(self) -> bool:
        """Whether there is a classification head."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.std.device

    def penultimate(self, x: Tensor) -> Tensor:
        """Penultimate features ``(B, L)`` of normalised images ``x (B, 3, H, W)``."""
        return _tensor_of(self.body(x), self.name).flatten(1)

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
            folded = fold_batch_norms(self.body)
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)  # what a pass draws (dropout), it draws alike for both
                exact = self.penultimate(noise)
                torch.manual_seed(0)
                off = (_tensor_of(folded(noise), self.name).flatten(1) - exact).abs().max() / exact.abs().max()
            body = folded if off < _FOLDING_TOLERANCE else copy.deepcopy(self.body)
        except Exception as e:  # noqa: BLE001 - tracing runs the model's own code
            log.debug("%s: batch norms stay as they are (%s)", self.name, e)
            body = copy.deepcopy(self.body)
        for t in (*body.parameters(), *body.buffers()):
            if t.ndim == 4:  # a network may hold others, whose order Module.to would not take
                t.data = t.data.to(memory_format=torch.channels_last)
        return self.changed(lambda _: body.requires_grad_(requires_grad=False))

    def changed(self, change: Callable[[nn.Module], nn.Module]) -> Classifier:
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
        return split_backbone(self.body, self.noise(), self.name)

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
        parts = split_backbone(body, self.noise(), self.name)
        return [part.train() for part in (parts.backbone, parts.pool, parts.neck)]

    @cached_property
    def taps(self) -> Taps:
        """The body as a function that also hands out its feature maps, for probes.

        Raises:
            InputError: the model cannot be traced, has no feature maps, or does something else when it is traced.
        """
        taps, noise = tap(self.body, self.noise(), self.name), self.noise()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            exact = self.penultimate(noise)
            torch.manual_seed(0)
            traced = _tensor_of(taps.rest(taps.maps(noise)[-1]), self.name).flatten(1)
        if not (traced - exact).abs().max() <= _FOLDING_TOLERANCE * exact.abs().max():
            raise InputError(f"{self.name} gives other features when its feature maps are taken on the way")
        return taps

    def probed(self, probes: Mapping[str, Probe]) -> Network:
        """The classifier as a function of images whose features also hold what each probe makes of the feature maps.

        Column ``NAME.i`` of ``aux`` is what probe ``NAME`` made of the i-th map.

        Raises:
            InputError: there are probes, and the model has no feature maps or cannot be traced.
        """
        return Probed(self, probes) if probes else self

    @torch.no_grad()
    def reaction(self) -> Tensor:
        """Penultimate features ``(2, L)`` of noise that is always the same: tells two ``forward`` methods apart."""
        return self.penultimate(self.noise())

    @property
    def fingerprint(self) -> str:
        """A hash of the structure and all weights as they are now."""
        digest = hashlib.blake2b(f"{self.body!r}{self.layer!r}".encode(), digest_size=16)
        for key, t in sorted(self.state_dict().items()):
            digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
            digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class Probed(nn.Module):
    """A classifier that runs probes on its feature maps within the same pass."""

    std: Tensor

    def __init__(self, classifier: Classifier, probes: Mapping[str, Probe]) -> None:
        super().__init__()
        taps = classifier.taps
        self.maps, self.rest = taps.maps, taps.rest
        self.heads = classifier.heads
        self.head = classifier.head
        self.std = classifier.std
        self.probes = probes

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``, with a column per probe and feature map."""
        maps = self.maps(x)

        def rest(fmap: Tensor) -> Tensor:
            return _tensor_of(self.rest(fmap), "the network").flatten(1)

        h = rest(maps[-1])
        read_by_probes = Maps(maps, rest, self.head, dict(self.heads.items()))
        columns = {
            f"{name}.{i}": column.flatten(1)
            for name, probe in self.probes.items()
            for i, column in enumerate(probe(read_by_probes))
        }
        return seen(h, self.head, self.heads, columns)


def seen(h: Tensor, head: Head, heads: nn.ModuleDict, columns: Mapping[str, Tensor] | None = None) -> Features:
    """The record of features ``h (B, L)``: the label, what the heads say of them, and other columns."""
    if h.dtype != head.weight.dtype:  # a network in half precision has a head in float32 here
        h = h.to(head.weight.dtype)
    aux = Columns.of({**read(heads, h, head), **(columns or {})})
    return Features(h, head, decide(heads, h, head).argmax(dim=1), aux=aux)


def shallow_copy(module: nn.Module, memo: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The module tree again, with the same parameter and buffer objects: its parts can be exchanged freely."""
    memo = {} if memo is None else memo
    if module not in memo:
        memo[module] = twin = copy.copy(module)
        for attribute, value in vars(module).items():
            if isinstance(value, dict) and attribute.startswith("_"):  # parameters, buffers, hooks
                object.__setattr__(twin, attribute, copy.copy(value))
        for name, child in vars(module)["_modules"].items():
            twin.add_module(name, child if child is None else shallow_copy(child, memo))
    return memo[module]


def _check_parts(model: object, transform: object) -> None:
    if not isinstance(model, nn.Module) or not isinstance(transform, Transform):
        raise InputError(
            f"a classifier is made of an nn.Module and a nescio.Transform, got {type(model).__name__} and "
            f"{type(transform).__name__}; to load one by its name, call nescio.load_classifier(NAME)"
        )


def _tensor_of(output: Any, name: str) -> Tensor:
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise InputError(f"{name} returns {type(output).__name__}; expected logits, or an object with .logits")
    return output


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _run_and_list_linear_layers(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, list[str]]:
    """Logits, and the names of the linear layers in the order in which they ran."""
    names = {module: n for n, module in model.named_modules()}
    ran: list[str] = []

    def record(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if module in names and _is_linear(module):
            ran.append(names[module])

    handle = nn.modules.module.register_module_forward_hook(record)
    try:
        output = model(x)
    except (RuntimeError, TypeError, ValueError, AssertionError) as e:
        raise InputError(f"{name} cannot be run on images of shape {tuple(x.shape)}: {e}") from None
    finally:
        handle.remove()
    return _tensor_of(output, name).flatten(1), ran


def _choose_head(model: nn.Module, ran: list[str], wanted: str | None, name: str) -> str:
    layers = {n: m for n, m in model.named_modules() if not list(m.children())}
    if wanted is not None:
        if wanted not in layers:
            raise InputError(f"{name} has no layer '{wanted}'{nearest(wanted, layers)}")
        if not _is_linear(layers[wanted]):
            kind = type(layers[wanted]).__name__
            raise InputError(f"layer '{wanted}' of {name} is a {kind}; linear layers it runs: {some(ran)}")
        return wanted
    if not ran:
        listed = some((f"{n} ({type(m).__name__})" for n, m in layers.items()), limit=12)
        raise InputError(f"{name} has no linear head: no linear layer or 1 × 1 convolution ran. Its layers: {listed}")
    return ran[-1]
