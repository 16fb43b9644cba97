"""A detector that is ready for use, as one ONNX graph: images in; logits, score, p-value and verdict out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_choice
from nescio.data.preprocess import AnyTransform
from nescio.data.source import AnySource
from nescio.deploy.deployed import Deployed
from nescio.deploy.file import check_transform
from nescio.deploy.forms import writer_of
from nescio.deploy.graph import IMAGE, LAYOUTS, OUTPUTS, THRESHOLD, Judge
from nescio.deploy.graph_metadata import metadata
from nescio.deploy.lower import FP32, PRECISIONS
from nescio.deploy.recalibration import Images, Lowered, lower
from nescio.deploy.side_by_side import sessions

MOST = 500_000_000
"""Bytes that a detector in a graph may have learned: a bank of 350,000 features of 342, or of 60,000 of 2,048."""
LARGEST = 2_000_000_000
"""Bytes of weights that one file can hold: its format (protobuf) ends at 2 GiB."""
_TOLERANCE = 1e-3
"""Largest difference between the graph's logits and the network's on noise, relative to their scale."""


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
    """Write the network, the detector and its threshold as one graph for any batch size, with a description of itself.

    The graph maps ``image`` to ``logits``, ``score``, ``p_value``, ``accepted`` and, with an OOD head or a calibrator,
    ``p_id``. These are the same numbers as those of ``deployed``, up to rounding. Scores are computed in float64, as
    there. Resizing is not in the graph: a batch holds images of one size, and no ONNX operation gives the same pixels
    as Pillow's antialiased resizing. So the caller resizes and crops as the metadata say.

    An ONNX file has a second input, ``threshold``, float64 with one number for each group of predicted classes (one in
    all without ``per_class``). It is optional: the calibrated threshold is stored as its default.

    In another precision the network alone is lowered, from the normalised image to the penultimate features. This
    changes the scores, so thresholds, p-values and ``p_id`` are calibrated again on the scores that this graph gives
    ``calibrate``. The promise in the file is about this graph, with the share, confidence and classes of ``deployed``.

    Args:
        deployed: as ``fit`` or ``load`` gives it, on the CPU.
        path: its ending chooses the form. ``.onnx``: one ONNX file. ``.xml``: OpenVINO IR, with the weights beside it
            in a ``.bin``. No ending: a folder, the model of that name in a Triton model repository.
        preprocess: ``nchw`` or ``nhwc`` for a graph that takes the pixels of resized and cropped RGB images, uint8
            ``(batch, 3, crop, crop)`` or ``(batch, crop, crop, 3)``, and normalises them itself. Without it, the graph
            takes normalised float32 ``(batch, 3, crop, crop)``.
        precision: of the network: ``fp32``, ``fp16`` or ``int8``.
        calibrate: held-out ID images; required for ``fp16`` and ``int8``, refused for ``fp32``. ``int8`` takes the
            ranges of its maps from some of them and does not calibrate on these.
        ood: OOD images by name, to measure the AUROC lost on. By default they are made from ``calibrate``.
        workers: decoding processes; one per core, at most 8, by default.
        progress: show a bar on a terminal.

    Returns:
        what ``fp16`` or ``int8`` lost; None for ``fp32``.

    Raises:
        InputError: a stage cannot be part of a graph, images are prepared by code, the detector or the file would be
            too large, the network cannot be traced, a package is missing, the ending of ``path`` is none of these, or
            images do not fit the precision or the guarantee.
    """
    if not isinstance(deployed, Deployed):
        raise InputError(f"export takes what nescio.load(FILE) or nescio.fit(…) gives, got {type(deployed).__name__}")
    check_choice("precision", precision, PRECISIONS)
    if preprocess is not None:
        check_choice("preprocess", preprocess, LAYOUTS)
    write = writer_of(path)
    _refuse(deployed)
    _check_packages()
    options: dict[str, Any] = {"preprocess": preprocess, "workers": workers, "progress": progress}
    model, deployed, lowered = _made(deployed, precision, calibrate, ood, **options)
    size = model.ByteSize()
    descriptions = {output.name: OUTPUTS[output.name] for output in model.graph.output}
    for key, value in metadata(deployed, descriptions, preprocess, precision).items():
        model.metadata_props.add(key=key, value=value)
    write(model, Path(path))
    if lowered is None:
        return None
    described = model.ByteSize() - size  # the float32 file would have as much
    return dataclasses.replace(lowered, sizes=tuple(size + described for size in lowered.sizes))


def _made(
    deployed: Deployed,
    precision: str,
    calibrate: AnySource | None,
    ood: Mapping[str, AnySource] | None,
    *,
    preprocess: str | None,
    workers: int | None,
    progress: bool,
) -> tuple[Any, Deployed, Lowered | None]:
    """The graph, the detector that it computes, and what a lower precision lost."""
    if precision == FP32:
        if calibrate is not None or ood:
            raise InputError(
                "a graph in fp32 keeps its calibration and loses nothing, so it takes no images: leave out calibrate= "
                "and ood= (--calibrate, --ood), or choose fp16 or int8"
            )
        return _graph(Judge(deployed, preprocess)), deployed, None
    if calibrate is None:
        raise InputError(
            f"a graph in {precision} gives other scores, so its threshold must be calibrated again: "
            "give held-out ID images, calibrate= (--calibrate)"
        )
    return lower(
        deployed,
        Images.of(deployed, precision, calibrate, ood),
        lambda d: _graph(Judge(d, preprocess), marked=True),
        precision,
        layout=preprocess,
        workers=workers,
        progress=progress,
    )


def _graph(judge: Judge, *, marked: bool = False) -> Any:
    """The graph of a judge, checked against it."""
    size = sum(t.numel() * t.element_size() for t in judge.state_dict().values())
    if size > LARGEST:
        raise InputError(f"network and detector take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB")
    example = _noise(judge.transform, judge.layout)
    judge.marked = marked
    threshold = judge.verdict.thresholds.clone()
    model = _converted(judge.eval(), judge.outputs, {IMAGE: example, THRESHOLD: threshold}, judge.name)
    _store_threshold(model, threshold)
    _check(sessions(model)[0], judge, example, judge.name)
    return model


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


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise InputError(f"export needs the package {e.name}: pip install 'nescio[onnx]'") from None


@torch.no_grad()
def _converted(judge: nn.Module, outputs: Sequence[str], inputs: Mapping[str, Tensor], name: str) -> Any:
    """The graph of a function whose first input is a batch of images, as ONNX's own record."""
    try:
        dynamic = ({0: torch.export.Dim("batch")}, *(None for _ in range(len(inputs) - 1)))
        traced = torch.export.export(judge, (*inputs.values(),), dynamic_shapes=dynamic, strict=False)
        program: Any = torch.onnx.export(
            traced, dynamo=True, input_names=list(inputs), output_names=outputs, external_data=False, verbose=False
        )
    except Exception as e:  # the model's own code may raise anything when it is traced
        first = str(e).strip().partition("\n")[0]
        raise InputError(f"{name} cannot be made a graph: {type(e).__name__}: {first}") from e
    return _tidied(program.model)


