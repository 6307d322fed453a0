"""Documents nobody wrote: structural changes of every kind of metadata, under seals that fit.

A change is sealed as its file would be, and bound into the manifest, so that only the validation behind the seals is
in the way. Refused is what reading, `verify` or the resuming of a run answers with one line; what they accept (a note
that says something else, a key that nobody reads) is counted apart and another is drawn in its place.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra_data.errors import ShardError
from sra_data.shards.durable import sealed_bytes, write_sealed
from sra_data.shards.manifest import Manifest, facts_digest
from sra_data.shards.receipts import read_metadata, write_file_receipt
from sra_data.stages.list import list_shards
from sra_train.record.checkpoint import file_hash
from tests.crash.flips import kind_of_file
from tests.crash.reading import problems, read_checkpoints, read_shards, refusal
from tests.crash.world import World, files_of
from tests.unit.shards.test_malformed import NUMBERS, OTHERS, TEXTS, places

# Texts that `json` would not write: put in the place of a word once the rest is written.
RAW = {
    "@raw-digits@": b"9" * 5000,
    "@raw-negative@": b"-" + b"8" * 5000,
    "@raw-deep@": b"[" * 100_000 + b"]" * 100_000,
    "@raw-bytes@": b'"\xff\xfe\x80"',
    "@raw-infinite@": b"1e999",
}
SEALED = ("manifest", "plan", "receipt of a part", "receipt of a file", "checkpoint's state.json")


@dataclass
class Malformed:
    """What has been counted; `harmless`: documents that are as good as the first."""

    counts: Counter[str] = field(default_factory=Counter)
    harmless: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def num_refused(self) -> int:
        """In one line."""
        return self.counts.total()

    @property
    def num_malformed(self) -> int:
        """All but the harmless ones."""
        return self.num_refused + len(self.violations)


def malform(world: World, wanted: int, rng: random.Random, say: Callable[[str], None]) -> Malformed:
    """Documents until so many were refused, each kind equally often."""
    found = Malformed()
    targets: dict[str, list[tuple[Path, Path]]] = {}
    for folder in (world.shards, world.trained):
        for path in files_of(folder).values():
            kind = kind_of_file(path.relative_to(folder))
            if kind in SEALED or (kind and path.suffix == ".safetensors"):
                targets.setdefault(kind, []).append((folder, path))
    number = 0
    while wanted and found.num_malformed < wanted:
        kind = sorted(targets)[number % len(targets)]
        number += 1
        folder, path = rng.choice(targets[kind])
        content = changed_bytes(path, rng)
        if content is None:
            continue
        try:
            is_refused = _meet(folder, path, content)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = f"document {number}, {path.relative_to(folder)}: {type(error).__name__} at {where.name}: {error}"
            found.violations.append(line[:600])
            say(f"VIOLATION {found.violations[-1]}")
            continue
        found.counts[kind] += is_refused
        found.harmless += not is_refused
        if number % 100 == 0:
            say(f"refused {found.num_refused} of {wanted}, {found.harmless} harmless")
    return found


def _meet(folder: Path, path: Path, content: bytes) -> bool:
    """Put a document in the place of a file, bind it in, use it in every way, put everything back; whether refused."""
    beside = [path, folder / "manifest.json", path.with_suffix(".receipt.json"), path.parent / "state.json"]
    before = {one: one.read_bytes() for one in beside if one.is_file()}
    try:
        path.write_bytes(content)
        if folder.name == "run":
            _bind_checkpoint(path)
            return bool(refusal(read_checkpoints, folder)[1])
        with suppress(ShardError):
            bind(folder, path)
        listing, said = refusal(list_shards, folder)
        lines = [said, refusal(read_shards, folder)[1], *problems(folder)]
        if listing is not None:
            listing.lines()
        return any(lines)
    finally:
        for one, old in before.items():
            one.write_bytes(old)


def bind(shards: Path, path: Path) -> None:
    """Bind a folder's metadata as it is now into the manifest, as a forger would."""
    if path.name == "manifest.json":
        return
    if path.suffix == ".safetensors":
        write_file_receipt(path.parent, path.name)
    content = Manifest.load(shards).content
    section = str(path.parent.relative_to(shards))
    group, _, key = section.partition("/")
    facts = content[group][key] if key else content[group]
    facts["seal"] = {**read_metadata(shards / section).seal, "facts": ""}
    facts["seal"]["facts"] = facts_digest(facts)
    write_sealed(shards / "manifest.json", content)


