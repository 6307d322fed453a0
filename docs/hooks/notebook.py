"""A notebook as a page, without Jupyter: its words and its code, in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells: {"cell_type": "markdown" or "code", "source": text}."""
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def page(path: Path) -> str:
    """The page as Markdown."""
    cells = cells_of(path)
    return "\n\n".join(
        cell["source"] if cell["cell_type"] == "markdown" else f"```python\n{cell['source']}\n```" for cell in cells
    )
