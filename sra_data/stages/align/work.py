"""Which folders one call of `align` is about, how they are named, begun and sealed.

A side is named by what it depends on beside the corpus (tokenizer, template, maximum length), not by who asked for it:
a second model with a known tokenizer finds the side that is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sra_data.corpus.sources import Source
from sra_data.corpus.tokenization import SideTokenizer, split_revision
from sra_data.errors import ShardError
from sra_data.shards.images import IMAGES, save_images
from sra_data.shards.nearest import NEAREST, save_nearest
from sra_data.shards.store import (
    VOCABULARY,
    Beginning,
    Manifest,
    Plan,
    Unit,
    begin,
    begin_all,
    folder_lock,
    folder_name,
    has_file,
    is_as_sealed,
    model_name,
    remove_abandoned,
    save_vocabulary,
    seal_all,
)
from sra_data.stages.align.images import images_of
from sra_data.stages.align.nearest import nearest_of
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.pairs import Pair, Side
from sra_data.stages.align.plan import CorpusPlan
from sra_data.stages.align.unit_windows import FACT

Tokenizers = Mapping[str, SideTokenizer]  # by the names that were asked for


@dataclass(frozen=True)
class Asked:
    """One teacher aligned with one student: what the manifest remembers as a pair."""

    teacher: SideTokenizer
    student: SideTokenizer
    teacher_side: str
    student_side: str
    alignment: str

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "teacher": _named(self.teacher),
            "student": _named(self.student),
            "teacher_side": self.teacher_side,
            "student_side": self.student_side,
            "alignment": self.alignment,
        }


@dataclass(frozen=True)
class Work:
    """The folders this call is about.

    Attributes:
        sides: By name; pairs likewise.
        asked: Every teacher with every student.
    """

    options: AlignOptions
    shards: Path
    sides: dict[str, Side]
    pairs: dict[str, Pair]
    asked: list[Asked]

    @classmethod
    def planned(cls, options: AlignOptions, tokenizers: Tokenizers, shards: Path) -> Work:
        """Name the sides and pairs; a side that is there under another model's name keeps its name."""
        known = _known_sides(shards)
        lengths = {"teacher": options.teacher_max_length, "student": options.student_max_length}
        sides: dict[str, Side] = {}
        side_of: dict[tuple[str, str], Side] = {}
        for role, names in (("teacher", options.teachers), ("student", options.students)):
            for name in names:
                side = _side(tokenizers[name], lengths[role], options, known)
                known.setdefault(_inputs_key(side_inputs(side)), side.name)
                side_of[role, name] = sides.setdefault(side.name, side)
        pairs: dict[str, Pair] = {}
        asked: list[Asked] = []
        made: dict[frozenset[str], Pair] = {}
        for teacher in options.teachers:
            for student in options.students:
                one, other = side_of["teacher", teacher], side_of["student", student]
                key = frozenset((one.name, other.name))
                if key not in made:
                    made[key] = Pair.of(one, other, options.pair_options)
                pair = made[key]
                pairs[pair.name] = pair
                asked.append(Asked(tokenizers[teacher], tokenizers[student], one.name, other.name, pair.name))
        return cls(options, shards, sides, pairs, asked)

    def begin(self, plan: CorpusPlan, sources: Sequence[Source]) -> tuple[dict[str, Plan], list[Unit]]:
        """Write the plans that are not there; returns them by section, and the units with the places of today's scan.

        Raises:
            ShardError: A folder was begun from other inputs.
        """
        facts = {"source": [one.describe() for one in sources], "num_dev": plan.num_dev, "left_out": plan.left_out}
        if plan.windows:
            facts[FACT] = plan.windows
        inputs = {"corpus": plan.fingerprint}
        # The corpus before all else: other inputs than it was begun from are refused in its name.
        corpus = begin(self.shards, "corpus", inputs, lambda: plan.units, facts=facts)
        units = _with_hints(corpus.units, plan.units, self.shards)
        bare = [Unit(unit.part, unit.start, unit.stop) for unit in units]
        sides = [
            Beginning(f"sides/{name}", {**inputs, **side_inputs(side)}, lambda: bare, facts=self._side_facts(side))
            for name, side in self.sides.items()
        ]
        pairs = [self._beginning(pair, inputs, bare) for pair in self.pairs.values()]
        asked = [asked.to_json() for asked in self.asked]
        plans = {"corpus": corpus, **begin_all(self.shards, [*sides, *pairs], pairs=asked)}
        for pair in self.pairs.values():
            self._save_files(pair)
        return plans, units

    def _beginning(self, pair: Pair, inputs: Mapping[str, Any], units: Sequence[Unit]) -> Beginning:
        options = asdict(pair.options)
        return Beginning(
            f"alignments/{pair.name}",
            {**inputs, "left": pair.left, "right": pair.right, **options},
            lambda: units,
            files=(VOCABULARY, IMAGES),
            made_from=tuple(dict.fromkeys((f"sides/{pair.left}", f"sides/{pair.right}"))),
            facts={"options": options, "shared_ids": len(pair.vocabulary)},
        )

    def _save_files(self, pair: Pair) -> None:
        """What two tokenizers share, where it is not there yet."""
        folder = self.shards / "alignments" / pair.name
        if not has_file(folder, VOCABULARY):
            save_vocabulary(folder, pair.stored_vocabulary())
        left, right = (self.sides[name].tokenizer for name in (pair.left, pair.right))
        if not has_file(folder, IMAGES):
            save_images(folder, images_of(left, right))
        # no file of the plan: asked for or not, the alignment is the same
        if self.options.edit_distance and not has_file(folder, NEAREST):
            save_nearest(folder, nearest_of(left, right))

    def seal(self, sections: Sequence[str]) -> None:
        """Seal every folder of this call that is not sealed as it is now, and tidy up; one process at a time."""
        with folder_lock(self.shards / "corpus"):
            known = Manifest.load(self.shards)
            to_seal = [name for name in sections if not is_as_sealed(self.shards, name, known.section(name) or {})]
            if to_seal:
                seal_all(self.shards, to_seal)
            for name in ("", *sections):  # what killed processes have left
                remove_abandoned(self.shards / name)

    def _side_facts(self, side: Side) -> dict[str, Any]:
        tokenizer = side.tokenizer
        named = _named(tokenizer)
        return {
            "tokenizer_name": named["name"],
            "revision": named["revision"],
            "tokenizer": tokenizer.fingerprint,
            "max_positions": tokenizer.max_positions,
            "max_length": side.max_length,
            "overlong": side.overlong,
            "trust_remote_code": self.options.trust_remote_code,
        }


