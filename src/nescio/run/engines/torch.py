"""PyTorch as an engine: folded, in lower precision, compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nescio.core.errors import InputError
from nescio.models import Classifier
from nescio.run.engines.engine import BF16, FLOAT32, FP16, TF32, Engine

_TYPES = {BF16: torch.bfloat16, FP16: torch.float16}


class TorchEngine(Engine, name="torch"):
    """PyTorch: batch norms folded into convolutions, channels last; lower precision by autocast."""

    precisions = (FLOAT32, TF32, BF16, FP16)
    forks = True

    @property
    def is_exact(self) -> bool:
        """Folding is compared when it is done."""
        return self.precision == FLOAT32 and type(self) is TorchEngine

    def unusable(self, device: torch.device) -> str | None:
        """TF32 is a format of NVIDIA's GPUs."""
        if self.precision == TF32 and device.type != "cuda":
            return "tf32 needs an NVIDIA GPU: device= (--device cuda), or another precision= (--precision bf16)"
        return None

    def prepare(self, classifier: Classifier) -> Classifier:
        """As ``Classifier.optimised``."""
        return classifier.optimised()

    def compiled(self, module: nn.Module, example: Tensor) -> nn.Module:
        """The same in its precision."""
        if self.precision in _TYPES:
            return _Autocast(module, _TYPES[self.precision])
        return _Products(module, self.precision) if example.device.type == "cuda" else module


class CompiledEngine(TorchEngine, name="compile"):
    """The same through ``torch.compile``: with CUDA graphs on a GPU, with frozen weights on a CPU."""

    setup = 60.0
    forks = False

    def unusable(self, device: torch.device) -> str | None:
        """On a CPU it compiles C++."""
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "it needs a C++ compiler (g++)"
        return super().unusable(device)

    def compiled(self, module: nn.Module, example: Tensor) -> nn.Module:
        """Compile it for the largest batch so far; smaller ones are filled up, so that it is not compiled for each."""
        whole = super().compiled(module, example)
        gpu = example.device.type == "cuda"
        options: dict[str, Any] = {"triton.cudagraphs": True} if gpu else {"freezing": True}
        made = _Filled(torch.compile(whole, dynamic=False, options=options))
        try:
            made(example)
        except Exception as e:  # noqa: BLE001 - the compiler runs the network's own code
            raise InputError(f"torch.compile: {type(e).__name__}: {str(e).strip().splitlines()[0]}") from None
        return made


class _Autocast(nn.Module):
    """A function of images that computes in lower precision and gives float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.low = module, dtype

    def forward(self, x: Tensor) -> object:
        """Run it."""
        with torch.autocast(x.device.type, self.low):
            out = self.module(x)
        return tree_map(Tensor.float, out)


class _Products(nn.Module):
    """A function of images on a GPU whose products are exact float32, or TF32: PyTorch takes TF32 in convolutions."""

    def __init__(self, module: nn.Module, precision: str) -> None:
        super().__init__()
        self.module, self.products = module, "tf32" if precision == TF32 else "ieee"

    def forward(self, x: Tensor) -> object:
        """Run it."""
        with _float32_products(self.products):
            return self.module(x)


@contextmanager
def _float32_products(kind: str) -> Iterator[None]:
    """How NVIDIA's libraries multiply float32: ``ieee`` or ``tf32``."""
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [b.fp32_precision for b in backends]
    try:
        for b in backends:
            b.fp32_precision = kind
        yield
    finally:
        for b, was in zip(backends, before, strict=True):
            b.fp32_precision = was


class _Filled(nn.Module):
    """A function of batches of one size, for smaller ones too."""

    def __init__(self, module: object) -> None:
        super().__init__()
        self._run, self._size = module, 0

    def forward(self, x: Tensor) -> object:
        """Fill the batch up with its last image, run it, and drop what was added."""
        n = len(x)
        self._size = max(self._size, n)
        if n < self._size:
            x = torch.cat([x, x[-1:].expand(self._size - n, *x.shape[1:])])
        # a CUDA graph writes every result to the same place
        return tree_map(lambda t: t[:n].clone(), self._run(x))  # type: ignore[operator]
