"""Where on the Hub: a data set for shards that are finished, a bucket for those that are still being made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sra_data.errors import ConfigError
from sra_data.hub import Asking, refuse_no_name
from sra_data.terminal import Reporter

SCHEME = "hf://"
KINDS = {"datasets": False, "buckets": True}  # behind the scheme -> whether it is a bucket


@dataclass(frozen=True)
class Place:
    """A data set or a bucket, or a folder in a bucket.

    Attributes:
        name: "owner/name".
        revision: branch, tag or commit of a data set; None for its main branch.
        prefix: folder in a bucket, without a slash at either end; empty for all of it.
        is_bucket: whether it is one.
    """

    name: str
    revision: str | None = None
    prefix: str = ""
    is_bucket: bool = False

    def __str__(self) -> str:
        """As it is written on the command line."""
        if self.is_bucket:
            return "/".join(filter(None, (f"{SCHEME}buckets/{self.name}", self.prefix)))
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def page(self) -> str:
        """Its address for people."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'buckets' if self.is_bucket else 'datasets'}/{self.name}"

    @property
    def asking(self) -> Asking:
        """What the Hub's refusals begin and end with."""
        return Asking(str(self), page=self.page)


def place_of(text: str, revision: str | None = None) -> Place:
    """What is meant by owner/name[@revision], hf://datasets/owner/name[@revision] or hf://buckets/owner/name[/folder].

    Args:
        text: as it was written.
        revision: given beside it.

    Raises:
        ConfigError: If it is none of them, or names two revisions.
    """
    rest, is_bucket = text, False
    if text.startswith(SCHEME):
        kind, _, rest = text.removeprefix(SCHEME).partition("/")
        if kind not in KINDS:
            raise ConfigError(f"{text}: neither a data set nor a bucket; write owner/name or hf://buckets/owner/name")
        is_bucket = KINDS[kind]
    rest, at, own = rest.partition("@")
    if (is_bucket and (at or revision)) or (at and revision not in (None, own)):
        why = "a bucket has no revisions" if is_bucket else f"two revisions, {own} and {revision}"
        raise ConfigError(f"{text}: {why}; leave {'it' if is_bucket else 'one'} out")
    owner, _, name = rest.partition("/")
    name, _, prefix = name.partition("/") if is_bucket else (name, "", "")
    if not owner or not name or (at and not own) or ".." in prefix.split("/"):
        raise ConfigError(f"{text}: no place on the Hub; write owner/name, or hf://buckets/owner/name for a bucket")
    refuse_no_name(f"{owner}/{name}", Asking(text))
    return Place(f"{owner}/{name}", own or revision, prefix.strip("/"), is_bucket)


def refuse_without_buckets(api: Any, place: Place) -> None:
    """Refuse a bucket where the installed library knows none.

    Raises:
        ConfigError: With what to install.
    """
    if place.is_bucket and not hasattr(api, "sync_bucket"):
        from huggingface_hub import __version__

        raise ConfigError(
            f"{place}: huggingface_hub {__version__} knows no buckets; run `pip install -U huggingface_hub`, or finish "
            "the shards and push them as a data set"
        )


@contextmanager
def own_bars(reporter: Reporter) -> Iterator[None]:
    """The Hub's own progress bars on a terminal, and none elsewhere; its remarks nowhere."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    is_hidden = type(reporter) is Reporter or not sys.stderr.isatty()
    had_bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if is_hidden and had_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if is_hidden and had_bars:
            enable_progress_bars()
