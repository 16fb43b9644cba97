"""Options that several commands take, and what is made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.core.errors import InputError, check_at_least

if TYPE_CHECKING:
    from nescio.core.progress import Clock
    from nescio.models import Classifier
    from nescio.run.session import Session


def taking(*options: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives a command several options at once, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def out_option(text: str, **more: Any) -> Callable[..., Any]:
    """``-o``, ``--out``: where results go. The command checks it before its work (``nescio.core.outputs``)."""
    return click.option("-o", "--out", type=click.Path(path_type=Path), help=text, **more)


def ood_option(text: str) -> Callable[..., Any]:
    """``--ood``: OOD sets by name."""
    return click.option("--ood", multiple=True, metavar="NAME=SET", help=text)


data_root_option = click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Folder with the data sets of the published benchmarks.",
)


def _here(_ctx: click.Context, _argument: click.Parameter, file: Path) -> Path:
    """A file on this machine; one on the hub is downloaded."""
    if not str(file).startswith("hf:"):
        return file
    from nescio.deploy.hub import fetched

    return fetched(file)


file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False), callback=_here)
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), help="Images per step.  [default: 32; on a GPU 256]"
)
workers_option = click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core]")
devices_option = click.option(
    "--devices",
    default="1",
    show_default=True,
    metavar="N|auto|ray",
    callback=lambda _ctx, _option, text: int(text) if text.removeprefix("-").isdecimal() else text,
    help="Processes that run the network, one per GPU, or with a share of the cores; auto: all GPUs, or one per NUMA "
    "node. For several hosts use torchrun or ray, with --cache on a folder that all share.",
)
max_bad_option = click.option(
    "--max-bad", default=0.01, show_default=True, help="Largest allowed share of unreadable images."
)
transform_option = click.option(
    "--transform",
    help="Changes to the model's test transform, e.g. resize=256,crop=224,mean=0.485,0.456,0.406,std=0.5. "
    "mean=NAME sets mean and std: imagenet, cifar10, cifar100, clip or half.",
)
network_options = taking(
    click.option("--model", help="The model, as in nescio bench, if FILE does not name it."),
    click.option(
        "--weights", type=click.Path(path_type=Path), help="The network's weights, if FILE does not have them."
    ),
)
extraction_options = taking(
    click.option(
        "--cache", type=click.Path(path_type=Path), help="Folder for cached features.  [default: the user's cache]"
    ),
    click.option(
        "--bank-dtype",
        default="float32",
        show_default=True,
        help="Type of cached features: float32, or float16 for half the disk space.",
    ),
    devices_option,
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="How to run the network: torch, compile, openvino, or the fastest in a short trial.",
    ),
    click.option(
        "--precision",
        default="float32",
        show_default=True,
        help="What the network computes in: float32, or bf16, fp16, tf32, which are faster and change the features.",
    ),
    batch_size_option,
    workers_option,
    max_bad_option,
)

_NAMES = "nescio.classes"
"""Where a command's context keeps the file that its class names are from."""


def _classes(ctx: click.Context, _option: click.Parameter, text: str | None) -> int | list[str] | None:
    """A number, or the names in a file, a line each."""
    if text is None:
        return None
    if text.lstrip("-").isdecimal():
        return check_at_least("--classes", int(text), 1)
    file = Path(text).expanduser()
    if not file.is_file():
        raise InputError(f"--classes {text} is neither a number nor a file of class names, one per line")
    names = [line.strip() for line in _text(file).rstrip().splitlines()]
    if not all(names) or not names:
        where = f"line {names.index('') + 1} of {file} is empty" if names else f"{file} is empty"
        raise InputError(f"{where}; write a class name on each line, in the order of the labels")
    ctx.meta[_NAMES] = text
    return names


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{file} cannot be read as text: {e}") from None


