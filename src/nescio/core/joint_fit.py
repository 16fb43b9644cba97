"""Fits of several stages on the same features, made together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

from nescio.core.feature_set import BLOCK, FeatureSet
from nescio.core.features import Features
from nescio.core.stage import Chain, Stage, fit_stage
from nescio.core.together import Source, Task, Together, current


def shared(data: FeatureSet) -> FeatureSet:
    """The same rows, of which one read serves all tasks that want them, in blocks that a core's cache holds."""

    def blocks() -> Iterator[Features]:
        for f in data.chunks():
            most = max(1, BLOCK // f.width) if data.device.type == "cpu" else len(f)
            yield from [f] if len(f) <= most else f.blocks(most)

    held_out = None if data.held_out is None else shared(data.held_out)
    return FeatureSet.stream(Source(blocks) if data.has_rows else None, data.head, held_out)


def fit_chain(chain: Chain, data: FeatureSet, raw: FeatureSet) -> None:
    """Fit every stage of a chain, as a task: on raw features, the score on what the others produce.

    Equal stages before the score, of chains that are fitted on the same raw features, are fitted once and shared: they
    are fitted on these, whatever stands before them.
    """
    here = cast("Task", current())
    *before, last = chain.steps
    fits = [here.owner.task(partial(_fitted, stage, raw), (raw, type(stage), repr(stage)))[0] for stage in before]
    for i, fit in enumerate(fits):
        chain.stages[i] = fit.result()
    produced = here.owner.task(lambda: data.map(chain.pipeline), (data, *fits))[0].result() if before else data
    fit_stage(last, produced)
    here.seconds += sum(fit.seconds for fit in fits)


def _fitted(stage: Stage, data: FeatureSet) -> Stage:
    fit_stage(stage, data)
    return stage


def fit_chains(chains: Sequence[Chain], data: FeatureSet) -> None:
    """Fit several chains, within the ``fit`` of a stage that is made of them or by itself.

    Raises:
        InputError: one cannot be fitted on these data.
    """
    raw, here = data.raw, current()
    together = Together() if here is None else here.owner
    fits = [together.task(partial(fit_chain, chain, data, raw))[0] for chain in chains]
    if here is None:
        together.run(fits)
        return
    for fit in fits:
        fit.result()
        here.seconds += fit.seconds
