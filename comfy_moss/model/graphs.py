"""CUDA graphs of the transformer's blocks: what a pass has the GPU do is recorded once and then replayed.

A pass of Infinity-2B launches thousands of small kernels; where launching them takes longer than running
them, as in the refine step, replaying a graph removes the difference.  Token counts never depend on a
picture, so the passes of one picture are those of the next, as long as weights and KV cache stay where they
are.  Embedding, head and sampling run as usual.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backbone import Pass, Step
from .cache import KVCache

if TYPE_CHECKING:  # which imports this file
    from .infinity import InfinityTransformer

MOST = 64  # recordings kept; one a scale, refine step and length of prompt
Replay = Callable[[], object]
log = logging.getLogger(__name__)


def record_cuda(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record `work` without running it: what runs it, and where its result will be.

    Attention is bound to kernels that are right in a graph (cuDNN's before 9.15.1 are not for every length).
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    graph = torch.cuda.CUDAGraph()
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends, set_priority=True), torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


@dataclass(frozen=True)
class Recording:
    """One recorded pass: memory to put its inputs, what runs it, and where the result then lies."""

    inputs: list[Tensor]
    replay: Replay
    result: Tensor


class Graphs:
    """The recordings of one model.  A pass runs as usual when it is first seen, later on as a graph.

    Args:
        record: how a pass is recorded.
    """

    def __init__(self, record: Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]] = record_cuda) -> None:
        self._record = record
        self._recordings: dict[Hashable, Recording | None] = {}
        self._memory: KVCache | None = None  # lent to one picture after the other, and never filled itself
        self._sizes: tuple[Any, ...] | None = None
        self._lent: weakref.ref[KVCache] | None = None

    def new_cache(self, *sizes: Any) -> KVCache:
        """An empty `KVCache(*sizes)`, on the memory of earlier pictures where that is free.

        When other sizes are needed, the old memory and all recordings on it are let go.
        """
        if self._lent and self._lent():
            return KVCache(*sizes)
        if self._sizes != sizes:
            self.clear()
            self._memory, self._sizes = KVCache(*sizes), sizes
        lent = self._memory.cleared()
        self._lent = weakref.ref(lent)
        return lent

    def clear(self) -> None:
        """Let all recordings and all memory go."""
        self._recordings.clear()
        self._memory = self._sizes = None

    def replay(self, transformer: InfinityTransformer, x: Tensor, now: Pass) -> Tensor | None:
        """What `transformer(x, now)` returns and does to the cache; None = nothing was done: run it."""
        step = now.step
        if step.branch:  # chooses tokens anew in every pass
            return None
        inputs = list(_inputs(x, now))
        key = _key(transformer, inputs, now)
        if key not in self._recordings:
            self._remember(key, None)
            return None
        recording = self._recordings[key] or self._recorded(transformer, inputs, now)
        if recording is None:
            return None
        self._remember(key, recording)
        torch._foreach_copy_(recording.inputs, inputs)
        recording.replay()
        if step.store:  # the graph has filled the cache's memory
            for layer in range(len(transformer.blocks)):
                step.cache.append(layer, *step.cache.room(layer, x.shape[1]))
        return recording.result.clone()

    def _remember(self, key: Hashable, recording: Recording | None) -> None:
        """Keep it as the youngest; the one not used for longest goes."""
        self._recordings.pop(key, None)
        self._recordings[key] = recording
        if len(self._recordings) > MOST:
            del self._recordings[next(iter(self._recordings))]

    def _recorded(
        self, transformer: InfinityTransformer, inputs: list[Tensor], now: Pass
    ) -> Recording | None:
        """None where this pass cannot be recorded."""
        static = [tensor.clone() for tensor in inputs]
        x, now = _bound(static, now)

        def work() -> Tensor:  # the lengths of the cache are those before this pass, whenever it runs
            return transformer(x, replace(now, step=_apart(now.step)))

        try:
            replay, result = self._record(work)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            log.warning(f"a pass could not be recorded as a CUDA graph and runs as usual: {reason}")
            return None
        return Recording(static, replay, result)


def _inputs(x: Tensor, now: Pass) -> Iterator[Tensor]:
    """All tensors of a pass whose values change from picture to picture, but for the cache."""
    condition = now.step.condition
    yield from (x, now.cos, now.sin, condition.pooled, condition.modulation, *now.mix.values())
    yield from (tensor for pair in condition.text for tensor in pair)
    yield from (tensor for tensor in (condition.text_mask, now.step.visible) if tensor is not None)


def _bound(static: list[Tensor], now: Pass) -> tuple[Tensor, Pass]:
    """The same pass on other memory, in the order of `_inputs`; the cache's is the same."""
    step, rest = now.step, iter(static)
    old = step.condition
    x, cos, sin, pooled, modulation = (next(rest) for _ in range(5))
    mix = {layer: next(rest) for layer in now.mix}
    text = tuple((next(rest), next(rest)) for _ in old.text)
    mask = next(rest) if old.text_mask is not None else None
    visible = next(rest) if step.visible is not None else None
    condition = replace(old, pooled=pooled, modulation=modulation, text=text, text_mask=mask)
    step = _apart(replace(step, condition=condition, visible=visible))
    return x, replace(now, step=step, cos=cos, sin=sin, mix=mix)


def _apart(step: Step) -> Step:
    """The step with a cache of its own on the same memory."""
    if step.cache is None:
        return step
    return replace(step, cache=step.cache.detached())


def _key(transformer: InfinityTransformer, inputs: list[Tensor], now: Pass) -> Hashable:
    """What must be the same for a recording to be valid: sizes, and the addresses of weights and cache."""
    step, cache = now.step, now.step.cache
    absent = (step.condition.text_mask is None, step.visible is None)
    return (
        tuple((tensor.shape, tensor.dtype) for tensor in inputs),
        (*absent, step.store, tuple(now.mix), now.kernels.name, step.condition.batch),
        tuple(parameter.data_ptr() for parameter in transformer.blocks.parameters()),
        cache and (tuple(x.data_ptr() for x in cache.layers), tuple(cache.lengths), cache.layers[0].stride()),
    )