MODEL_HELP = (
    "A folder of nescio train, densenet-bc-100-12, resnet18-cifar, timm:NAME, torchvision:NAME, hf:ID, clip:NAME, or "
    "your own function: module:factory or FILE.py:factory. Options follow: timm:NAME:option=value."
)
model_options = taking(
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="safetensors file or checkpoint; with clip:NAME also a tag, e.g. openai.  [default: those of the library, "
        "of the trained folder, or that your function loads]",
    ),
    click.option("--untrained", is_flag=True, help="Allow random weights."),
    click.option(
        "--classes",
        callback=_classes,
        metavar="N|FILE",
        help="Number of classes, or a file of their names, one per line.  [default: from the weights]",
    ),
    click.option(
        "--head",
        help="Name of the last linear layer; none: the model is an encoder; probe: fit one on --train.  [default: "
        "found automatically]",
    ),
    transform_option,
    device_option,
)
MODEL = ("weights", "untrained", "classes", "head", "transform", "device")
"""What ``model_options`` gives, as ``load_classifier`` takes it."""


def open_classifier(model: str, options: Mapping[str, Any], sets: Iterable[str | None]) -> Classifier:
    """The classifier that the options say. One made of class names takes them from the first of these sets with any."""
    from nescio.models import load_classifier

    loading = {k: options[k] for k in MODEL}
    if model.startswith("clip:") and loading["classes"] is None:
        from nescio.data.source import open_source

        loading["classes"] = next((names for spec in sets if spec and (names := open_source(spec).classes)), None)
    classifier = load_classifier(model, **loading)
    if file := click.get_current_context().meta.get(_NAMES):
        classifier.opened["classes"] = file
    return classifier


def session_of(classifier: Classifier | None, options: Mapping[str, Any], clock: Clock | None = None) -> Session:
    """The classifier, run as the options of ``extraction_options`` say."""
    from nescio.run.session import Session

    same: dict[str, Any] = {name: options[name] for name in ("engine", "precision", "batch_size", "workers", "max_bad")}
    if clock is not None:
        same["clock"] = clock
    devices = _devices(options.get("devices", 1))
    return Session(classifier, **same, devices=devices, dtype=options["bank_dtype"], progress=not options["quiet"])


def _devices(wanted: int | str) -> int | str:
    """What ``devices`` a session gets. Of torchrun's processes only the first goes on; the others do what it says."""
    from nescio.run.devices.places import TORCHRUN
    from nescio.run.devices.ranks import ranks, started

    if not started():
        return wanted
    if wanted not in (1, TORCHRUN):
        raise InputError(f"torchrun has started the processes already; drop --devices {wanted}")
    context = click.get_current_context()
    if ranks().rank:
        ranks().follow()
        context.exit()
    context.call_on_close(ranks().end)
    return TORCHRUN


def use_cache(folder: Path | None) -> None:
    """Banks and remembered hashes go to ``folder`` instead of the user's cache."""
    if folder is not None:
        os.environ["NESCIO_CACHE"] = str(folder.expanduser())


def detector_specs(named: tuple[str, ...], file: Path | None) -> list[str]:
    """The detectors that are named by option and in a file, a line each."""
    specs = list(named)
    if file is not None:
        if not file.is_file():
            raise InputError(f"no such file: {file}; give a file with one detector per line")
        lines = (line.partition("#")[0].strip() for line in _text(file).splitlines())
        found = [line for line in lines if line]
        if not found:
            raise InputError(f"{file} has no detectors; write one per line, e.g. energy")
        specs += found
    return specs


def named(sets: tuple[str, ...], option: str = "--ood") -> dict[str, str]:
    """``NAME=SET`` of each, by name."""
    found: dict[str, str] = {}
    for text in sets:
        name, equals, spec = text.partition("=")
        if not (equals and name and spec):
            raise InputError(f"{option} {text} has no name; write {option} {Path(text).stem or 'name'}={text}")
        if name in found:
            raise InputError(f"two OOD sets are called '{name}'; give each its own name")
        found[name] = spec
    return found
