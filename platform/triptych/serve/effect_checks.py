"""Checks within a replica: does the engine run each adapter that it has loaded, as it was trained?"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from triptych.models.adapter_effect import EffectReport, judge
from triptych.observe.metrics import EngineMetrics
from triptych.registry import Registry
from triptych.serve.adapter_effect import version_probes

logger = logging.getLogger("ray.serve")

Ask = Callable[[str, Sequence[Sequence[int]]], Awaitable[list[list[float]]]]
"""A function from a model's name and token sequences to the log-probabilities of all tokens but the first of each."""


class EffectChecks:
    """Checks adapter versions in the background, once each; what it finds is a metric and, where wrong, a warning.

    Nothing is refused: requests go on while the few hundred tokens of a check are in the engine's batches, and the
    noise of an engine's arithmetic alone shall end no service.
    """

    def __init__(self, registry: Registry, ask: Ask, base: str) -> None:
        """`base`: name of the base model in the engine."""
        self._registry = registry
        self._ask = ask
        self._base = base
        self._metrics = EngineMetrics()
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, ref: str) -> None:
        """Check an adapter version that the engine has loaded, unless that was done before."""
        if ref not in self._running:
            self._running[ref] = asyncio.create_task(self._check(ref))

    async def _check(self, ref: str) -> None:
        try:
            report = await self._report(ref)
        except Exception:
            logger.warning("the effect of adapter %s could not be checked", ref, exc_info=True)
            return
        if report is None:
            return
        self._metrics.adapter_effect(ref, report.looks_like, report.share)
        level = logging.INFO if report.looks_like in ("right", "undecided") else logging.WARNING
        logger.log(level, "adapter %s: %s", ref, report.sentence)

    async def _report(self, ref: str) -> EffectReport | None:
        """The comparison of the engine's answers; None where nobody measured the adapter."""
        found = await asyncio.to_thread(lambda: version_probes(self._registry, self._registry.get(ref)))
        if found.probes is None:
            return None
        adapter = await self._ask(ref, found.probes.sequences)
        base = await self._ask(self._base, found.probes.sequences)
        return judge(found.probes, adapter, base, found.others)
