"""Which files a folder of shards consists of, by name alone: what is given to others and what is taken from them.

Nothing beside them travels: a report, a run or a note that lies in the folder stays where it is, and a stranger's
folder brings nothing along but shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sra_data.shards.index import INDEX
from sra_data.shards.manifest import MANIFEST, PLAN, Manifest, Plan, part_path, receipt_path
from sra_data.shards.receipts import UNPLANNED, file_receipt_path

CARD = "README.md"
# (1: the section, 2: the file in it)
OF_A_SECTION = re.compile(
    r"(corpus|(?:sides|alignments|teachers)/[^/]+)/"
    r"(plan\.json|index\.parquet|part-\d{5,9}\.(?:parquet|receipt\.json)|[a-z_]{1,40}\.(?:safetensors|receipt\.json))"
)


def section_of(path: str) -> str | None:
    """The section that a file, relative to the whole folder, is one of; None where it is in none.

    A name that is in none may still be the manifest's or the card's; whether the section exists is the manifest's to
    say.
    """
    found = OF_A_SECTION.fullmatch(path)
    return None if found is None or found[1].rpartition("/")[2] in (".", "..") else found[1]


def files_of(manifest: Manifest, section: str) -> list[str]:
    """The files that a section has by its plan, relative to its folder; of an unfinished one, those that are there.

    Raises:
        ShardError: If it has no readable plan.
    """
    folder = manifest.shards / section
    plan = Plan.load(folder)
    is_sealed = (manifest.section(section) or {}).get("root") is not None
    named = [path.name for path in (folder / PLAN, folder / INDEX, *_beside(folder, plan), *_parts(folder, plan))]
    return named if is_sealed else [name for name in named if (folder / name).is_file()]


def _beside(folder: Path, plan: Plan) -> Iterator[Path]:
    for name in (*plan.files, *(name for name in UNPLANNED if file_receipt_path(folder, name).is_file())):
        yield folder / name
        yield file_receipt_path(folder, name)


def _parts(folder: Path, plan: Plan) -> Iterator[Path]:
    for unit in plan.units:
        yield part_path(folder, unit.part)
        yield receipt_path(folder, unit.part)


def ours_among(paths: Iterable[str], sections: Iterable[str] | None = None) -> list[str]:
    """Of files relative to a whole folder, those of sections (any, where None), and the manifest and the card."""
    known = None if sections is None else set(sections)
    found = []
    for path in paths:
        section = section_of(path)
        if path in (MANIFEST, CARD) or (section is not None and (known is None or section in known)):
            found.append(path)
    return found
