"""Beginning a folder of shards, or going on with it: its plan before any work, its inputs compared with those it had.

A folder whose metadata is no longer what it was sealed with (a part was made again, a file is gone) is unsealed here,
before any work: whoever goes on with it seals it again, and a crash in between leaves nothing that is believed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra_data.errors import ShardError
from sra_data.shards.durable import folder_lock, make_folder
from sra_data.shards.manifest import PLAN, Manifest, Plan, Unit, change_manifest, is_begun, kind_of, receipt_path
from sra_data.shards.receipts import is_as_sealed

LONGEST_VALUE_SHOWN = 90


@dataclass(frozen=True)
class Beginning:
    """A folder to start, or to go on with.

    Attributes:
        section: "corpus", "sides/<name>", "alignments/<name>" or "teachers/<name>".
        fingerprint: everything the content depends on (JSON values), under names people understand.
        make_units: called only if there is no plan yet.
        files: names of files beside the parts without which the folder is not complete.
        made_from: sections it is made from.
        facts: what the manifest is to say of the folder from its beginning on (JSON values).
    """

    section: str
    fingerprint: Mapping[str, Any]
    make_units: Callable[[], Sequence[Unit]]
    files: Sequence[str] = ()
    made_from: Sequence[str] = ("corpus",)
    facts: Mapping[str, Any] | None = None


def begin(
    shards: Path, section: str, fingerprint: Mapping[str, Any], make_units: Callable[[], Sequence[Unit]], **others: Any
) -> Plan:
    """Start a folder, or go on with it: the plan that is there, or a new one written before any work.

    Args:
        shards: the whole folder; the others as in `Beginning`.

    Raises:
        ShardError: If the folder was begun from other inputs; names each that differs.
    """
    return begin_all(shards, [Beginning(section, fingerprint, make_units, **others)])[section]


def begin_all(
    shards: Path, beginnings: Sequence[Beginning], *, pairs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Plan]:
    """`begin` of several folders of one whole folder, which hears of all of them, and of `pairs`, in one write."""
    if Manifest.exists(shards):
        Manifest.load(shards)  # refuses another format, before all else
    plans: dict[str, Plan] = {}
    is_new: dict[str, bool] = {}
    for one in beginnings:
        plans[one.section], is_new[one.section] = _plan_of(shards, one)

    def hear(manifest: Manifest) -> None:
        news: dict[str, Mapping[str, Any]] = {}
        for one in beginnings:
            known, plan = manifest.section(one.section) or {}, plans[one.section]
            if is_new[one.section] or known.get("fingerprint") != plan.fingerprint:
                news[one.section] = {"fingerprint": plan.fingerprint, "root": None, **(one.facts or {})}
            elif known.get("root") is not None and not is_as_sealed(shards, one.section, known):
                news[one.section] = {"root": None}
        manifest.record(news, pairs)

    change_manifest(shards, hear)  # nobody seals between the look and the word
    return plans


def _plan_of(shards: Path, one: Beginning) -> tuple[Plan, bool]:
    """A folder's plan, written where there was none; whether it is new."""
    folder, kind = shards / one.section, kind_of(one.section)
    inputs: dict[str, Any] = json.loads(json.dumps(dict(one.fingerprint)))  # as they will be read back
    sources = () if kind == "corpus" else tuple(one.made_from)
    is_there = is_begun(shards, one.section)
    new = None if is_there else Plan(kind, inputs, tuple(one.make_units()), tuple(one.files), sources)
    make_folder(folder)
    with folder_lock(folder):
        if new is None or is_begun(shards, one.section):  # there before, or by another coordinator meanwhile
            plan = Plan.load(folder)
            refuse_if_changed(plan.fingerprint, inputs, where=folder)
            return plan, False
        _refuse_orphans(folder, new)
        if not new.save(folder):  # in a store: by another machine meanwhile
            plan = Plan.load(folder)
            refuse_if_changed(plan.fingerprint, inputs, where=folder)
            return plan, False
    return new, True


def _refuse_orphans(folder: Path, plan: Plan) -> None:
    """Parts without a plan were made from who knows what."""
    for unit in plan.units:
        path = receipt_path(folder, unit.part)
        if path.exists():
            raise ShardError(f"{path}: a receipt without {PLAN}; delete the folder {folder} and run the command again")


def refuse_if_changed(old: Mapping[str, Any], new: Mapping[str, Any], *, where: Path) -> None:
    """Refuse different inputs.

    Raises:
        ShardError: One line, field by field: ``teacher tokenizer: had X, got Y``.
    """
    had, got = _flat(old), _flat(new)
    names = [name for name in {**had, **got} if had.get(name, "nothing") != got.get(name, "nothing")]
    if names:
        listed = "; ".join(
            f"{name}: had {_short(had.get(name, 'nothing'))}, got {_short(got.get(name, 'nothing'))}" for name in names
        )
        raise ShardError(f"{where}: made from other inputs ({listed}); choose another folder or delete this one")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        words = f"{prefix}{str(name).replace('_', ' ')}"
        flat.update(_flat(item, f"{words}.") if isinstance(item, Mapping) else {words: item})
    return flat


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE_SHOWN else f"{text[:LONGEST_VALUE_SHOWN]}..."
