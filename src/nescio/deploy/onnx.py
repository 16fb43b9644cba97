"""A detector that is ready for use as one ONNX graph: image in; logits, score, p-value and verdict out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_choice
from nescio.core.files import whole
from nescio.data.preprocess import AnyTransform
from nescio.data.source import AnySource
from nescio.deploy.deployed import Deployed
from nescio.deploy.file import check_transform, record
from nescio.deploy.graph import LAYOUTS, OUTPUTS, Judge
from nescio.deploy.lower import FP32, PRECISIONS
from nescio.deploy.recalibration import Images, Lowered, lower

FORMAT = "nescio-onnx/1"
MOST = 500_000_000
"""Bytes that a detector in a graph may have learned: a bank of 350,000 features of 342, or of 60,000 of 2,048."""
LARGEST = 2_000_000_000
"""Bytes of weights that one file can hold: what it is made of (protobuf) ends at 2 GiB."""
_TOLERANCE = 1e-3
"""Largest difference of the graph's logits from the network's on noise, relative to their scale, that is rounding."""


def export(
    deployed: Deployed,
    path: str | Path,
    *,
    preprocess: str | None = None,
    precision: str = FP32,
    calibrate: AnySource | None = None,
    ood: Mapping[str, AnySource] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Lowered | None:
    """Write a detector, its threshold and the network as one ONNX file for any batch size; what it is goes with it.

    The graph maps ``image`` to ``logits``, ``score``, ``p_value``, ``accepted`` and, with an OOD head or a calibrator,
    ``p_id``: the same numbers as ``deployed`` up to rounding. Scores are computed in float64, as there. Resizing is
    not in the graph: a batch is images of one size, and no ONNX operation gives the same pixels as Pillow's antialiased
    resizing, so the caller resizes and crops as the file's metadata say.

    With another precision the network alone is lowered, from the normalised image to the penultimate features. Its
    scores are others, so thresholds, p-values and ``p_id`` are calibrated anew, as this graph scores ``calibrate``:
    the promise in the file is of this graph, with the share, confidence and classes of ``deployed``.

    Args:
        deployed: as ``fit`` or ``load`` gives it, on the CPU.
        path: usually ends in ``.onnx``.
        preprocess: ``nchw`` or ``nhwc`` for a graph that takes the pixels of resized and cropped RGB images, uint8
            ``(batch, 3, crop, crop)`` or ``(batch, crop, crop, 3)``, and normalises them itself; without it, the graph
            takes normalised float32 ``(batch, 3, crop, crop)``.
        precision: of the network: ``fp32``, ``fp16`` or ``int8``.
        calibrate: held-out ID images, needed for ``fp16`` and ``int8`` and for these alone. ``int8`` takes the ranges
            of its maps from some of them, which calibrate nothing.
        ood: OOD images by name, to measure the AUROC lost on; without them, stand-ins made of ``calibrate``.
        workers: decoding processes; one per core, at most 8, by default.
        progress: show a bar on a terminal.

    Returns:
        what ``fp16`` or ``int8`` lost.

    Raises:
        InputError: a stage cannot be part of a graph, images are prepared by code, the detector or the file would be
            too large, the network cannot be traced, the packages that this needs are not there, or images do not fit
            the precision or the guarantee.
    """
    if not isinstance(deployed, Deployed):
        raise InputError(f"export takes what nescio.load(FILE) or nescio.fit(…) gives, got {type(deployed).__name__}")
    check_choice("precision", precision, PRECISIONS)
    if preprocess is not None:
        check_choice("preprocess", preprocess, LAYOUTS)
    _refuse(deployed)
    runtime = _imported()
    lowered = None
    if precision == FP32:
        if calibrate is not None or ood:
            raise InputError("a graph in fp32 keeps its calibration and loses nothing: give images with fp16 or int8")
        model = _graph(Judge(deployed, preprocess), runtime)
    else:
        if calibrate is None:
            raise InputError(
                f"a graph in {precision} gives other scores, so its threshold must be calibrated anew: "
                "give held-out ID images (--calibrate)"
            )
        images = Images.of(deployed, precision, calibrate, ood)
        model, deployed, lowered = lower(
            deployed,
            images,
            lambda d: _graph(Judge(d, preprocess), runtime, marked=True),
            precision,
            layout=preprocess,
            workers=workers,
            progress=progress,
        )
    descriptions = {output.name: OUTPUTS[output.name] for output in model.graph.output}
    for key, value in metadata(deployed, descriptions, preprocess, precision).items():
        model.metadata_props.add(key=key, value=value)
    with whole(Path(path)) as partial:
        partial.write_bytes(model.SerializeToString())
    return lowered


def _graph(judge: Judge, runtime: Any, *, marked: bool = False) -> Any:
    """The graph of a judge, checked against it."""
    size = sum(t.numel() * t.element_size() for t in judge.state_dict().values())
    if size > LARGEST:
        raise InputError(f"network and detector take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB")
    example = _noise(judge.transform, judge.layout)
    judge.marked = marked
    model = _converted(judge.eval(), judge.outputs, example, judge.name)
    _check(runtime.InferenceSession(model.SerializeToString()), judge, example, judge.name)
    return model


def metadata(
    deployed: Deployed, outputs: Mapping[str, str], preprocess: str | None = None, precision: str = FP32
) -> dict[str, str]:
    """What goes with the graph, by name: text that whoever opens it must know, and ``about``, JSON with all else."""
    about = record(deployed, embedded=True)
    model, calibration, transform = about["model"], about["calibration"], deployed.classifier.transform
    side, channels = transform.crop, transform.channels
    shape = f"batch, {side}, {side}, {channels}" if preprocess == "nhwc" else f"batch, {channels}, {side}, {side}"
    kind = "float32 ({}): pixels in [0, 1] less mean, by std" if preprocess is None else "uint8 ({}): pixels"
    colour = "grey" if channels == 1 else "RGB"
    return {
        "format": FORMAT,
        "model": model["name"],
        "classes": json.dumps(model["classes"] or model["n_classes"], ensure_ascii=False),
        "transform": model["transform"],
        "input": f"{kind.format(shape)}, {colour}, resized (antialiased) and cropped as 'transform' says",
        "outputs": json.dumps(outputs),
        "precision": precision,
        "detector": about["detector"]["spec"],
        "thresholds": json.dumps([{k: g[k] for k in ("classes", "threshold", "n")} for g in calibration["groups"]]),
        "promise": calibration["promise"],
        "about": json.dumps(about, ensure_ascii=False),
    }


def _refuse(deployed: Deployed) -> None:
    check_transform(deployed.classifier)
    detector = deployed.detector
    why = detector.unexportable()
    if why is not None:
        raise InputError(f"detector '{detector}' cannot be exported: {why}")
    if detector.size > MOST:
        raise InputError(
            f"detector '{detector}' holds {detector.size / 1e6:,.0f} MB of what it learned, and a graph takes "
            f"{MOST / 1e6:,.0f} MB; fit one that keeps less (knn:alpha=0.1)"
        )
    if deployed.classifier.device.type != "cpu":
        raise InputError("a graph is made on the CPU: load the file with device='cpu'")


def _imported() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise InputError(f"export needs the package {e.name}: pip install 'nescio[onnx]'") from None
    return onnxruntime


@torch.no_grad()
def _converted(judge: nn.Module, outputs: Sequence[str], example: Tensor, name: str) -> Any:
    """The graph of a function of images, as ONNX's own record."""
    try:
        batch = torch.export.Dim("batch")
        traced = torch.export.export(judge, (example,), dynamic_shapes=({0: batch},), strict=False)
        program: Any = torch.onnx.export(
            traced, dynamo=True, input_names=["image"], output_names=outputs, external_data=False, verbose=False
        )
    except Exception as e:  # whatever the model's own code raises when it is traced
        first = str(e).strip().partition("\n")[0]
        raise InputError(f"{name} cannot be made a graph: {type(e).__name__}: {first}") from e
    return _tidied(program.model)


def _tidied(model: Any) -> Any:
    """Without what tracing left: the source of each operation, with paths of this machine."""
    import onnx_ir

    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = OUTPUTS.get(value.name, "")
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _noise(transform: AnyTransform, preprocess: str | None) -> Tensor:
    """Three images that the graph could be given, always the same."""
    g, sides = torch.Generator().manual_seed(0), (transform.channels, transform.crop, transform.crop)
    if preprocess is None:
        return torch.randn(3, *sides, generator=g)
    shape = (3, *sides[1:], sides[0]) if preprocess == "nhwc" else (3, *sides)
    return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)


@torch.no_grad()
def _check(session: Any, judge: Judge, example: Tensor, name: str) -> None:
    """Refuse a graph whose logits are not the network's: tracing follows one way through the model's code."""
    for images in (example, example[:1]):
        logits = judge(images)[0]
        (found,) = session.run(["logits"], {"image": images.numpy()})
        off = (torch.from_numpy(found) - logits).abs().max() / logits.abs().max().clamp(min=1e-6)
        if not off < _TOLERANCE:
            raise InputError(f"the graph of {name} gives other logits than the network (off by {float(off):.2g})")