def _tidied(model: Any) -> Any:
    """The graph without the sources that tracing noted for each operation: they hold paths of this machine."""
    import onnx_ir

    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    for value in (proto.graph.input[0], *proto.graph.output):
        value.doc_string = OUTPUTS.get(value.name, "")
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _store_threshold(model: Any, threshold: Tensor) -> None:
    """Make the calibrated threshold the default of its input: an input that is also stored need not be given."""
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(threshold.numpy(), THRESHOLD))


def _noise(transform: AnyTransform, preprocess: str | None) -> Tensor:
    """Three images that the graph could be given, always the same."""
    g, sides = torch.Generator().manual_seed(0), (transform.channels, transform.crop, transform.crop)
    if preprocess is None:
        return torch.randn(3, *sides, generator=g)
    shape = (3, *sides[1:], sides[0]) if preprocess == "nhwc" else (3, *sides)
    return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)


@torch.no_grad()
def _check(session: Any, judge: Judge, example: Tensor, name: str) -> None:
    """Refuse a graph whose logits differ from the network's: tracing follows one path through the model's code."""
    for images in (example, example[:1]):
        logits = judge(images)[0]
        (found,) = session.run(["logits"], {IMAGE: images.numpy()})
        off = (torch.from_numpy(found) - logits).abs().max() / logits.abs().max().clamp(min=1e-6)
        if not off < _TOLERANCE:
            raise InputError(f"the graph of {name} gives other logits than the network (off by {float(off):.2g})")
