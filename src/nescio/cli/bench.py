"""Commands that judge detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.cli.base import FIRST, console
from nescio.cli.options import (
    MODEL_HELP,
    data_root_option,
    detector_specs,
    extraction_options,
    model_options,
    named,
    ood_option,
    open_classifier,
    out_option,
    session_of,
    use_cache,
)
from nescio.cli.results import check_results, present
from nescio.core.errors import InputError

if TYPE_CHECKING:
    from nescio.core.progress import Clock
    from nescio.evaluation.suites.suite import Suite
    from nescio.models import Classifier


@click.command()
@click.option("--model", help=MODEL_HELP)
@model_options
@click.option("--suite", help="A published benchmark: cifar10, imagenet, …; nescio data list shows all.")
@data_root_option
@click.option("--strict", is_flag=True, help="Stop if a set of the suite is missing.")
@click.option(
    "--train", help="The classifier's training images: a folder, .zip, .tar, .parquet, glob or torchvision:NAME/SPLIT."
)
@click.option(
    "--held-out", help="Further ID images, for ensembles and temperature.  [default: a fifth of the training images]"
)
@click.option(
    "--id",
    "id_",
    help="ID test images. For any set, SET[:1000] takes the first 1,000 images and SET[~1000] draws 1,000.",
)
@ood_option("An OOD set and its name. Repeatable.")
@click.option(
    "--detector",
    multiple=True,
    metavar="SPEC",
    help="energy, fmls, fm:p=0.6+react:clip=1.6+ls+energy, 'mean(fmls,knn)', all, …; LOW..HIGH or 1|2|3 as an "
    "option's value is a range, drawn as a curve. nescio methods lists them. Repeatable.",
)
@click.option(
    "--detectors", type=click.Path(path_type=Path), help="File with one detector per line; # starts a comment."
)
@click.option("--sweep", help="A sensitivity study of the FM + LS paper: lambda, p, components or scores.")
@click.option("--equal", is_flag=True, help="Compare each OOD set with the same number of ID images.")
@click.option(
    "--intervals", type=click.IntRange(0), default=0, metavar="N", help="Bootstrap 95 % intervals with N resamples."
)
@out_option(
    "Folder for the results: .csv, .json, .md, .tex and all scores; or FILE.csv, .json or .parquet for one file."
)
@click.option("--report", is_flag=True, help="Also write report.html and its figures there.")
@extraction_options
@click.pass_obj
def bench(obj: dict[str, Any], /, **options: Any) -> None:
    """Compare detectors on ID and OOD images. The network runs once over each image.

    \b
    nescio bench --model densenet-bc-100-12 --weights cifar10.safetensors \\
        --train cifar10/train --id cifar10/test --ood textures=dtd/ \\
        --detector msp --detector energy --detector fmls --out results
    nescio bench --suite cifar10 --data-root data --model densenet-bc-100-12 --weights cifar10.safetensors
    """  # noqa: D301 - click reads the backslashes
    from nescio.core.progress import Clock

    if options["report"] and not options["out"]:
        raise InputError("--report needs a folder to write to; add --out DIR")
    check_results(options["out"], report=options["report"])
    use_cache(options.pop("cache"))
    specs = detector_specs(options["detector"], options["detectors"])
    run, clock = _bench_suite if options["suite"] else _bench, Clock()
    results, ranges = run(options | obj, named(options["ood"]), specs, clock)
    results = dataclasses.replace(results, manifest=results.manifest | {"ranges": ranges})
    present(results, options["out"], report=options["report"], clock=clock)


def _bench(options: dict[str, Any], oods: dict[str, str], specs: Sequence[str], clock: Clock) -> Any:
    with clock("start"):
        from nescio.evaluation.bench import bench as run
        from nescio.evaluation.checks import DEFAULT_DETECTORS

    missing = [f"--{name.rstrip('_')}" for name in ("model", "id_", "ood") if not options[name]]
    if missing:
        raise InputError(f"{missing[0]} is missing; give it, or a published benchmark (--suite cifar10)")
    with clock("start"):
        classifier = open_classifier(options["model"], options, (options["id_"], options["train"]))
    defaults = () if options["sweep"] else DEFAULT_DETECTORS
    detectors, ranges = _expanded(specs or defaults, options, classifier)
    results = run(
        session_of(classifier, options, clock),
        id=options["id_"],
        ood=oods,
        train=options["train"],
        held_out=options["held_out"],
        detectors=detectors,
        equal=options["equal"],
        resamples=options["intervals"],
    )
    return results, ranges


def _expanded(
    specs: Sequence[str], options: dict[str, Any], classifier: Classifier
) -> tuple[list[str], dict[str, list[str]]]:
    """The detectors that ranges and a sweep stand for, and which range stood for which."""
    from nescio.core.spec import search_space, sweep

    study = sweep(options["sweep"], *classifier.published) if options["sweep"] else ()
    spaces = {spec: search_space(spec) for spec in (*study, *specs)}
    detectors = list(dict.fromkeys(spec for space in spaces.values() for spec in space))
    return detectors, {spec: space for spec, space in spaces.items() if len(space) > 1}


def _bench_suite(options: dict[str, Any], oods: dict[str, str], specs: Sequence[str], clock: Clock) -> Any:
    with clock("start"):
        from nescio.evaluation.suites.published import bench_suite
        from nescio.evaluation.suites.suite import open_suite
        from nescio.models.runs import RUN

    suite = open_suite(options["suite"])
    model = options["model"] or _own_model(suite)
    trained = (Path(model) / RUN).is_file()  # a run knows how its images are prepared, and CLIP how its own
    roles = {"id": options["id_"], "train": options["train"], "calibrate": options["held_out"]}
    sets = {role: spec for role, spec in roles.items() if spec} | oods
    own = {role: spec for role, spec in sets.items() if role in ("id", "train", *suite.ood)}
    found = {need.role: need.found for need in suite.needs(Path(options["data_root"]).expanduser(), own)}
    transform = None if trained or model.startswith("clip:") else suite.transform
    loading = options | {"transform": options["transform"] or transform}
    with clock("start"):
        classifier = open_classifier(model, loading, (found["id"], found.get("train")))
    detectors, ranges = _expanded(specs, options, classifier)
    results = bench_suite(
        suite,
        session_of(classifier, options, clock),
        data_root=options["data_root"],
        sets=sets,
        detectors=detectors,
        strict=options["strict"],
        equal=options["equal"],
        resamples=options["intervals"],
    )
    return results, ranges


def _own_model(suite: Suite) -> str:
    """The suite's model whose weights need not be given."""
    for model in suite.models:
        if model.weights == "library":
            return model.name
    names = " or ".join(f"--model {m.name} --weights FILE" for m in suite.models) or "--model"
    raise InputError(f"suite '{suite.name}' has no weights; give {names}")


@click.command()
@out_option("Folder for the results.", default="quickstart", show_default=True)
@click.option(
    "--epochs", type=click.IntRange(1), default=10, show_default=True, help="How long to train the small network."
)
@extraction_options
@click.pass_obj
def quickstart(obj: dict[str, Any], /, out: Path, epochs: int, bank_dtype: str, **options: Any) -> None:
    """Run the main job on embedded images: train a small classifier, compare detectors, write a report."""
    check_results(out, report=True)
    use_cache(options.pop("cache"))
    from nescio.core.progress import Clock
    from nescio.quickstart import quickstart as run

    clock = Clock()
    same = {**options, "bank_dtype": bank_dtype, **obj}
    results = run(out, epochs=epochs, running=session_of(None, same, clock))
    present(results, out, report=True, clock=clock)
    screen = console()
    screen.print("\nNext, with your own model and images (nescio bench --help says what MODEL and images may be):")
    for what, command in FIRST:
        screen.print(f"  {command}    # {what}", soft_wrap=True)
