"""The cache stage's small world, and captures of its teacher by both tools."""

from __future__ import annotations

from tests.unit.stages.cache.conftest import first_world, world

__all__ = ["first_world", "world"]