def _side(tokenizer: SideTokenizer, max_length: int | None, options: AlignOptions, known: Mapping[str, str]) -> Side:
    side = Side("", tokenizer, max_length or tokenizer.max_positions, options.overlong)
    inputs = side_inputs(side)
    name = known.get(_inputs_key(inputs)) or side_name(tokenizer.name, inputs)
    return Side(name, side.tokenizer, side.max_length, side.overlong)


def side_inputs(side: Side) -> dict[str, Any]:
    """Everything a side depends on beside the corpus, under names that appear in refusals."""
    return {
        "tokenizer_and_template": side.tokenizer.fingerprint,
        "max_length": side.max_length,
        "overlong": side.overlong,
    }


def side_name(tokenizer: str, inputs: Mapping[str, Any]) -> str:
    """``<tokenizer>-<8 hex>``: other lengths for one tokenizer give another folder beside the first."""
    return folder_name(split_revision(tokenizer)[0], dict(inputs), otherwise="tokenizer")


def _inputs_key(inputs: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in inputs.items() if name != "corpus"}, sort_keys=True)


def _known_sides(shards: Path) -> dict[str, str]:
    """Inputs of the sides that are there -> their names: another model of the same tokenizer reads the same side."""
    if not Manifest.exists(shards):
        return {}
    manifest = Manifest.load(shards)
    sections = {name: manifest.section(f"sides/{name}") or {} for name in manifest.names("sides")}
    return {_inputs_key(section.get("fingerprint", {})): name for name, section in sections.items()}


def _with_hints(planned: Sequence[Unit], scanned: Sequence[Unit], shards: Path) -> list[Unit]:
    """The planned units with the places of today's scan (the same rows may lie in other files now)."""
    if [(unit.start, unit.stop) for unit in planned] != [(unit.start, unit.stop) for unit in scanned]:
        raise ShardError(
            f"{shards}: its parts were cut in another way, by another version; choose another folder or delete this one"
        )
    return list(scanned)


def _named(tokenizer: SideTokenizer) -> dict[str, Any]:
    """How to find a tokenizer (and the model beside it) again."""
    return {"name": model_name(tokenizer.name), "revision": tokenizer.revision}
