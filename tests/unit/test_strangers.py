"""What a file or a folder of somebody else's may do: nothing but be read."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from conftest import coloured
from nescio.cli import main
from nescio.core.artifact import read_tensors, seal
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.spec import names_preset, search_space
from nescio.data import Transform
from nescio.deploy import Deployed, fit, load
from nescio.deploy.file import describe
from nescio.evaluation.bench import bench
from nescio.evaluation.results import Results
from nescio.evaluation.suites.suite import open_suite
from nescio.models import load_classifier
from nescio.models.heads import restore_heads
from nescio.models.runs import Run
from nescio.models.trusted import trusted_architecture
from nescio.models.weights import read_weights, strip_prefixes
from nescio.run.session import Session

NAMES = [
    *("os:abort", "builtins:exit", "marked:make", "marked.net:make", "./marked.py:make", "/srv/marked.py:make"),
    *("run", "./run", "../bundle/run", "~/run", "run/run.json", "file:///etc/passwd", "https://host/x", "s3://a/b"),
    *("hf:somebody/model", "hf:./run", "hf_hub:a/b", "hf-hub:a/b", "local-dir:run", "HF:a/b", "Timm:test_resnet"),
    *("timm:hf_hub:a/b", "timm:hf-hub:a/b", "timm:local-dir:run", "timm:../run", "timm:/etc/passwd", "timm:"),
    *("timm:test_resnet:checkpoint_path=x.pth", "timm:test_resnet:global_pool=avg,checkpoint_path=x.pth"),
    *("timm:test_resnet:pretrained_cfg=x", "timm:test_resnet:pretrained_cfg_overlay={'file':'x.pth'}"),
    *("timm:test_resnet:cache_dir=run", "timm:test_resnet:features_only=True", "timm:test_resnet:scriptable=True"),
    *("timm:test_resnet:pretrained=True", "timm:test_resnet:url=x", "timm:test_resnet:file=x.pth"),
    *("timm:test_resnet:global_pool=../run", "timm:test_resnet:global_pool='x y'", "timm:test_resnet:global_pool"),
    *("timm:test_vit:img_size=100000", "timm:test_vit:img_size=1e999", "timm:test_vit:img_size=(9,9,9,9,9)"),
    *("timm:test_vit:img_size=" + "(" * 900 + ")" * 900, "timm:test_vit:patch_size=-1"),
    *("torchvision:../run", "torchvision:nothing", "torchvision:"),
    *("clip:hf-hub:a/b", "clip:local-dir:run", "clip:roberta-ViT-B-32", "clip:ViT-B-32:pretrained=/etc/passwd"),
    *("nescio.quickstart:other", "nescio.quickstart:network:x", "nescio.cli:main", "nescio:load"),
    *("", " ", "no-such-network", "x" * 100_000, 7, None, True, ["run"], {"a": 1}),
]


@dataclass
class Watch:
    """What the process does while somebody looks: files opened, modules imported, hosts asked, programs run."""

    on: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event in ("open", "import", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
            self.seen.append((event, str(arguments[0])))


_WATCH = Watch()
sys.addaudithook(_WATCH)  # for the whole process: it can be switched off, not taken away


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's folder, which is the working directory: a module, a run, a checkpoint; none may be touched."""
    folder = tmp_path / "bundle"
    (folder / "run").mkdir(parents=True)
    (folder / "marked").mkdir()
    code = "raise SystemExit('code of a stranger ran')\n"
    for place in ("marked/__init__.py", "marked/net.py", "downloaded.py", "run/make.py"):
        (folder / place).write_text(code)
    (folder / "x.pth").write_bytes(b"cos\nabort\n(tR.")
    (folder / "run/run.json").write_text("not to be opened")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = list(sys.path)
    yield folder
    _WATCH.on = False
    assert sys.path == before


def assert_untouched(bundle: Path, allowed: set[str]) -> None:
    """Nothing of the folder was opened but these, nobody was asked, nothing of theirs imported."""
    names = {p.name for p in bundle.rglob("*")} - allowed
    for event, what in _WATCH.seen:
        assert event in ("open", "import"), (event, what)
        assert not (event == "open" and (what.startswith(str(bundle)) and Path(what).name in names)), what
        assert not (event == "import" and what.partition(".")[0] in ("marked", "downloaded", "run")), what
        assert what not in ("x.pth", "run", "run/run.json", "/etc/passwd"), what


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    root = tmp_path_factory.mktemp("images")
    coloured(root, "held", per_class=30, classes=4, side=32, seed=0)
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    network = load_classifier("timm:test_resnet", weights=weights, transform="crop=32")
    return fit(Session(network, workers=0, progress=False), "energy", calibrate=root / "held")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: str(name)[:60])
