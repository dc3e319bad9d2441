"""CUDA graphs of the transformer's blocks: what a pass gives the GPU to do is recorded once and then replayed at once.

A pass of Infinity-2B launches thousands of small kernels; where launching them takes longer than running them, as in the
refine step, replaying a graph removes the difference.  Token counts never depend on a picture, so the passes of one picture are
those of the next, as long as weights and KV cache stay where they are.  Embedding, head and sampling run as usual.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .backbone import Pass, run_whole
from .cache import KVCache
from .infinity import InfinityCondition, InfinityTransformer

MOST = 64  # recordings kept; one a scale, refine step and length of prompt
Replay = Callable[[], object]
log = logging.getLogger(__name__)


def record_cuda(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record `work` without running it: what runs it, and where its result will be.

    Attention is bound to kernels that are known to be right in a graph (cuDNN's before 9.15.1 are not for every length).
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
    """The recordings of one model.  A pass that is seen for the first time runs as usual, from the second time on as a graph.

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
        """An empty `KVCache(*sizes)` on the memory of earlier pictures, where that is free, so that it stays where it is.

        When other sizes are needed, the old memory and all recordings on it are let go.
        """
        if self._lent and self._lent():
            return KVCache(*sizes)
        if self._sizes != sizes:
            self.clear()
            self._memory, self._sizes = KVCache(*sizes), sizes
        lent = self._memory.twin()
        self._lent = weakref.ref(lent)
        return lent

    def clear(self) -> None:
        """Let all recordings and all memory go."""
        self._recordings.clear()
        self._memory = self._sizes = None

    def run(self, transformer: InfinityTransformer, x: Tensor, step: Pass, condition: InfinityCondition) -> Tensor:
        """What `transformer(x, step, condition)` returns and does to the cache."""
        if step.branch is not run_whole:  # chooses tokens anew in every pass
            return transformer(x, step, condition)
        inputs = _inputs(x, step, condition)
        key = _key(transformer, inputs, step, condition)
        if key not in self._recordings:
            self._remember(key, None)
            return transformer(x, step, condition)
        recording = self._recordings[key] or self._recorded(transformer, inputs, step, condition)
        if recording is None:
            return transformer(x, step, condition)
        self._remember(key, recording)
        torch._foreach_copy_(recording.inputs, inputs)
        recording.replay()
        if step.store:  # the graph has filled these places
            for layer in range(len(transformer.blocks)):
                step.cache.reserve(layer, x.shape[1])
        return recording.result.clone()

    def _remember(self, key: Hashable, recording: Recording | None) -> None:
        """Keep it as the youngest; the one not used for longest goes."""
        self._recordings.pop(key, None)
        self._recordings[key] = recording
        if len(self._recordings) > MOST:
            del self._recordings[next(iter(self._recordings))]

    def _recorded(
        self, transformer: InfinityTransformer, inputs: list[Tensor], step: Pass, condition: InfinityCondition
    ) -> Recording | None:
        """None where this pass cannot be recorded."""
        static = [tensor.clone() for tensor in inputs]
        x, step, condition = _bound(static, step, condition)

        def work() -> Tensor:  # the lengths of the cache are those before this pass, whenever it runs
            return transformer(x, replace(step, cache=step.cache and step.cache.twin()), condition)

        try:
            replay, result = self._record(work)
        except RuntimeError as error:
            log.warning("a pass could not be recorded as a CUDA graph and runs as usual: %s", str(error).partition("\n")[0])
            return None
        return Recording(static, replay, result)


def _inputs(x: Tensor, step: Pass, condition: InfinityCondition) -> list[Tensor]:
    """All tensors of a pass whose values change from picture to picture, but for the cache."""
    text = [tensor for pair in condition.text for tensor in pair]
    optional = [tensor for tensor in (condition.text_mask, step.visible) if tensor is not None]
    return [x, step.cos, step.sin, condition.pooled, condition.modulation, *step.mix.values(), *text, *optional]


def _bound(static: list[Tensor], step: Pass, condition: InfinityCondition) -> tuple[Tensor, Pass, InfinityCondition]:
    """The same pass on other memory, in the order of `_inputs`; the cache's is the same, but its owner may go."""
    x, cos, sin, pooled, modulation, *rest = static
    mix, rest = dict(zip(step.mix, rest, strict=False)), rest[len(step.mix) :]
    layers = len(condition.text)
    text, rest = tuple(zip(rest[: 2 * layers : 2], rest[1 : 2 * layers : 2], strict=True)), rest[2 * layers :]
    mask = rest.pop(0) if condition.text_mask is not None else None
    visible = rest.pop(0) if step.visible is not None else None
    cache = step.cache and step.cache.twin()
    return (
        x,
        replace(step, cos=cos, sin=sin, visible=visible, mix=mix, cache=cache),
        InfinityCondition(pooled, modulation, text, mask, condition.batch),
    )


def _key(transformer: InfinityTransformer, inputs: list[Tensor], step: Pass, condition: InfinityCondition) -> Hashable:
    """What must be the same for a recording to be valid: sizes, and the addresses of weights and cache."""
    cache = step.cache
    return (
        tuple((tensor.shape, tensor.dtype) for tensor in inputs),
        (condition.text_mask is None, step.visible is None, step.store, tuple(step.mix), step.kernels.name, condition.batch),
        tuple(parameter.data_ptr() for parameter in transformer.blocks.parameters()),
        cache and (tuple(layer.data_ptr() for layer in cache.layers), tuple(cache.lengths), cache.layers[0].stride()),
    )
