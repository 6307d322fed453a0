"""`sra-data push`: a folder of shards to the Hub, as a data set that its viewer shows, or to a bucket.

Everything is checked before anything is sent: whether one may write there, then every byte. To a data set the folders
go one after the other, by the library's resumable upload; what is there already is not sent again. Manifest and card
are the last commit: until then nobody finds shards there, and whoever has them keeps a manifest that names the old
ones. A bucket takes unfinished shards too: what is there of them, the manifest last.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra_data.choices import Gated
from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ConfigError, ShardError
from sra_data.hub import in_one_line, refuse_switched_off, refuse_unwritable
from sra_data.shards.layout import CARD, files_of, ours_among, section_of
from sra_data.shards.manifest import MANIFEST, Manifest, command_for
from sra_data.stages.card import refuse_foreign_card, write_card
from sra_data.stages.hub.place import Place, own_bars, refuse_without_buckets
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter, bytes_in_words

SENT = ("*.json", "*.parquet", "*.safetensors")  # of a section's folder
NOT_SENT = ("*/*", "*.tmp")
OF_THE_HUB = (".gitattributes", CARD)  # in any data set


@dataclass(frozen=True)
class PushOptions:
    """What is pushed, and how it is seen.

    Attributes:
        shards: the folder.
        to: where it goes.
        private: a repository that is made now is seen by its owner alone.
        gated: access is asked for: given at once ("auto") or by hand ("manual").
        licence: of the corpus, for the card; what the card said before, or the corpus's data set says, where None.
    """

    shards: str
    to: Place
    private: bool = False
    gated: Gated | None = None
    licence: str | None = None


@dataclass(frozen=True)
class PushSummary(Told):
    """What lies on the Hub now.

    Attributes:
        place: as it is pulled from.
        page: its address.
        commit: of a data set; None of a bucket.
        sections: the folders.
        unfinished: those of them that are; of a bucket alone.
        num_files: of the shards, whether they were sent now or lay there.
        num_bytes: likewise.
    """

    place: str
    page: str
    commit: str | None
    sections: tuple[str, ...]
    unfinished: tuple[str, ...]
    num_files: int
    num_bytes: int

    def ending(self) -> Ending:
        """What the command ends with."""
        size = f"{self.num_files:,} files, {bytes_in_words(self.num_bytes)}"
        facts = Grid.of_facts(
            ("holds", size), ("commit", self.commit or ""), ("unfinished", ", ".join(self.unfinished))
        )
        return Ending(f"pushed to {self.page}", (facts,), next=f"sra-data pull {self.place}")


def push(options: PushOptions, reporter: Reporter) -> PushSummary:
    """Push a folder of shards.

    Raises:
        ConfigError: If the Hub refuses, or is switched off.
        ShardError: If the shards are damaged, or unfinished and bound for a data set.
    """
    from huggingface_hub import HfApi

    place, api = options.to, HfApi()
    manifest = Manifest.load(Path(options.shards))
    if place.is_bucket and (options.gated or options.licence):
        raise ConfigError(f"{place}: a bucket is not gated and has no card; leave --gated and --licence out")
    refuse_without_buckets(api, place)
    refuse_switched_off(place.asking)
    if place.is_bucket:
        _refuse_damaged(manifest.shards, reporter)
        return _to_bucket(options, manifest, api, reporter)
    _refuse_unfinished(manifest)
    refuse_foreign_card(manifest.shards / CARD)
    exists = refuse_unwritable(place.name, place.asking, kind="dataset")
    with in_one_line(place.asking):
        _refuse_unlike(options, api, exists=exists)
    _refuse_damaged(manifest.shards, reporter)
    return _to_data_set(options, manifest, api, reporter, exists=exists)


def _refuse_unfinished(manifest: Manifest) -> None:
    """Refuse shards of which a folder is not sealed, for a data set."""
    if (names := unfinished_in(manifest)) or not manifest.sections:
        first, shards = names[0] if names else "corpus", manifest.shards
        remedy = f"{command_for(first, shards)}, or push it to a bucket, hf://buckets/owner/name"
        raise ShardError(f"{shards / first}: unfinished; {remedy}")


def unfinished_in(manifest: Manifest) -> tuple[str, ...]:
    """The sections that are not sealed."""
    return tuple(name for name in manifest.sections if (manifest.section(name) or {}).get("root") is None)


def _refuse_damaged(shards: Path, reporter: Reporter) -> None:
    """Every byte against its receipt, every seal; what is only unfinished is let through."""
    found = verify(VerifyOptions(shards), reporter)
    pairs = zip(found.broken, found.problems, strict=True)
    problems = [problem for broken, problem in pairs if broken.what != "unfinished"]
    if problems:
        raise ShardError(problems[0])


def _refuse_unlike(options: PushOptions, api: Any, *, exists: bool) -> None:
    """Refuse a repository that holds something else, or is seen by everybody where it should not be."""
    place = options.to
    if not exists:
        return
    if options.private and not api.repo_info(place.name, repo_type="dataset").private:
        raise ConfigError(f"{place}: exists and is public; leave --private out, or make it private at {place.page}")
    there = _files_there(api, place)
    if {MANIFEST, "corpus/plan.json"} <= there:
        return
    foreign = sorted(path for path in there if path not in (*OF_THE_HUB, MANIFEST) and section_of(path) is None)
    if foreign:
        raise ConfigError(f"{place}: holds {foreign[0]}, which is no file of shards; push to a name of its own")


def _files_there(api: Any, place: Place) -> set[str]:
    """The files of a data set at its revision, or at the main branch where that is not made yet."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return set(api.list_repo_files(place.name, repo_type="dataset", revision=place.revision))
    except RevisionNotFoundError:
        return set(api.list_repo_files(place.name, repo_type="dataset"))