def test_a_name_in_a_file_runs_nothing_opens_nothing_and_asks_nobody(
    bundle: Path, deployed: Deployed, name: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed.classifier, "name", name)
    deployed.save(bundle / "my.nescio")
    run = bundle / "given"
    run.mkdir()
    about = {"format": "nescio-run/1", "model": name, "n_classes": 4, "classes": None, "transform": "crop=32"}
    (run / "run.json").write_text(json.dumps(about | {"objective": "ce", "settings": {}}))
    save_file(deployed.classifier.body.state_dict(), run / "model.safetensors")
    _WATCH.seen, _WATCH.on = [], True
    with pytest.raises(InputError, match=r"my\.nescio: "):
        load(bundle / "my.nescio", device="cpu")
    with pytest.raises(InputError, match="given"):
        load_classifier(str(run), device="cpu")
    _WATCH.on = False
    assert _WATCH.seen
    assert_untouched(bundle, {"my.nescio", "run.json", "model.safetensors"})
    assert not any(what == "run/run.json" or what.endswith("/run/run.json") for _, what in _WATCH.seen)


@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet", "timm:test_resnet", "timm:test_resnet:global_pool=avg,drop_rate=0.1"),
        *("timm:test_vit:img_size=64", "torchvision:resnet18", "resnet18-cifar", "efficientnet-lite0"),
    ],
)
def test_a_library_network_is_built_from_a_name_in_a_file(bundle: Path, name: str) -> None:
    _WATCH.seen, _WATCH.on = [], True
    network = trusted_architecture(name).build(3, False)
    _WATCH.on = False
    assert sum(p.numel() for p in network.parameters()) > 1000
    assert_untouched(bundle, set())


def test_a_folder_of_the_same_name_is_not_taken_for_the_network(bundle: Path, deployed: Deployed) -> None:
    deployed.save(bundle / "my.nescio")
    shutil.copytree(bundle / "run", bundle / "timm:test_resnet")
    again = load(bundle / "my.nescio", device="cpu")
    assert again.classifier.name == "timm:test_resnet"


def test_the_user_may_name_what_the_file_may_not(bundle: Path, deployed: Deployed) -> None:
    """A run on a factory of the user's own opens with its weights as --weights and the factory as --model."""
    run = bundle / "own"
    run.mkdir()
    about = {"format": "nescio-run/1", "model": "mine_too:make", "n_classes": 4, "classes": ["a", "b", "c", "d"]}
    about |= {"transform": "resize=40,crop=32", "objective": "ssod", "settings": {"train": "of these"}}
    (run / "run.json").write_text(json.dumps(about))
    state = timm.create_model("test_resnet", num_classes=4).state_dict()
    save_file(state, run / "model.safetensors")
    (bundle / "mine_too.py").write_text(
        "import timm\ndef make():\n    return timm.create_model('test_resnet', num_classes=4)\n"
    )
    with pytest.raises(InputError, match=r"'mine_too:make'.*--model NAME --weights \S*own"):
        load_classifier("own")
    path = list(sys.path)
    found = load_classifier("mine_too:make", weights="own", device="cpu")
    sys.path[:] = path
    assert (found.name, found.classes, found.objective) == ("mine_too:make", ["a", "b", "c", "d"], "ssod")
    assert str(found.transform).startswith("resize=40,crop=32")
    assert found.seen == {"train": "of these"}
    assert torch.equal(found.head.weight, state["fc.weight"])


