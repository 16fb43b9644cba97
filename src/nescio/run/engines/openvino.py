"""OpenVINO as an engine: Intel's and AMD's processors, Intel's GPUs."""

from __future__ import annotations

import functools
import importlib.util
import threading
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.models import Classifier
from nescio.run.engines.engine import BF16, FLOAT32, FP16, Engine

HINTS = {FLOAT32: "f32", BF16: "bf16", FP16: "f16"}
NEEDED = {BF16: "BF16", FP16: "FP16"}
"""What a device must be capable of for a precision, in OpenVINO's words."""
PIECE = 8
"""Images, at least, that one of several streams takes of a batch."""


@functools.cache
def core() -> Any:
    """OpenVINO's device manager: one for the whole process, never given back.

    Its CPU plugin sets a stack for signals, and sets the one before again when it goes. Of two that do not go in the
    opposite order, one leaves a stack that is gone: the next signal, such as that of a child's end, would kill us.
    """
    import openvino

    return openvino.Core()


class OpenVINOEngine(Engine, name="openvino"):
    """OpenVINO, on the network with batch norms folded. Gradients stay with PyTorch.

    Args:
        device: in OpenVINO's words: ``CPU``, ``GPU``, ``GPU.1``.
    """

    precisions = (FLOAT32, BF16, FP16)
    setup = 1.0

    def __init__(self, *, device: str = "CPU") -> None:
        self.device = device

    def unusable(self, device: torch.device) -> str | None:
        """The package is missing, or the device is none of its own."""
        if importlib.util.find_spec("openvino") is None:
            return "it needs the package openvino: pip install 'nescio[openvino]'"
        if device.type != "cpu":
            return f"it does not run on {device}: device= (--device cpu)"
        known = core().available_devices
        if self.device not in known and self.device.partition(".")[0] not in known:
            return f"it finds no device {self.device} here; there is {', '.join(known)}"
        able = core().get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if NEEDED.get(self.precision, "FP32") not in able:
            return f"{self.device} does not compute in {self.precision} here; it knows {', '.join(able)}"
        return None

    def prepare(self, classifier: Classifier) -> Classifier:
        """As ``Classifier.optimised``."""
        return classifier.optimised()

    def compiled(self, module: nn.Module, example: Tensor) -> nn.Module:
        """The same function by OpenVINO."""
        if any(getattr(m, "draws", False) for m in module.modules()):
            raise InputError("it draws random numbers, which OpenVINO would draw otherwise")
        if any(p.dtype != torch.float32 for p in module.parameters()):
            raise InputError("its weights are not float32")
        try:
            model = converted(module, example)
        except Exception as e:  # noqa: BLE001 - tracing runs the network's own code
            raise InputError(f"{type(e).__name__}: {str(e).strip().splitlines()[0]:.200}") from None
        return _Compiled(model, self.device, HINTS[self.precision])


def converted(module: nn.Module, example: Tensor) -> Any:
    """A function of images as OpenVINO's model of batches of any size.

    Through the frontend itself: ``openvino.convert_model`` takes several times as long and reports its use to Intel.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every size that becomes a constant: results are compared
        script: Any = torch.jit.trace(module.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        traced = torch.jit.freeze(script.eval())
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must live until it is converted
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, *example.shape[1:]])
    return model


class _Compiled(nn.Module):
    """A model of OpenVINO's as a function of tensors. A batch is shared out to streams that run side by side."""

    def __init__(self, model: Any, device: str, hint: str) -> None:
        super().__init__()
        self._model, self._device, self._hint = model, device, hint
        self._requests: dict[int, list[Any]] = {}
        self._lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it."""
        pixels = np.ascontiguousarray(x.detach().cpu().to(torch.float32).numpy())
        with self._lock:
            requests = self._for(len(pixels))
            pieces = np.array_split(pixels, min(len(requests), -(-len(pixels) // PIECE)))
            used = requests[: len(pieces)]
            for request, piece in zip(used, pieces, strict=True):
                request.start_async([piece], share_inputs=True)
            for request in used:
                request.wait()
            outputs = [
                torch.from_numpy(np.concatenate([r.get_output_tensor(i).data for r in used]))
                for i in range(len(self._model.outputs))
            ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _for(self, n: int) -> list[Any]:
        """A request for each stream; more streams for batches that suffice for them."""
        most = 1 if self._device != "CPU" else torch.get_num_threads()
        streams = max(1, min(most, n // PIECE))
        if streams > 1:
            streams = max([streams, *self._requests])
        if streams not in self._requests:
            settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._hint, "NUM_STREAMS": streams}
            if self._device == "CPU":
                settings["INFERENCE_NUM_THREADS"] = most
            made = core().compile_model(self._model, self._device, settings)
            self._requests[streams] = [made.create_infer_request() for _ in range(streams)]
        return self._requests[streams]