# --------------------------------------------------------------------------- a data set


def _to_data_set(
    options: PushOptions, manifest: Manifest, api: Any, reporter: Reporter, *, exists: bool
) -> PushSummary:
    """Make it, send every section, and commit manifest and card last."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place, shards = options.to, manifest.shards
    told = (shards / MANIFEST).read_bytes()  # of the shards that were checked, whoever goes on with them meanwhile
    write_card(shards, licence=options.licence, hub_id=str(place))
    files = {section: files_of(manifest, section) for section in manifest.sections}
    wanted = {f"{section}/{name}" for section, names in files.items() for name in names}
    at = {"repo_id": place.name, "repo_type": "dataset", "revision": place.revision}
    with in_one_line(place.asking), own_bars(reporter):
        if not exists:
            api.create_repo(place.name, repo_type="dataset", private=options.private or None)
        if options.gated is not None:
            api.update_repo_settings(place.name, gated=options.gated, repo_type="dataset")
        if place.revision is not None:
            api.create_branch(place.name, branch=place.revision, repo_type="dataset", exist_ok=True)
        for section, names in files.items():
            reporter.line(f"push: {section}, {len(names):,} files")
            api.upload_folder(
                folder_path=shards / section,
                path_in_repo=section,
                commit_message=f"Shards: {section}",
                allow_patterns=list(SENT),
                ignore_patterns=[*NOT_SENT, *_left_over(shards / section, names)],
                **at,
            )
        there = set(api.list_repo_files(**at))
        if missing := sorted(wanted - there):
            raise ConfigError(
                f"{place}: {len(missing)} files did not arrive, the first {missing[0]}; run the same command again"
            )
        old = [path for path in ours_among(there) if path not in wanted]
        commit = api.create_commit(
            operations=[
                CommitOperationAdd(MANIFEST, told),
                CommitOperationAdd(CARD, shards / CARD),
                *(CommitOperationDelete(path) for path in sorted(old) if path not in (MANIFEST, CARD)),
            ],
            commit_message="Shards: manifest and card",
            **at,
        )
    return _summary(place, manifest, files, commit=str(commit.oid))


def _left_over(folder: Path, names: list[str]) -> list[str]:
    """Patterns of what lies in a section's folder and is no longer of it."""
    known = set(names)
    return [glob.escape(path.name) for path in folder.iterdir() if path.name not in known]


def _summary(place: Place, manifest: Manifest, files: dict[str, list[str]], *, commit: str | None) -> PushSummary:
    sizes = [(manifest.shards / section / name).stat().st_size for section in files for name in files[section]]
    sections = tuple(manifest.sections)
    return PushSummary(str(place), place.page, commit, sections, unfinished_in(manifest), len(sizes), sum(sizes))


# --------------------------------------------------------------------------- a bucket


def _to_bucket(options: PushOptions, manifest: Manifest, api: Any, reporter: Reporter) -> PushSummary:
    """What is there of every section, then the manifest."""
    place, shards = options.to, manifest.shards
    told = (shards / MANIFEST).read_bytes()
    files = {section: files_of(manifest, section) for section in manifest.sections}
    with in_one_line(place.asking), own_bars(reporter):
        api.create_bucket(place.name, private=options.private or None, exist_ok=True)
        for section, names in files.items():
            reporter.line(f"push: {section}, {len(names):,} files")
            api.sync_bucket(
                str(shards / section),
                f"{place}/{section}",
                include=list(SENT),
                exclude=[*NOT_SENT, *_left_over(shards / section, names)],
                quiet=True,
            )
        api.batch_bucket_files(place.name, add=[(told, "/".join(filter(None, (place.prefix, MANIFEST))))])
    return _summary(place, manifest, files, commit=None)
