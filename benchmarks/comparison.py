"""How far numbers are from reference ones: what `verify` collects of every case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

EXACT = 0.0


@dataclass(frozen=True)
class Check:
    """One compared quantity: worst absolute error and what is allowed."""

    case: str
    quantity: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


@dataclass
class Comparison:
    """Collects the worst error of each quantity of one case."""

    case: str
    expected: dict[str, Tensor]
    worst: dict[str, Check] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def check(
        self, name: str, actual: Tensor, allowed: float, quantity: str | None = None, relative: bool = False
    ) -> None:
        """Compare with the expected tensor of that name, if the case has it; `relative` counts in its
        `unit`."""
        if name not in self.expected:
            return
        self.seen.add(name)
        reference = self.expected[name].double()
        actual = actual.double().cpu()
        if actual.numel() != reference.numel():
            raise ValueError(
                f"{self.case}: {name} has shape {tuple(actual.shape)}, the reference {tuple(reference.shape)}"
            )
        error = (actual.reshape(reference.shape) - reference).abs().max().item()
        scale = max(self.unit(reference), 1e-12) if relative else 1.0
        self.note(quantity or re.sub(r"^s\d+\.", "", name), error / scale, allowed)

    def take(self, name: str) -> Tensor:
        """A tensor of the case that is an input, not a number to compare with."""
        self.seen.add(name)
        return self.expected[name]

    def unit(self, reference: Tensor) -> float:
        """What relative errors are counted in."""
        return reference.std(correction=0).item()

    def note(self, quantity: str, error: float, allowed: float) -> None:
        old = self.worst.get(quantity)
        if old is None or not error <= old.error:
            self.worst[quantity] = Check(self.case, quantity, error, allowed)

    def unused(self) -> list[str]:
        """Expected tensors that nothing was compared with."""
        return sorted(
            n for n in self.expected if n not in self.seen and not n.startswith("in.") and "NOT_USED" not in n
        )


class PeakComparison(Comparison):
    """Counts relative errors in the reference's largest number."""

    def unit(self, reference: Tensor) -> float:
        return reference.abs().max().item()


class Hooks(list):
    """Forward hooks that are removed when the block ends."""

    def add(self, hook: object) -> None:
        self.append(hook)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_exc: object) -> None:
        for hook in self:
            hook.remove()


def check_kinds(folder: Path, kinds: Collection[str], known: Collection[str]) -> None:
    """Refuse a directory with cases of a kind that nobody knows.

    Raises:
        ValueError: it has some.
    """
    if unknown := sorted({*kinds} - {*known, "weights"}):
        raise ValueError(f"{folder / 'manifest.json'} lists cases of unknown kind: {', '.join(unknown)}")


def run_case(
    path: Path, name: str, facts: Mapping[str, Any], kind: type[Comparison], run: Callable[[Any], None] | None
) -> Iterator[Check]:
    """Run one case; yields one Check a quantity.

    Args:
        facts: what the manifest says about its file.
        run: None = these are weights, not a case.

    Raises:
        ValueError: a changed file, or expected tensors that nothing was compared with.
    """
    if "sha256" in facts and hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"]:
        raise ValueError(f"{path} is not the file its manifest describes (its checksum differs)")
    if run is None:
        return
    comparison = kind(name, load_file(path))
    run(comparison)
    if comparison.unused():
        raise ValueError(f"{name}: nothing was compared with {', '.join(comparison.unused()[:5])}")
    yield from comparison.worst.values()