def _bind_checkpoint(path: Path) -> None:
    if path.suffix == ".safetensors":
        state = path.parent / "state.json"
        said = json.loads(state.read_text("utf-8"))
        said["xxh3"][path.name] = file_hash(path)
        write_sealed(state, said)


# --------------------------------------------------------------------------- documents


def changed_bytes(path: Path, rng: random.Random) -> bytes | None:
    """A file's bytes with a changed document in them; None where it cannot be written at all."""
    before = path.read_bytes()
    if path.suffix != ".safetensors":
        value = json.loads(before)
        changed = _changed(value, rng)
        if path.name == "manifest.json":
            seal_facts(changed)
        with suppress(ValueError):  # a lone surrogate
            return _cut(_sealed(changed, is_flat=path.name not in ("manifest.json", "state.json")), rng)
        return None
    size = 8 + int.from_bytes(before[:8], "little")
    with suppress(ValueError):
        text = _cut(_with_raw(json.dumps(_changed(json.loads(before[8:size]), rng)).encode()), rng)
        length = len(text) + rng.choice([0, 0, 0, 0, 1, -1, 1 << 62])
        return max(length, 0).to_bytes(8, "little") + text + before[size:]
    return None


def _changed(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three places set to something else, left out, or added to."""
    changed = copy.deepcopy(value)
    odd = [*NUMBERS, *TEXTS, *OTHERS, "/etc/passwd", "../../x.safetensors", -(2**63), *RAW, *RAW]
    for _ in range(rng.randint(1, 3)):
        known = [place for place in places(changed) if place != ("seal",)]
        if not known:
            break
        *path, last = rng.choice(known)
        place: Any = changed
        for key in path:
            place = place[key]
        how = rng.choice(["set", "set", "set", "drop", "add", "twice"])
        if how == "drop":
            del place[last]
        elif how == "add" and isinstance(place, dict):
            place[rng.choice(["x", "", "../x", "seal", "root"])] = copy.deepcopy(rng.choice(odd))
        elif how == "twice" and isinstance(place, dict):
            place[f"{last}@twice@"] = copy.deepcopy(rng.choice(odd))  # the same key again, once it is written
        else:
            place[last] = copy.deepcopy(rng.choice(odd))
    return changed


def _with_raw(text: bytes) -> bytes:
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"'.encode(), raw)
    return text.replace(b"@twice@", b"")


def _sealed(value: dict[str, Any], *, is_flat: bool) -> bytes:
    """As `sealed_bytes` writes it, with the raw texts in it, under the seal of those bytes."""
    body = _with_raw(sealed_bytes(value, is_flat=is_flat).rpartition(b',\n "seal": ')[0])
    seal = hashlib.sha256(body + b"\n}\n").hexdigest()
    return body + f',\n "seal": "{seal}"\n}}\n'.encode()


def _cut(content: bytes, rng: random.Random) -> bytes:
    """One in twenty is cut short."""
    return content[: rng.randrange(len(content))] if rng.random() < 0.05 else content


def seal_facts(manifest: dict[str, Any]) -> None:
    """Give every section the digest of what it says now."""
    for group in ("corpus", "sides", "alignments", "teachers"):
        found = manifest.get(group)
        sections = [found] if group == "corpus" else list(found.values()) if isinstance(found, dict) else []
        for facts in sections:
            with suppress(TypeError, KeyError, AttributeError):
                facts["seal"]["facts"] = facts_digest(facts)
