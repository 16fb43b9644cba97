"""What every engine promises: PyTorch's features, in every pass, for every batch; the user's network is unchanged."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import TINY_TRANSFORM, Pictures, tiny_net
from nescio import Classifier, Detector, Session
from nescio.core.options import parse_named
from nescio.run.engines import ENGINES
from nescio.run.engines.engine import TOLERANCES
from nescio.run.passes import pass_of, probes_of

QUICK = sorted(set(ENGINES) - {"compile"})
"""Those that take no compiler, which needs ten seconds for each network."""
X = torch.randn(37, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def session(engine: str, precision: str = "float32", net: nn.Module | None = None) -> Session:
    found = Session(Classifier(net or tiny_net(), TINY_TRANSFORM, name="tiny"), engine=engine, precision=precision)
    if why := found.running.unusable(torch.device("cpu")):
        pytest.skip(why)
    return found


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_features_are_those_of_the_network(engine: str) -> None:
    running, plain = session(engine), Classifier(tiny_net(), TINY_TRANSFORM)
    for n in (1, 2, 37, 5) if engine in QUICK else (5, 2):
        f, exact = running(X[:n]), plain(X[:n])
        assert off(f.h, exact.h) <= 1e-5
        assert torch.equal(f.pred, exact.pred)
        assert f.h.dtype == torch.float32


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_batch_may_be_kept(engine: str) -> None:
    running = session(engine)
    first = running(X[:4])
    kept = first.h.clone()
    running(X[4:8])
    assert torch.equal(first.h, kept)


@pytest.mark.parametrize(
    ("engine", "precision"), [(n, p) for n in QUICK for p in ENGINES[n].precisions if p not in ("float32", "tf32")]
)
def test_lower_precision_is_near_and_gives_float32(engine: str, precision: str) -> None:
    f, exact = session(engine, precision)(X), Classifier(tiny_net(), TINY_TRANSFORM)(X)
    assert 0 < off(f.h, exact.h) <= TOLERANCES[precision]
    assert f.h.dtype == f.logits.dtype == torch.float32


@pytest.mark.parametrize("spec", ["gram", "rankfeat+energy", "bats+energy", "odin+energy", "mcdropout:p=0.3+msp"])
@pytest.mark.parametrize("engine", QUICK)
def test_every_pass_and_probe_is_that_of_the_network(engine: str, spec: str) -> None:
    detector = Detector(spec)
    network_pass, probes = pass_of(detector), probes_of([detector])
    running, plain = session(engine), session("plain")
    f, exact = (network_pass.run(s.network(network_pass, probes), X) for s in (running, plain))
    assert off(f.h, exact.h) <= 1e-5
    for name, column in exact.aux.items():
        assert off(f.aux[name], column) <= 1e-3, name


@pytest.mark.parametrize("engine", QUICK)
def test_a_network_that_draws_draws_the_same(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    net = tiny_net()
    net.norm = nn.Sequential(net.norm, nn.Dropout(0.5)).eval()
    network_pass = pass_of(Detector("mcdropout:n=3+msp"))
    with caplog.at_level(logging.WARNING):
        ours = network_pass.run(session(engine, net=net).network(network_pass), X)
    theirs = network_pass.run(session("plain", net=net).network(network_pass), X)
    assert off(ours.h, theirs.h) <= 1e-5
    assert ("PyTorch runs it" in caplog.text) == (engine not in ("torch", "plain"))


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_the_users_network_is_unchanged(engine: str) -> None:
    net = tiny_net()
    before = copy.deepcopy(net.state_dict())
    running = session(engine, net=net)
    running(X[:2])
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    with torch.no_grad():
        net.conv.weight.mul_(2)
    assert off(running(X[:2]).h, Classifier(net, TINY_TRANSFORM)(X[:2]).h) <= 1e-5  # made anew


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_specs_say_what_is_meant(engine: str) -> None:
    made = parse_named(engine, ENGINES)
    assert repr(made) == repr(parse_named(repr(made), ENGINES)) == engine
    assert "float32" in made.precisions
    assert (type(made).__doc__ or "").strip()


@pytest.mark.parametrize("engine", QUICK)
def test_a_session_goes_to_another_process(engine: str) -> None:
    running = session(engine)
    f = running(X[:3])
    again = pickle.loads(pickle.dumps(running))
    assert torch.equal(again(X[:3]).h, f.h)


@pytest.mark.parametrize("engine", QUICK)
def test_an_interrupted_pass_goes_on_to_the_same_bytes(engine: str, tmp_path: Path) -> None:
    class Stops(Pictures):
        def read(self, i: int) -> bytes:
            if i == 21:
                raise KeyboardInterrupt
            return super().read(i)

    def bank(cache: str, source: Pictures) -> dict[str, bytes]:
        running = session(engine)
        whole = Session(running.classifier, engine=engine, cache=tmp_path / cache, batch_size=8, workers=0)
        return {p.name: p.read_bytes() for p in whole.bank(source).path.iterdir()}

    with pytest.raises(KeyboardInterrupt):
        bank("b", Stops(40))
    assert bank("a", Pictures(40)) == bank("b", Pictures(40))
