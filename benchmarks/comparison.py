"""How far numbers are from reference ones: what `verify` collects of every case."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

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

    def check(self, name: str, actual: Tensor, allowed: float, quantity: str | None = None, relative: bool = False) -> None:
        """Compare with the expected tensor of that name, if the case has it; `relative` counts in its `unit`."""
        if name not in self.expected:
            return
        self.seen.add(name)
        reference = self.expected[name].double()
        actual = actual.double().cpu()
        if actual.numel() != reference.numel():
            raise ValueError(f"{self.case}: {name} has shape {tuple(actual.shape)}, the reference {tuple(reference.shape)}")
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
        return sorted(n for n in self.expected if n not in self.seen and not n.startswith("in.") and "NOT_USED" not in n)


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