def test_a_checkpoint_that_holds_itself_is_read_to_an_end(tmp_path: Path) -> None:
    state: dict[str, object] = {"weight": torch.ones(2, 3)}
    state["model"] = state
    torch.save(state, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["weight"]
    torch.save({"model": {"ema": {"net": {"weight": torch.ones(1)}}}}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["weight"]


def test_prefixes_without_end_are_left(tmp_path: Path) -> None:
    assert list(strip_prefixes({"module._orig_mod.model.fc.weight": torch.ones(1)}, {"fc.weight"})) == ["fc.weight"]
    (long,) = strip_prefixes({"module." * 100_000 + "fc.weight": torch.ones(1)}, {"fc.weight"})
    assert len(long) == 7 * (100_000 - 8) + 9


@pytest.mark.parametrize("odd", [torch.ones(2).to_sparse(), torch.ones(2, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_hold_no_plain_numbers_are_no_weights(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save({"weight": odd}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "spec",
    [
        *("+".join(["fm"] * 200_000), "mean(" * 100_000, "mean(" * 11 + "energy" + ")" * 11),
        *("knn:k=" + "1" * 5000, "+".join(["fm"] * 100) + "+energy"),
    ],
    ids=["stages", "open", "nested", "value", "many"],
)
def test_specs_that_nobody_writes_are_refused_at_once(spec: str) -> None:
    for read in (Detector, search_space, names_preset):
        with pytest.raises(InputError, match="is too long"):
            read(spec)


def test_a_transform_has_limits() -> None:
    assert Transform.parse("crop=4096").crop == 4096
    for text in ("crop=10000", "crop=224,resize=5000", "crop=" + "9" * 5000):
        with pytest.raises(InputError, match=r"up to 4,096|is not a number"):
            Transform.parse(text)


@pytest.mark.parametrize("key", ["ood.weight", "godin.weight", "mos.groups", "vos.weight", "neglabel.weight"])
def test_heads_that_are_none_are_refused(key: str) -> None:
    for t in (torch.ones(3), torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(InputError, match="the head"):
            restore_heads({key: t})


@pytest.mark.parametrize(
    "text",
    [
        *("a = " + "[" * 100_000, "id = " + "9" * 400, "[[published]]\nrows = []\nsets = 3"),
        "published = [{rows = [{values = [" + "9" * 30 + "]}]}]",
    ],
    ids=["deep", "long", "sets", "number"],
)
def test_a_suite_of_anyone_is_read_or_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError, match="is not a suite"):
        open_suite(str(tmp_path / "s.toml"))


FETCHED = [
    *("http://192.0.2.1/x.zip", "https://host.invalid/x/*.png", "s3://bucket/x", "gs://bucket/x.parquet", "hf://a/b/c"),
    *("ftp://host.invalid/x.tar", "memory://x", "zip::http://host.invalid/x.zip", "github://a:b@main/x"),
    *(
        "torchvision:MNIST/test",
        "torchvision:FakeData",
        "noise:gaussian:n=9",
        "file:///IMAGES",
        "links:IMAGES",
        "IMAGES/*",
    ),
    *("http://192.0.2.1/x.zip[:9]", "torchvision:MNIST/test[~9]", "//host.invalid/x", "IMAGES" + "[:3]" * 2000, "\0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, deployed: Deployed) -> Path:
    """A folder with results, and the images that these name beside them."""
    root = tmp_path_factory.mktemp("results")
    for i, name in enumerate(("id", "far")):
        coloured(root, name, per_class=6, classes=4, seed=i, side=32)
    places = {"id": str(root / "id[:15]"), "ood": {"far": str(root / "far")}}
    found = bench(Session(deployed.classifier, workers=0, progress=False), **places, detectors=["msp"])
    found.save(root / "run")
    return root


def naming(run: Path, spec: str, target: Path) -> Path:
    """A copy of the results that names this in place of their images."""
    shutil.copytree(run / "run", target)
    content = json.loads((target / "results.json").read_text())
    for about in content["manifest"]["data"].values():
        about["opened"] = spec.replace("IMAGES", str(run / "far"))
    del content["hash"]  # whoever changes it can write another
    (target / "results.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("spec", FETCHED, ids=lambda spec: spec[:40])
@pytest.mark.parametrize("images", [False, True])
def test_what_results_name_is_never_fetched(run: Path, tmp_path: Path, spec: str, images: bool) -> None:
    folder = naming(run, spec, tmp_path / "run")
    _WATCH.seen, _WATCH.on = [], True
    found = Results.load(folder, images=images)
    _WATCH.on = False
    assert all(s.source is None for s in (found.id_set, *found.ood_sets))
    assert {event for event, _ in _WATCH.seen} <= {"open", "import"}
    assert not [what for _, what in _WATCH.seen if str(run) in what]


@pytest.mark.parametrize("command", ["report", "report --images", "compare --resamples 100"])
def test_report_and_compare_ask_nobody(run: Path, tmp_path: Path, command: str) -> None:
    folders = [
        str(naming(run, spec, tmp_path / str(i))) for i, spec in enumerate((FETCHED[0], "torchvision:MNIST/test"))
    ]
    given = [*command.split(), *(folders if "compare" in command else folders[:1])]
    _WATCH.seen, _WATCH.on = [], True
    done = CliRunner().invoke(main, given)
    _WATCH.on = False
    assert done.exit_code == 0, done.output
    assert not [event for event, _ in _WATCH.seen if event.startswith("socket.")]
    assert not [what for _, what in _WATCH.seen if str(run) in what]


def test_images_are_opened_on_request_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "run", tmp_path / "run")
    for more in ([], ["--images"]):
        _WATCH.seen, _WATCH.on = [], True
        assert CliRunner().invoke(main, ["report", str(tmp_path / "run"), *more]).exit_code == 0
        _WATCH.on = False
        assert any(str(run) in what for _, what in _WATCH.seen) is bool(more)
        page = (tmp_path / "run/report.html").read_text()
        assert ("<img" in page) is bool(more)
        assert ("nescio report RUN --images" in page) is not bool(more)
    assert Results.load(tmp_path / "run", images=True).id_set.source.name(14).endswith(".png")


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)[: rng.choice((len(data), len(data), rng.randrange(len(data))))]


@pytest.mark.parametrize("kind", ["a.nescio", "results.json", "scores.safetensors", "features.safetensors", "run.json"])
def test_flipped_bits_change_nothing_unnoticed(run: Path, tmp_path: Path, deployed: Deployed, kind: str) -> None:
    """A hundred times each: what is read is the same, or refused with a reason."""
    shutil.copytree(run / "run", tmp_path / "f")
    deployed.save(tmp_path / "f/a.nescio")
    Run("timm:test_resnet", 4, list("abcd"), "crop=32", "ce", {"train": "images"}).write(tmp_path / "f")

    def read() -> str:
        if kind == "a.nescio":
            return json.dumps(describe(tmp_path / "f/a.nescio"), sort_keys=True)
        if kind == "run.json":
            return repr(Run.read(tmp_path / "f"))
        found = Results.load(tmp_path / "f")
        return f"{found.to_json()}{found.id_set.scores}{found.correct}{found.sample}"

    path, rng, refused = tmp_path / "f" / kind, random.Random(0), 0  # noqa: S311 - mutations
    whole, same = path.read_bytes(), read()
    for _ in range(100):
        path.write_bytes(flipped(whole, rng))
        try:
            assert read() == same
        except InputError:
            refused += 1
    assert refused > 90


ODD = [None, True, 0, -1, 10**18, 1e308, "", "x" * 5000, [], {}, [[]], [1, "x"], float("nan"), "http://192.0.2.1/x"]


@pytest.mark.parametrize("kind", ["a.nescio", "results.json", "run.json"])
def test_values_that_a_stranger_changed_end_in_no_traceback(
    run: Path, tmp_path: Path, deployed: Deployed, kind: str
) -> None:
    """Each entry by something odd; the stranger writes the hash that belongs to it, or none."""
    shutil.copytree(run / "run", tmp_path / "f")
    deployed.save(tmp_path / "f/a.nescio")
    Run("timm:test_resnet", 4, list("abcd"), "crop=32", "ce", {"train": "images"}).write(tmp_path / "f")
    path, rng, refused = tmp_path / "f" / kind, random.Random(1), 0  # noqa: S311 - mutations
    metadata, tensors = read_tensors(path) if kind == "a.nescio" else ({}, {})
    whole = metadata["nescio"] if metadata else path.read_text()
    for _ in range(100):
        content = json.loads(whole)
        del content["hash"]
        at, key = rng.choice([place for place in places_in(content) if place[1] != "files"])
        at[key] = rng.choice(ODD)
        if kind == "a.nescio":
            with contextlib.suppress(ValueError):  # NaN
                content["hash"] = seal(tensors, content)
            save_file(tensors, path, {"nescio": json.dumps(content)})
        else:
            path.write_text(json.dumps(content))
        try:
            if kind == "a.nescio":
                describe(path)
            elif kind == "run.json":
                Run.read(tmp_path / "f")
            else:
                Results.load(tmp_path / "f", images=True).to_csv()
        except InputError:
            refused += 1
    assert refused > 20


def places_in(value: object) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places_in(inner)]]
