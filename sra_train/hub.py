"""Whether a finished model could be pushed, asked before it is trained: see `sra_data/hub.py`, which asks."""

from __future__ import annotations

from sra_data.hub import Asking, refuse_unwritable

INSTEAD = "leave hub.push_to out"


def refuse_unpushable(name: str) -> None:
    """Refuse a name on the Hub that the finished model could not be pushed to.

    Args:
        name: "owner/name", or a name alone for the user's own.

    Raises:
        ConfigError: One line.
    """
    refuse_unwritable(name, Asking(f"hub.push_to={name}", INSTEAD))
