"""Out of memory: one sentence, everything that we held is let go, and the next prompt runs.

The draft is plain data in the host's cache of results, so it outlives the failure: the next run goes on from
it, and what the model had remembered of it is made anew.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import comfy.model_management as mm

from ..model.memory import is_out_of_memory
from ..pipeline.refine import KVStore

Result = TypeVar("Result")
SMALLER = (
    "choose a smaller area, a smaller batch_size or a method that leaves out more scales, or set kv_cache of "
    "the loader to 8 bits"
)


def guarded(work: Callable[[], Result], sentence: str, stores: Iterable[KVStore] = ()) -> Result:
    """What `work` returns.

    Args:
        sentence: of the error where memory runs out.
        stores: emptied then.

    Raises:
        ValueError: memory ran out; models are unloaded, and nothing of what was computed is held any more.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their tensors
    # the error itself is gone here, and is not the cause of what is raised: it would hold its frames
    for store in stores:
        store.clear()
    mm.unload_all_models()
    mm.soft_empty_cache()
    raise ValueError(sentence)


def stores_in(values: Iterable[Any]) -> Iterator[KVStore]:
    """Of all models that came along wires."""
    for value in values:
        model = getattr(getattr(value, "drafted", value), "model", value)
        if isinstance(store := getattr(model, "store", None), KVStore):
            yield store
