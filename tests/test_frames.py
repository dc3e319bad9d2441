"""The way of data is short: from a node to the attention it asks for there are at most eight frames of our
own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import TINY_FILE, with_tiny
from fakehost import FakeHost

from comfy_moss.kernels import reference

ROOT = Path(__file__).resolve().parent.parent
OURS = (str(ROOT / "comfy_moss"), str(ROOT / "kernels"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    with with_tiny(tmp_path) as host:
        yield host


def our_frames() -> list[str]:
    """Functions of the pack that are running, the innermost first."""
    frame, found = sys._getframe(2), []
    while frame:
        if frame.f_code.co_filename.startswith(OURS):
            found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found


def test_at_most_eight_frames_lie_between_a_node_and_its_attention(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clip, _ = host.run("MoSs_LoadInfinity", model=TINY_FILE).result
    seen: list[list[str]] = []
    attend = reference.F.scaled_dot_product_attention

    def listening(*args: Any, **options: Any) -> Any:
        seen.append(our_frames())
        return attend(*args, **options)

    positive = clip.encode("a red cat")
    monkeypatch.setattr(reference.F, "scaled_dot_product_attention", listening)
    draft = host.run(
        "MoSs_InfinityDraft", model=model, positive=positive, area="0.06M", refine_scales=4, preview=False
    ).result[0]
    frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
    dispatch = host.run("MoSs_TokenDispatch", frequency=frequency).result[0]
    drafted = len(seen)
    host.run("MoSs_Refine", draft=draft, dispatch=dispatch)

    inside = [frames for frames in seen if "cross_scale_attention" in frames]
    assert inside and seen[drafted:]
    # a node's inputs are checked around it
    ways = [frames[: frames.index("execute") + 1] for frames in inside]
    longest = max(ways, key=len)
    assert len(longest) <= 8, " < ".join(longest)
