"""Backbones that do one thing differently, whatever family they are of."""

from __future__ import annotations

from typing import Any

from comfy_moss.model.backbone import Backbone


class Wrapped:
    """Another backbone in all but what a subclass changes."""

    def __init__(self, inner: Backbone) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
