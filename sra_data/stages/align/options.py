"""What `sra-data align` may be asked, and what is refused before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from sra_data.choices import Boundaries, Engine, OnInvalid, Overlong, VocabularyMatch
from sra_data.corpus.sources import Source, open_source
from sra_data.errors import ConfigError, ShardError
from sra_data.stages.align.pairs import PairOptions
from sra_data.stages.units import unit_range

CHOICES = {
    "overlong": get_args(Overlong),
    "boundaries": get_args(Boundaries),
    "vocabulary_match": get_args(VocabularyMatch),
    "on_invalid": get_args(OnInvalid),
    "engine": get_args(Engine),
}
Item = TypeVar("Item")


@dataclass(frozen=True)
class AlignOptions:
    """What to align and how; the command line's options under the same names.

    Attributes:
        teachers: Hub ids (with @revision) or folders; students likewise. Every teacher is aligned with every student.
        data: See `open_source`; columns too.
        out: The folder of shards, or a place in a store.
        dev_data: Development examples; without them `dev_share` of the prompts are, by their hash.
        teacher_max_length: Tokens of an example; None for the model's positions. student_max_length likewise.
        overlong: What happens beyond it: truncate, truncate-prompt, skip, or window: texts are cut into rows that fit.
        window_overlap: Tokens of the stretch before that a window begins with; None for the usual number.
        boundaries: Shared boundaries to keep: token or word.
        max_spans: Spans of an example; beyond it neighbours are merged.
        vocabulary_match: Shared vocabulary by bytes or by exact raw strings.
        edit_distance: Map the ids by edit distance too, for method=mined; tens of seconds for large vocabularies.
        on_invalid: A bad row: fail, or skip and count it.
        num_workers: Processes; None finds out. The bytes written do not depend on it.
        engine: Who runs the units, see `sra_data/engines`; the bytes do not depend on it either.
        units: Only units a:b of the plan, or the share i/n of an array; the folders are sealed once all are there.
        trust_remote_code: Run code that comes with a tokenizer.
        workspace: Where parts are made that go into a store; see `choose_places`.
    """

    teachers: tuple[str, ...]
    students: tuple[str, ...]
    data: str = "builtin"
    columns: str | None = None
    out: str = "shards"
    dev_data: str | None = None
    dev_share: float = 0.02
    teacher_max_length: int | None = None
    student_max_length: int | None = None
    overlong: Overlong = "truncate"
    window_overlap: int | None = None
    boundaries: Boundaries = "token"
    max_spans: int = 1024
    vocabulary_match: VocabularyMatch = "bytes"
    edit_distance: bool = False
    on_invalid: OnInvalid = "fail"
    num_workers: int | None = None
    engine: Engine = "local"
    units: str | None = None
    trust_remote_code: bool = False
    workspace: str | None = None

    @property
    def pair_options(self) -> PairOptions:
        """How two sides are lined up."""
        return PairOptions(self.boundaries, self.max_spans, self.vocabulary_match)

    @property
    def hashed_dev_share(self) -> float:
        """The share of the prompts that their hash sends to the development set."""
        return 0.0 if self.dev_data else self.dev_share


def check_options(options: AlignOptions) -> None:
    """Refuse values that mean nothing.

    Raises:
        ConfigError: With the option's name as on the command line.
    """
    for name, choices in CHOICES.items():
        value = getattr(options, name)
        if value not in choices:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: not known; use one of {', '.join(choices)}")
    for name in ("teachers", "students"):
        values = getattr(options, name)
        if not values:
            raise ConfigError(f"--{name[:-1]}: none given; name a Hub id or a folder")
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"--{name[:-1]} {twice}: named twice; name it once")
    if not options.out.strip():
        raise ConfigError("--out: a folder without a name; name the one to write")
    if not 0.0 <= options.dev_share < 1.0:
        raise ConfigError(f"--dev-share {options.dev_share}: must be at least 0 and below 1")
    least_values = {"teacher_max_length": 2, "student_max_length": 2, "max_spans": 1, "num_workers": 1}
    for name, least in (*least_values.items(), ("window_overlap", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            shown = "workers" if name == "num_workers" else name.replace("_", "-")
            raise ConfigError(f"--{shown} {value}: must be at least {least}")
    select_units((), options.units)


def refuse_unwritable(folder: Path) -> None:
    """Find out before any work whether a folder can be written (nothing is created).

    Raises:
        ShardError: It cannot.
    """
    place = folder.absolute()
    try:
        while not place.exists() and place.parent != place:
            place = place.parent
    except OSError as error:
        raise ShardError(f"{folder}: {error.strerror}; name another folder with --out") from None
    if not place.is_dir():
        raise ShardError(f"{folder}: {place} is a file, not a folder; name another folder with --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ShardError(f"{folder}: {place} may not be written; name another folder with --out")


def open_sources(options: AlignOptions) -> list[Source]:
    """The source of `--data`, and that of `--dev-data` if there is one."""
    sources = [open_source(options.data, options.columns)]
    if options.dev_data:
        sources.append(open_source(options.dev_data, options.columns, split="dev"))
    return sources


def select_units(units: Sequence[Item], chosen: str | None) -> Sequence[Item]:
    """The units a:b, half-open, or those of task i of n; all of them for None.

    Raises:
        ConfigError: Not of that form.
    """
    if chosen is None:
        return units
    return units[slice(*unit_range(chosen, len(units)))]
