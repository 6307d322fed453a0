"""Which folder of this machine stands for a URL, and where the cache of parts is.

The folder's name is the URL itself, so whatever process is handed the folder knows the store, on this machine or on
another one; nothing in the folder says it, because a folder may come from a stranger.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from sra_data.errors import ConfigError

WORKSPACE, CACHE_DIR, CACHE_GIB = "SRA_WORKSPACE", "SRA_CACHE_DIR", "SRA_CACHE_GIB"
DEFAULT_GIB = 16.0  # two windows of a teacher 8,192 wide, two layers kept, fit in it
LONGEST_NAME = 255  # of a folder
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
COLLAPSED = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")  # what `pathlib.Path` makes of a URL
LOCAL = ("file", "local")


def url_in(place: str | os.PathLike[str]) -> str | None:
    """The URL that is meant, without a slash at its end; None for a folder of this machine."""
    text = COLLAPSED.sub(r"\1://", os.fspath(place), count=1)
    found = SCHEME.fullmatch(text)
    return None if found is None or found[1].lower() in LOCAL else f"{found[1].lower()}://{found[2].rstrip('/')}"


def local_path(place: str | os.PathLike[str]) -> Path:
    """A folder of this machine, written as a path or as file://."""
    found = SCHEME.fullmatch(COLLAPSED.sub(r"\1://", os.fspath(place), count=1))
    return Path(place) if found is None else Path(unquote(found[2]))


def mirror_folder(url: str) -> Path:
    """The folder that stands for a URL.

    Raises:
        ConfigError: If the URL names nothing in its store, or is too long for a folder's name.
    """
    name = quote(url, safe="")
    if not url.partition("://")[2].strip("/"):
        raise ConfigError(f"{url}: names no place in the store; write, say, {url.partition('://')[0]}://bucket/shards")
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"{url}: a URL of {len(url)} characters; choose a shorter prefix, of some 200 at most")
    return workspaces() / name


def url_of(folder: Path) -> tuple[Path, str] | None:
    """The folder of shards, and the URL, that a folder stands for or lies in; None for one that is a folder only."""
    above = f"{workspaces()}{os.sep}"
    place = os.fspath(folder)
    if not place.startswith(above):
        return None
    name = place[len(above) :].partition(os.sep)[0]
    url = unquote(name)
    return (Path(above) / name, url) if SCHEME.fullmatch(url) else None


def workspaces() -> Path:
    """Where the folders that stand for URLs are."""
    return _chosen(WORKSPACE) or _home() / "stores"


def cache_folder() -> Path:
    """Where blocks of parts are kept."""
    return _chosen(CACHE_DIR) or _home() / "blocks"


def cache_bytes() -> int:
    """What the blocks may weigh in all.

    Raises:
        ConfigError: If it is no size.
    """
    text = os.environ.get(CACHE_GIB) or str(DEFAULT_GIB)
    try:
        gib = float(text)
        if not 0 < gib < 1 << 33:  # NaN is neither
            raise ValueError
    except ValueError:
        raise ConfigError(f"{CACHE_GIB}={text}: not a size; give gibibytes above 0, say 16") from None
    return int(gib * (1 << 30))


def choose_places(
    *, workspace: str | None = None, cache_dir: str | None = None, cache_gib: float | None = None
) -> None:
    """Choose the places for this process and those it starts; what is None stays as it is.

    Raises:
        ConfigError: If the size is none.
    """
    for name, folder in ((WORKSPACE, workspace), (CACHE_DIR, cache_dir)):
        if folder is not None:
            os.environ[name] = os.path.abspath(os.path.expanduser(folder))
    if cache_gib is not None:
        os.environ[CACHE_GIB] = repr(cache_gib)
        cache_bytes()


def _chosen(name: str) -> Path | None:
    found = os.environ.get(name)
    return Path(os.path.abspath(os.path.expanduser(found))) if found else None


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "sra-distill"
