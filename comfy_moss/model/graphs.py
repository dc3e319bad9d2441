"""CUDA graphs of the transformer's blocks: what a pass has the GPU do is recorded once and then replayed.

A pass of Infinity-2B launches hundreds of small kernels; where launching them takes longer than running
them, as in a refine pass, replaying a graph removes the difference.  Token counts never depend on a
picture, and prompts are padded to few lengths, so the passes of one picture are those of the next, as long
as weights and KV cache stay where they are.  Embedding, head and sampling run as usual.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Condition, Pass, Step
from .cache import KVCache

MOST = 64  # recordings kept; one a scale and refine pass
MOST_BYTES = 2 * 2**30  # of GPU memory that recordings may hold
TEXT = 32  # text tokens: prompts are padded to a multiple, so that one of another length replays
OLDEST = (2, 6)  # version of torch that can bind attention to a choice of kernels
Replay = Callable[[], object]
log = logging.getLogger(__name__)


def graphs_for(device: torch.device, spare_memory: bool = True) -> tuple[Graphs | None, str]:
    """Graphs for a model on that device, and why, in one sentence for the log.

    Args:
        spare_memory: False where every byte counts (a host's low-VRAM modes): recordings hold memory.
    """
    if device.type != "cuda":
        return None, f"no CUDA graphs: the model is on {device.type}"
    if torch.version.hip:
        return None, "no CUDA graphs: written for NVIDIA cards, not tried on others"
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
        newest = ".".join(map(str, OLDEST))
        return None, f"no CUDA graphs: they need PyTorch {newest} or newer, here is {torch.__version__}"
    if not spare_memory:
        return None, "no CUDA graphs: memory is scarce, and recordings hold some"
    held = f"at most {MOST} passes and {MOST_BYTES / 2**30:g} GiB"
    return Graphs(), f"CUDA graphs: passes are recorded when they come again ({held})"


def with_graphs(backbone: Any, device: torch.device, spare_memory: bool = True) -> tuple[Any, str]:
    """A backbone with graphs of its own, where its family and the device can have them, and why; arguments
    as of `graphs_for`.
    """
    graphs, reason = graphs_for(device, spare_memory)
    if not hasattr(backbone, "graphs"):
        return backbone, "no CUDA graphs: not written for this family of models"
    return replace(backbone, graphs=graphs), reason


def same_attention(x: Tensor) -> contextlib.AbstractContextManager:
    """Bind torch's attention to one choice of kernels, so that running, recording and replaying a pass are
    the same: those that are right in a graph (cuDNN's before 9.15.1 are not for every length).
    """
    if not x.is_cuda:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends, set_priority=True)


class CudaRecorder:
    """Records work as CUDA graphs that share one pool of memory: they run one after another."""

    def __init__(self) -> None:
        self._pool: Any = None
        self.nbytes = 0  # that recording took from the device

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record `work` without running it: what runs it, and where its result will be."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        self.nbytes += max(0, torch.cuda.memory_reserved() - before)
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
        record: makes what records passes; asked again when all recordings are let go.
    """

    def __init__(self, record: Callable[[], Callable[..., tuple[Replay, Tensor]]] = CudaRecorder) -> None:
        self._make, self._record = record, record()
        self._recordings: dict[Hashable, Recording | None] = {}
        self._unfit: set[Hashable] = set()  # passes that could not be recorded
        self._conditions: dict[Hashable, Bound] = {}
        self._memory: KVCache | None = None  # lent to one picture after the other, and never filled itself
        self._sizes: tuple[Any, ...] | None = None
        self._lent: weakref.ref[KVCache] | None = None
        self._holders: list[tuple[dict[str, Tensor], str]] = []  # of the blocks' weights

    def new_cache(self, capacity: list[int], *sizes: Any) -> KVCache:
        """An empty `KVCache(capacity, *sizes)`, on the memory of earlier pictures where that is free.

        When it is too small, it and all recordings on it are let go for one that serves the earlier ones too.
        """
        if self._lent and self._lent():
            return KVCache(capacity, *sizes)
        if self._sizes != sizes or len(capacity) != len(self._memory.layers):
            self.clear()
        held = [layer.shape[3] for layer in self._memory.layers] if self._memory else [0] * len(capacity)
        if any(a < b for a, b in zip(held, capacity, strict=True)):
            self.clear()
            largest = [max(pair) for pair in zip(held, capacity, strict=True)]
            self._memory, self._sizes = KVCache(largest, *sizes), sizes
        lent = self._memory.cleared()
        self._lent = weakref.ref(lent)
        return lent

    @property
    def nbytes(self) -> int:
        """Bytes that recordings took from the device."""
        return getattr(self._record, "nbytes", 0)

    @property
    def recorded(self) -> int:
        """Passes that replay."""
        return sum(recording is not None for recording in self._recordings.values())

    def clear(self) -> None:
        """Let all recordings and all memory go."""
        self._recordings.clear(), self._unfit.clear(), self._conditions.clear()
        self._memory, self._sizes, self._holders = None, None, []
        self._record = self._make()

    def run(self, transformer: nn.Module, x: Tensor, now: Pass) -> Tensor:
        """What `transformer(x, now)` returns and does to the cache."""
        with same_attention(x):
            # a branch chooses other tokens in every pass; a prefix lies elsewhere for every picture; a host
            # that has room for a part of the weights (ComfyUI says so by this name) brings the rest each time
            prefixed = any(isinstance(part, KVCache) for part in vars(now.step.condition).values())
            partly = getattr(transformer, "model_lowvram", False)
            anew = prefixed or partly or now.step.branch is not None
            hidden = None if anew else self._replayed(transformer, x, now)
            return transformer(x, now) if hidden is None else hidden

    def _replayed(self, transformer: nn.Module, x: Tensor, now: Pass) -> Tensor | None:
        """None = nothing was done: the pass is to be run."""
        step, inputs = now.step, list(_inputs(x, now))
        bound = self._bound(transformer, step.condition)
        key = _key(bound, inputs, now)
        if key in self._unfit:
            return None
        if key not in self._recordings:
            self._remember(key, None)
            return None
        recording = self._recordings[key] or self._recorded(transformer, inputs, now, bound)
        if recording is None:
            del self._recordings[key]
            self._unfit.add(key)
            return None
        self._remember(key, recording)
        torch._foreach_copy_(recording.inputs, inputs)
        recording.replay()
        if step.store:  # the graph has filled the cache's memory
            for layer in range(len(transformer.blocks)):
                step.cache.advance(layer, x.shape[1])
        return recording.result.clone()

    def _bound(self, transformer: nn.Module, condition: Condition) -> Bound:
        """Memory of this condition's sizes that holds its values: copied there once a picture."""
        values = list(_tensors(condition))
        sizes = (type(condition), condition.batch, tuple((value.shape, value.dtype) for value in values))
        if sizes not in self._conditions:
            memory = [value.clone() for value in values]
            self._conditions[sizes] = Bound(sizes, _with(condition, iter(memory)), memory)
        bound = self._conditions[sizes]
        if bound.filled is None or bound.filled() is not condition:
            torch._foreach_copy_(bound.memory, values)
            bound.filled = weakref.ref(condition)
        self._holders = self._holders or _holders(transformer)
        # a host may move weights between two passes of one picture
        bound.weights = tuple(holder[name].data_ptr() for holder, name in self._holders)
        return bound

    def _remember(self, key: Hashable, recording: Recording | None) -> None:
        """Keep it as the youngest; the one not used for longest goes."""
        self._recordings.pop(key, None)
        self._recordings[key] = recording
        if len(self._recordings) > MOST:
            del self._recordings[next(iter(self._recordings))]

    def _recorded(
        self, transformer: nn.Module, inputs: list[Tensor], now: Pass, bound: Bound
    ) -> Recording | None:
        """None where this pass cannot be recorded."""
        if self.nbytes > MOST_BYTES:
            held = f"{self.nbytes / 2**20:.0f} MiB"
            log.warning(f"CUDA graphs hold {held}, more than they may; they start anew")
            self._recordings.clear()
            self._record = self._make()
        static = [tensor.clone() for tensor in inputs]
        x, now = _rebound(static, now, bound)

        def work() -> Tensor:  # the lengths of the cache are those before this pass, whenever it runs
            return transformer(x, replace(now, step=_apart(now.step)))

        try:
            replay, result = self._record(work)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            log.warning(f"a pass could not be recorded as a CUDA graph and runs as usual: {reason}")
            return None
        log.debug(f"recorded a pass of {x.shape[1]} tokens; recordings hold {self.nbytes / 2**20:.0f} MiB")
        return Recording(static, replay, result)


@dataclass
class Bound:
    """A condition on memory of its own, from which recordings read.

    Attributes:
        filled: whose values are in it.
        weights: addresses of the model's weights, as of the last pass.
    """

    sizes: Hashable
    condition: Condition
    memory: list[Tensor]
    filled: weakref.ref[Condition] | None = None
    weights: Hashable = None


def _holders(transformer: nn.Module) -> list[tuple[dict[str, Tensor], str]]:
    """Where the modules of the blocks hold their weights, which may be exchanged there."""
    held = [one for part in transformer.blocks.modules() for one in (part._parameters, part._buffers)]
    return [(holder, name) for holder in held for name, value in holder.items() if value is not None]


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in dataclasses and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _with(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of `_tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(_with(part, tensors) for part in value)
    if is_dataclass(value):
        return replace(value, **{f.name: _with(getattr(value, f.name), tensors) for f in fields(value)})
    return value


def _inputs(x: Tensor, now: Pass) -> Iterator[Tensor]:
    """All tensors of a pass whose values change from pass to pass, but for the condition and the cache."""
    yield from (x, now.cos, now.sin, *now.mix.values())
    yield from () if now.step.visible is None else (now.step.visible,)


def _rebound(static: list[Tensor], now: Pass, bound: Bound) -> tuple[Tensor, Pass]:
    """The same pass on other memory, in the order of `_inputs`; the cache's is the same."""
    rest = iter(static)
    x, cos, sin = (next(rest) for _ in range(3))
    mix = {layer: next(rest) for layer in now.mix}
    visible = next(rest) if now.step.visible is not None else None
    step = _apart(replace(now.step, condition=bound.condition, visible=visible))
    return x, replace(now, step=step, cos=cos, sin=sin, mix=mix)


def _apart(step: Step) -> Step:
    """The step with a cache of its own on the same memory."""
    if step.cache is None:
        return step
    return replace(step, cache=step.cache.detached())


def _key(bound: Bound, inputs: list[Tensor], now: Pass) -> Hashable:
    """What must be the same for a recording to be valid: sizes, and the addresses of weights and cache."""
    step, cache = now.step, now.step.cache
    return (
        bound.sizes, bound.weights,
        tuple((tensor.shape, tensor.dtype) for tensor in inputs),
        (step.visible is None, step.store, tuple(now.mix), now.kernels.name),
        cache and (tuple(x.data_ptr() for x in cache.layers), tuple(cache.lengths), cache.layers[0].stride()),
    )
