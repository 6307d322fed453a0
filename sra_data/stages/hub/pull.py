"""`sra-data pull`: shards from the Hub, checked to the last byte before they have their name.

They come into ``<shards>.pulling`` beside it, and get their name when every receipt and every seal is as it was
written. An interrupted pull goes on there, and fetches only what is missing; what came damaged is thrown away first. A
folder with something else in it is never written into, and of a stranger's data set nothing comes but the files that
shards consist of.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ConfigError, ShardError
from sra_data.hub import in_one_line, refuse_switched_off
from sra_data.shards.durable import explain, flush, folder_lock, make_folder
from sra_data.shards.layout import ours_among
from sra_data.shards.manifest import MANIFEST, Manifest
from sra_data.stages.hub.place import Place, own_bars, refuse_without_buckets
from sra_data.stages.hub.push import unfinished_in
from sra_data.stages.verify import Broken, VerifyOptions, verify
from sra_data.terminal import Reporter, bytes_in_words

PULLING = ".pulling"  # the end of the name of what is being fetched
OF_THE_LIBRARY = ".cache"  # what it remembers of a fetch, in the folder
RECEIPT = ".receipt.json"


@dataclass(frozen=True)
class PullOptions:
    """What is pulled, and where to.

    Attributes:
        place: where the shards are.
        shards: the folder they become; it must not exist, or be empty, or hold these very shards.
    """

    place: Place
    shards: str = "shards"


@dataclass(frozen=True)
class PullSummary(Told):
    """What lies here now.

    Attributes:
        place: where it came from; `shards` where it lies.
        commit: of a data set; None of a bucket.
        sections: the folders; `unfinished` those that are.
        num_bytes: of all files.
        was_there: whether nothing had to be fetched.
    """

    place: str
    shards: str
    commit: str | None
    sections: tuple[str, ...]
    unfinished: tuple[str, ...]
    num_bytes: int
    was_there: bool

    def ending(self) -> Ending:
        """What the command ends with."""
        said = "were there already" if self.was_there else f"pulled and checked, {bytes_in_words(self.num_bytes)}"
        facts = Grid.of_facts(("commit", self.commit or ""), ("unfinished", ", ".join(self.unfinished)))
        title = f"{self.shards}: {', '.join(self.sections)}: {said}"
        return Ending(title, (facts,), next=f"sra-data list {self.shards}")


class _Source(Protocol):
    """Where files come from."""

    commit: str | None

    def sizes(self) -> Mapping[str, int]:
        """Every file that is there, relative to the shards, and its bytes."""

    def fetch_one(self, path: str, folder: Path) -> None:
        """One small file."""

    def fetch(self, sections: tuple[str, ...], folder: Path) -> None:
        """The files of sections, those that are there already left alone."""


class _DataSet:
    """A data set at one commit."""

    def __init__(self, place: Place, api: Any) -> None:
        self.place, self.api = place, api
        self.commit: str | None = api.repo_info(place.name, repo_type="dataset", revision=place.revision).sha
        self.at = {"repo_id": place.name, "repo_type": "dataset", "revision": self.commit}

    def sizes(self) -> Mapping[str, int]:
        listed = self.api.list_repo_tree(recursive=True, **self.at)
        return {one.path: one.size for one in listed if hasattr(one, "size")}

    def fetch_one(self, path: str, folder: Path) -> None:
        self.api.hf_hub_download(filename=path, local_dir=folder, **self.at)

    def fetch(self, sections: tuple[str, ...], folder: Path) -> None:
        wanted = [f"{_escaped(section)}/*" for section in sections]
        self.api.snapshot_download(local_dir=folder, allow_patterns=["*.md", *wanted], **self.at)


class _Bucket:
    """A bucket, or a folder in one, as it is now."""

    commit: str | None = None

    def __init__(self, place: Place, api: Any) -> None:
        self.place, self.api = place, api
        self.start = f"{place.prefix}/" if place.prefix else ""

    def sizes(self) -> Mapping[str, int]:
        listed = self.api.list_bucket_tree(self.place.name, prefix=self.place.prefix or None, recursive=True)
        files = {one.path: one.size for one in listed if hasattr(one, "size") and one.path.startswith(self.start)}
        return {path.removeprefix(self.start): size for path, size in files.items()}

    def fetch_one(self, path: str, folder: Path) -> None:
        self.api.download_bucket_files(self.place.name, [(f"{self.start}{path}", folder / path)])

    def fetch(self, sections: tuple[str, ...], folder: Path) -> None:
        for section in sections:
            self.api.sync_bucket(f"{self.place}/{section}", str(folder / section), quiet=True)


def pull(options: PullOptions, reporter: Reporter) -> PullSummary:
    """Pull a folder of shards.

    Raises:
        ConfigError: If the Hub refuses or breaks off, or is switched off.
        ShardError: If the folder holds something else, what is there are no shards, or they came damaged.
    """
    from huggingface_hub import HfApi

    place, target, api = options.place, Path(options.shards).resolve(), HfApi()
    refuse_without_buckets(api, place)
    refuse_switched_off(place.asking)
    _refuse_occupied(target, options.shards)
    staging = target.with_name(target.name + PULLING)
    with in_one_line(place.asking):
        source: _Source = _Bucket(place, api) if place.is_bucket else _DataSet(place, api)
        sizes = source.sizes()
    if MANIFEST not in sizes:
        raise ShardError(f"{place}: no shards there ({MANIFEST} is missing), or their push has not come to its end")
    make_folder(staging)
    with folder_lock(staging):
        with in_one_line(place.asking), own_bars(reporter):
            source.fetch_one(MANIFEST, staging)
        manifest = _manifest_in(staging, place)
        if _is_there(manifest, target, options):
            shutil.rmtree(staging)
            return _summary(options, source, manifest, was_there=True, num_bytes=0)
        wanted = {path: sizes[path] for path in ours_among(sizes, manifest.sections)}
        _refuse_full_disk(staging, wanted)
        reporter.line(f"pull: {len(wanted):,} files, {bytes_in_words(sum(wanted.values()))}, into {options.shards}")
        with in_one_line(place.asking), own_bars(reporter):
            source.fetch(tuple(manifest.sections), staging)
        _tidy(staging, wanted, place)
        _refuse_damaged(staging, place, reporter)
        _give_its_name(staging, target)
    return _summary(options, source, manifest, was_there=False, num_bytes=sum(wanted.values()))


def _summary(
    options: PullOptions, source: _Source, manifest: Manifest, *, was_there: bool, num_bytes: int
) -> PullSummary:
    sections, unfinished = tuple(manifest.sections), unfinished_in(manifest)
    return PullSummary(str(options.place), options.shards, source.commit, sections, unfinished, num_bytes, was_there)


def _escaped(section: str) -> str:
    import glob

    return glob.escape(section)


# --------------------------------------------------------------------------- refusals


def _refuse_occupied(target: Path, shown: str) -> None:
    """Refuse a folder with something in it that is no shards."""
    if Manifest.exists(target):  # which ones, the manifests will tell
        return
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ShardError(f"{shown}: there is something else in it; give a folder that is new or empty")


def _manifest_in(staging: Path, place: Place) -> Manifest:
    """The manifest that came; every section of a data set's is sealed.

    Raises:
        ShardError: If it is none, or says otherwise; what is here stays only where shards had begun to come.
    """
    try:
        manifest = Manifest.load(staging)
        if not place.is_bucket:
            _refuse_unsealed(manifest)
    except ShardError as error:
        why = str(error).partition("; ")[0].replace(f"{staging}/", "")
        (staging / MANIFEST).unlink()
        if not (staging / "corpus").exists():
            shutil.rmtree(staging)
        raise ShardError(f"{place}: no shards that can be read ({why}); ask its owner to push them again") from None
    return manifest


def _refuse_unsealed(manifest: Manifest) -> None:
    for section in manifest.sections or ["corpus"]:
        manifest.sealed(section)


def _is_there(manifest: Manifest, target: Path, options: PullOptions) -> bool:
    """Whether the folder holds these very shards already.

    Raises:
        ShardError: If it holds others.
    """
    if not Manifest.exists(target):
        return False
    if (target / MANIFEST).read_bytes() == (manifest.shards / MANIFEST).read_bytes():
        return True
    shutil.rmtree(manifest.shards)
    raise ShardError(f"{options.shards}: holds other shards than {options.place}; give another folder")


def _refuse_full_disk(staging: Path, wanted: Mapping[str, int]) -> None:
    """Refuse what the disk has no room for, what has come already aside."""
    missing = sum(size for path, size in wanted.items() if not (staging / path).is_file())
    free = shutil.disk_usage(staging).free
    if missing > free:
        sizes = f"{bytes_in_words(missing)} are to come, {bytes_in_words(free)} are free"
        raise ShardError(f"{staging.parent}: {sizes}; free space there, or give a folder on another disk")


def _tidy(staging: Path, wanted: Mapping[str, int], place: Place) -> None:
    """Remove what is no part of the shards, of an earlier pull or not.

    Raises:
        ConfigError: If something that is did not come.
    """
    for path in staging.rglob("*"):
        name = path.relative_to(staging).as_posix()
        if path.is_file() and name not in wanted and not name.startswith(f"{OF_THE_LIBRARY}/"):
            path.unlink()
    for name, size in wanted.items():
        path = staging / name
        if not path.is_file() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            raise ConfigError(f"{place}: the Hub broke off, {name} did not come whole; run the same command again")


def _refuse_damaged(staging: Path, place: Place, reporter: Reporter) -> None:
    """Every byte, every receipt and every seal; what is wrong is thrown away, so that it is fetched anew.

    Raises:
        ShardError: Naming the first.
    """
    found = verify(VerifyOptions(staging), reporter)
    wrong = [
        (broken, problem)
        for broken, problem in zip(found.broken, found.problems, strict=True)
        if not (place.is_bucket and broken.what == "unfinished")
    ]
    for broken, _ in wrong:
        _throw_away(staging, broken)
    if wrong:
        why = wrong[0][1].partition("; ")[0].replace(f"{staging}/", "")
        raise ShardError(
            f"{place}: what came is damaged ({why}); run the same command again, which fetches that anew, and if it is "
            "refused once more ask the owner to push it again"
        )


def _throw_away(staging: Path, broken: Broken) -> None:
    """What is broken: a file with its receipt, else its whole section, else everything."""
    section = staging / broken.section
    if not broken.section or not broken.name:
        shutil.rmtree(section, ignore_errors=True)
        section.mkdir(exist_ok=True)
        return
    file = section / broken.name
    for path in (file, file.with_suffix(RECEIPT)):
        path.unlink(missing_ok=True)


def _give_its_name(staging: Path, target: Path) -> None:
    """The last step: whole and checked, or not there."""
    try:
        shutil.rmtree(staging / OF_THE_LIBRARY, ignore_errors=True)
        if target.exists():
            target.rmdir()  # it was empty; something that came meanwhile is not written over
        staging.rename(target)
        flush(target.parent)
    except OSError as error:
        raise explain(error, target, "naming") from error
