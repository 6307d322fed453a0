"""What the tests of the Ray engine work on: a tiny pair, its corpus of several units, and the shards of one process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sra_data.stages.align import plan
from tests.crash.world import RESPONSE_BYTES_PER_PART, other_files, other_pages
from tests.integration.command_lines import sra_data, write_examples, write_pair


@dataclass(frozen=True)
class Place:
    """A folder with models and data, and with the shards that one process makes of them."""

    folder: Path

    @property
    def aligned(self) -> Path:
        """What `align` leaves."""
        return self.folder / "aligned"

    @property
    def whole(self) -> Path:
        """What `cache-teacher` leaves after it."""
        return self.folder / "whole"

    def align(self, out: Path, *more: object) -> list[object]:
        """The command line."""
        models = ["--teacher", self.folder / "teacher", "--student", self.folder / "student"]
        return ["align", *models, "--data", self.folder / "data.jsonl", "--dev-share", 0.2, "--out", out, *more]

    def cache(self, out: Path, *more: object) -> list[object]:
        """The command line."""
        what = ["--teacher", self.folder / "teacher", "--top-k", 3, "--hidden-dtype", "fp32", "--device", "cpu"]
        return ["cache-teacher", out, *what, *more]

    def differences(self, out: Path) -> list[str]:
        """What differs in any byte from the shards of one process; a teacher's but for what clocks have measured."""
        return other_pages(out, self.whole) if (out / "teachers").exists() else other_files(out, self.aligned)

    def receipts(self, out: Path) -> set[str]:
        """Receipts of parts, by their places."""
        return {"/".join(path.parts[-3:]) for path in out.rglob("part-*.receipt.json")}


def write_place(folder: Path) -> Place:
    """Make one."""
    place = Place(folder)
    write_pair(folder)
    write_examples(folder / "data.jsonl", 18)
    with several_units():
        done(place.align(place.aligned, "--workers", 1))
        shutil.copytree(place.aligned, place.whole)
        done(place.cache(place.whole))
    return place


@contextmanager
def several_units() -> Iterator[None]:
    """Few examples are several units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "RESPONSE_BYTES_PER_PART", RESPONSE_BYTES_PER_PART)
        yield


def done(words: list[object]) -> None:
    """Carry a command out, to its good end."""
    answer = sra_data(*words)
    assert answer.exit_code == 0, answer.error
