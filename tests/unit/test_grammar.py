from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nescio.detector import Detector
from nescio.errors import InputError
from nescio.grammar import presets

SHARES = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
POSITIVE = st.floats(1e-6, 1e22)
SHAPES = st.lists(
    st.one_of(SHARES.map(lambda p: f"fm:p={p!r}"), POSITIVE.map(lambda c: f"react:clip={c!r}".replace("e+", "e"))),
    unique_by=lambda s: s[:2],
    max_size=2,
)


@given(
    st.one_of(st.just([]), POSITIVE.map(lambda t: [f"odin:T={t!r},per_std=true".replace("e+", "e")])),
    SHAPES,
    st.sampled_from([[], ["ls"], ["temperature:T=2.5", "ls"]]),
    st.sampled_from(["msp", "energy", "cosine"]),
)
def test_specs_round_trip(before: list[str], shape: list[str], modulate: list[str], score: str) -> None:
    detector = Detector.parse("+".join([*before, *shape, *modulate, score]))
    again = Detector.parse(repr(detector))
    assert repr(again) == repr(detector)
    assert again.settings() == detector.settings()


def test_the_designs_examples_parse_and_print_shell_safe() -> None:
    for spec in ("fm:p=0.5+react:clip=1.6+ls+energy", "odin:eps=0.002,T=500+fm+react+ls+msp", "react:q=0.95+energy"):
        assert repr(Detector.parse(spec)) == spec
    assert repr(Detector.parse(" fm:p=0.6 + energy ")) == "fm+energy"
    assert not set(repr(Detector.parse("odin:per_std=true,T=1e30+msp"))) & set(" '\"$&;|<>*?()[]{}!")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("enegry", "did you mean 'energy'"),
        ("fm:q=0.6+energy", "no option 'q'"),
        ("react:clp=1+energy", "did you mean 'clip'"),
        ("msp:T=1", "it has no options"),
        ("fm:p=60+energy", r"did you mean p=0\.6"),
        ("fm:p=1+energy", r"\[0, 1\)"),
        ("fm:p=nan+energy", "share"),
        ("fm:p+energy", "has no value"),
        ("fm:p=a+energy", "not of type float"),
        ("fm:p=0.1,p=0.2+energy", "given twice"),
        ("react:clip=-1+energy", "above 0"),
        ("react:clip=inf+energy", "finite"),
        ("react:clip=1,q=0.9+energy", "not both"),
        ("react:q=90+energy", r"q=0\.9"),
        ("temperature:T=0+msp", "above 0"),
        ("odin:per_std=maybe+msp", "bool"),
        ("odin:eps=-1+msp", "0 or more"),
        ("ls+fm+energy", r"write 'fm\+ls\+energy'"),
        ("energy+fm", r"write 'fm\+energy'"),
        ("fm+ls", r"add one, e\.g\. 'fm\+ls\+energy'"),
        ("msp+energy", "2 score stages"),
        ("fm+fm:p=0.1+energy", "twice"),
        ("", "cannot read"),
        ("fm++energy", "cannot read"),
    ],
)
def test_mistakes_are_named_with_the_way_out(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Detector.parse(spec)


def test_presets_follow_the_model() -> None:
    assert repr(Detector.parse("fmls", "densenet-bc-100-12")) == "fm+react:clip=1.6+ls+energy"
    assert repr(Detector.parse("fmls", "unheard-of")) == "fm+react:q=0.98+ls+energy"
    for name, preset in presets().items():
        assert Detector.parse(name).needs_train, name
        assert all(suite in preset["suites"] for suite in preset.get("models", {}).values())
