"""Manifests changed by hand, sealed anew: for tests of what lies behind the seals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sra_data.shards.manifest import Manifest


def change_manifest(shards: Path | str, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` change what it says."""
    manifest = Manifest.load(Path(shards))
    change(manifest.content)
    manifest.write()
