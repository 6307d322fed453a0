"""Single bits turned around in every kind of file, in place, one after the other, and turned back.

Caught is a flip that opening and reading everything refuses in one line that names the file, or `verify` does. A flip
after which something reads otherwise than it was written, and nobody says so, is a violation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.reading import problems, read_checkpoints, read_shards, refusal
from tests.crash.world import World, files_of


@dataclass
class Flipped:
    """What has been counted.

    Attributes:
        counts: flips by kind of file.
        num_caught: of them; `unread`: those that only `verify` saw, since they change nothing that is read.
        violations: a line each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    num_caught: int = 0
    unread: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def num_flipped(self) -> int:
        """All flips."""
        return self.counts.total()


def flip(world: World, wanted: int, rng: random.Random, say: Callable[[str], None]) -> Flipped:
    """So many flips, each kind of file equally often."""
    found = Flipped()
    reads = {world.shards: read_shards(world.shards), world.trained: read_checkpoints(world.trained)}
    kinds: dict[str, list[tuple[Path, Path]]] = {}
    for folder in reads:
        for path in files_of(folder).values():
            kinds.setdefault(kind_of_file(path.relative_to(folder)), []).append((folder, path))
    kinds.pop("")
    for number in range(wanted):
        kind = sorted(kinds)[number % len(kinds)]
        folder, path = rng.choice(kinds[kind])
        found.counts[kind] += 1
        place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        turn(path, place, bit)
        try:
            wrong = _look(folder, path, reads[folder], found)
        except Exception as error:  # anything that is no refusal is what is looked for
            wrong = f"{type(error).__name__}: {error}"
        finally:
            turn(path, place, bit)
        if wrong:
            found.violations.append(f"flip {number}, {path.relative_to(folder)}, byte {place}, bit {bit}: {wrong}")
            say(f"VIOLATION {found.violations[-1]}")
        if (number + 1) % 200 == 0:
            say(f"flipped {number + 1} of {wanted}, caught {found.num_caught}")
    return found


def _look(folder: Path, path: Path, whole: str, found: Flipped) -> str:
    """Read, and verify where reading names nothing; what is wrong with that, empty where the flip was caught."""
    is_run = folder.name == "run"
    digest, said = refusal(read_checkpoints if is_run else read_shards, folder)
    stem = path.parent.name if is_run else path.name.split(".")[0]  # what a user is told to delete or to repair
    verified = [] if is_run or stem in said else problems(folder)
    if not any(stem in line for line in (said, *verified)):
        return f"nobody names it; read: {said or digest == whole}; verify: {verified}"
    if not said and digest != whole:
        return "it reads otherwise, and only verify says so"
    found.num_caught += 1
    found.unread += not said
    return ""


def kind_of_file(name: Path) -> str:
    """Which kind of file it is, by its name in the shards or the run; empty for what no checksum covers."""
    group = name.parts[0]
    if group == "checkpoints":
        return f"checkpoint's {name.name}"
    if name.name.endswith(".receipt.json"):
        return "receipt of a part" if name.name.startswith("part-") else "receipt of a file"
    if name.suffix == ".parquet" and name.name.startswith("part-"):
        return f"part of {group}"
    known = ("manifest", "plan", "index", "head", "embeddings", "vocabulary", "images", "nearest")
    return name.stem if name.stem in known else ""


def turn(path: Path, place: int, bit: int) -> None:
    """Turn one bit of a file around, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
