"""Folders of shards that are none, or no more: for `run`, which only reads them, and `cache-teacher`, which adds.

Whatever was damaged is named, by the file or by the folder it stands in. What another damage of the same file would
be, bit by bit and value by value, is the matter of `make crash`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import CACHE, RUN, Case, copied, written

Damage = Callable[[Path], object]
# Parts are read while the student trains: by then the run's folder says whose it is.
TRAINED = ("out", "out/run.json", "out/config.yaml", "out/metrics.jsonl", "out/metrics.csv")


# --------------------------------------------------------------------------- how a folder is damaged


def the(folder: Path, pattern: str) -> Path:
    """The file or folder that a pattern means; the first of several."""
    return sorted(folder.glob(pattern))[0]


def gone(pattern: str) -> Damage:
    """Without a file or a folder."""

    def damage(folder: Path) -> None:
        path = the(folder, pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def holding(pattern: str, content: bytes) -> Damage:
    """With another content of a file."""
    return lambda folder: the(folder, pattern).write_bytes(content)


def cut(pattern: str, share: float) -> Damage:
    """With a file that ends early."""

    def damage(folder: Path) -> None:
        path = the(folder, pattern)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def flipped(pattern: str, share: float) -> Damage:
    """With one bit turned around, that far into a file."""

    def damage(folder: Path) -> None:
        from tests.crash.flips import turn

        path = the(folder, pattern)
        turn(path, int(path.stat().st_size * share), 3)

    return damage


def folder_at(pattern: str) -> Damage:
    """With a folder in the place of a file."""

    def damage(folder: Path) -> None:
        path = the(folder, pattern)
        path.unlink()
        path.mkdir()

    return damage


def pipe_at(pattern: str) -> Damage:
    """With a pipe in the place of a file: who opens it waits for ever."""

    def damage(folder: Path) -> None:
        path = the(folder, pattern)
        path.unlink()
        os.mkfifo(path)

    return damage


def swapped(one: str, other: str) -> Damage:
    """With two files each in the place of the other."""

    def damage(folder: Path) -> None:
        left, right = the(folder, one), the(folder, other)
        content = left.read_bytes()
        left.write_bytes(right.read_bytes())
        right.write_bytes(content)

    return damage


def edited(pattern: str, old: str, new: str) -> Damage:
    """With a word changed by hand, as an editor would."""

    def damage(folder: Path) -> None:
        path = the(folder, pattern)
        text = path.read_text()
        assert old in text, f"{path.name} does not say {old}"
        path.write_text(text.replace(old, new, 1))

    return damage


def forged(pattern: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """With a document changed, sealed as its file would be and bound into the manifest: only its values are wrong."""

    def damage(folder: Path) -> None:
        from sra_data.errors import ShardError
        from sra_data.shards.durable import sealed_bytes
        from tests.crash.malformed import bind, seal_facts

        path = the(folder, pattern)
        value = json.loads(path.read_text())
        change(value)
        if path.name == "manifest.json":
            seal_facts(value)
        path.write_bytes(sealed_bytes(value, is_flat=path.name != "manifest.json"))
        with suppress(ShardError):  # no longer a document that can be bound
            bind(folder, path)

    return damage


def _first(value: dict[str, Any], group: str) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(value[group].values()))
    return found


def _renamed(group: str, name: str) -> Callable[[dict[str, Any]], object]:
    """A section under another name."""
    return lambda value: value[group].update({name: value[group].pop(next(iter(value[group])))})


def _deep(value: dict[str, Any]) -> None:
    inner: Any = 0
    for _ in range(900):
        inner = [inner]
    value["corpus"]["fingerprint"]["corpus"] = inner


# --------------------------------------------------------------------------- of every folder


# Whichever command reads it: what is wrong, what names it.
BOTH: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no manifest": (gone("manifest.json"), ("manifest.json", "missing")),
    "a manifest of nothing": (holding("manifest.json", b""), ("manifest.json", "damaged")),
    "a manifest that is cut": (cut("manifest.json", 0.5), ("manifest.json", "damaged")),
    "a manifest of bytes": (holding("manifest.json", b"\xff\xfe{}"), ("manifest.json", "damaged")),
    "a manifest that is a list": (holding("manifest.json", b"[]"), ("manifest.json", "list")),
    "a manifest of null": (holding("manifest.json", b"null"), ("manifest.json", "NoneType")),
    "a manifest nested too deep": (holding("manifest.json", b'{"a":' * 100_000), ("manifest.json", "damaged")),
    "a manifest of digits": (
        holding("manifest.json", b'{"format_version": ' + b"2" * 5000 + b"}"),
        ("manifest.json",),
    ),
    "a manifest that is a folder": (folder_at("manifest.json"), ("manifest.json",)),
    "a manifest that is a pipe": (pipe_at("manifest.json"), ("manifest.json",)),
    "a manifest without a version": (holding("manifest.json", b"{}"), ("manifest.json", "format")),
    "a manifest of the first version": (
        holding("manifest.json", b'{"format_version": 1}'),
        ("manifest.json", "format"),
    ),
    "a manifest of a version to come": (
        edited("manifest.json", '"format_version": 2', '"format_version": 3'),
        ("manifest.json", "3"),
    ),
    "a manifest edited by hand": (edited("manifest.json", '"num_rows": 18', '"num_rows": 19'), ("manifest.json",)),
    "a manifest of another folder": (
        edited("manifest.json", '"corpus": "', '"corpus": "0'),
        ("manifest.json", "damaged or edited"),
    ),
    "a manifest of no sections": (
        forged("manifest.json", lambda value: [value.pop(name) for name in ("corpus", "sides", "alignments", "pairs")]),
        ("sra-data",),
    ),
    "a corpus that nothing is said of": (forged("manifest.json", lambda value: value.pop("corpus")), ("corpus",)),
    "sides that nothing is said of": (forged("manifest.json", lambda value: value.pop("sides")), ("side",)),
    "sides that are a list": (forged("manifest.json", lambda value: value.update(sides=[])), ("sides",)),
    "a corpus that is a number": (forged("manifest.json", lambda value: value.update(corpus=7)), ("corpus",)),
    "rows below none": (forged("manifest.json", lambda value: value["corpus"].update(num_rows=-18)), ("num_rows",)),
    "rows without end": (
        forged("manifest.json", lambda value: value["corpus"].update(num_rows=10**30)),
        ("num_rows",),
    ),
    "rows in words": (forged("manifest.json", lambda value: value["corpus"].update(num_rows="18")), ("num_rows",)),
    "a root that is none": (forged("manifest.json", lambda value: value["corpus"].update(root="x")), ("root",)),
    "a root of another corpus": (
        forged("manifest.json", lambda value: value["corpus"].update(root="0" * 64)),
        ("corpus",),
    ),
    "a seal that is a number": (forged("manifest.json", lambda value: value["corpus"].update(seal=3)), ("seal",)),
    "a corpus nested too deep": (forged("manifest.json", _deep), ("corpus", "[[[[")),
    "a side that leads elsewhere": (
        forged("manifest.json", _renamed("sides", "../../teacher-00000000")),
        ("../../teacher",),
    ),
    "a side whose name is empty": (forged("manifest.json", _renamed("sides", "")), ("manifest.json",)),
    "pairs that are an object": (forged("manifest.json", lambda value: value.update(pairs={})), ("pairs",)),
    "a pair without a student": (
        forged("manifest.json", lambda value: value["pairs"][0].pop("student_side")),
        ("student_side",),
    ),
    "a pair of numbers": (
        forged("manifest.json", lambda value: value["pairs"][0].update(teacher=1)),
        ("manifest.json",),
    ),
    "no corpus": (gone("corpus"), ("corpus",)),
    "no plan of the corpus": (gone("corpus/plan.json"), ("corpus", "plan.json")),
    "a plan that is cut": (cut("corpus/plan.json", 0.7), ("plan.json",)),
    "a plan that is a list": (holding("corpus/plan.json", b"[1]"), ("plan.json",)),
    "a plan that is a folder": (folder_at("corpus/plan.json"), ("plan.json",)),
    "a plan edited by hand": (edited("corpus/plan.json", '"format_version": 2', '"format_version": 2.0'), ("corpus",)),
    "no side of the teacher's": (gone("sides/teacher-*"), ("sides/teacher",)),
    "no plan of a side": (gone("sides/teacher-*/plan.json"), ("sides/teacher", "plan.json")),
    "no index of a side": (gone("sides/teacher-*/index.parquet"), ("sides/teacher", "index")),
    "an index of a side that is cut": (cut("sides/teacher-*/index.parquet", 0.4), ("sides/teacher", "index")),
    "an index of a side with a bit turned around": (flipped("sides/teacher-*/index.parquet", 0.5), ("index",)),
    "an index of a side that is a folder": (folder_at("sides/teacher-*/index.parquet"), ("sides/teacher", "index")),
    "two sides in each other's place": (
        swapped("sides/teacher-*/index.parquet", "sides/student-*/index.parquet"),
        ("sides/",),
    ),
    "a file in place of the sides": (
        lambda folder: (shutil.rmtree(folder / "sides"), (folder / "sides").write_text("no folder")),
        ("sides/",),
    ),
    "a side that is unfinished": (
        forged("manifest.json", lambda value: [facts.update(root=None) for facts in value["sides"].values()]),
        ("sides/", "unfinished"),
    ),
}

# Those that only training reads, or that `cache-teacher` makes anew: the corpus's index, pages, alignments, and what
# lies beside them.
RUN_ALONE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no index of the corpus": (gone("corpus/index.parquet"), ("corpus", "index")),
    "an index that is cut": (cut("corpus/index.parquet", 0.6), ("index",)),
    "an index of nothing": (holding("corpus/index.parquet", b""), ("index",)),
    "an index of prose": (holding("corpus/index.parquet", b"Dear reader, " * 40), ("index",)),
    "an index with a bit turned around": (flipped("corpus/index.parquet", 0.4), ("index",)),
    "an index that is a folder": (folder_at("corpus/index.parquet"), ("index",)),
    "an index of another folder": (
        swapped("corpus/index.parquet", "sides/teacher-*/index.parquet"),
        ("index",),
    ),
    "no teachers": (gone("teachers"), ("teachers/teacher",)),
    "no alignment": (gone("alignments/*"), ("alignments/",)),
    "an alignment that nothing is said of": (
        forged("manifest.json", lambda value: value.pop("alignments")),
        ("not aligned",),
    ),
    "teachers that nothing is said of": (
        forged("manifest.json", lambda value: value.pop("teachers")),
        ("sra-data cache-teacher",),
    ),
    "a teacher that is unfinished": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(root=None)),
        ("teachers/", "unfinished"),
    ),
    "a teacher without a width": (
        forged("manifest.json", lambda value: _first(value, "teachers").pop("hidden_size")),
        ("hidden_size",),
    ),
    "a teacher of a width below none": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(hidden_size=-32)),
        ("hidden_size",),
    ),
    "a teacher of another width": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(hidden_size=64)),
        ("teachers/",),
    ),
    "a teacher of layers in words": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(layers=["last"])),
        ("layers",),
    ),
    "a teacher of no layers": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(num_layers=0)),
        ("layer 3 of 0",),
    ),
    "a teacher of temperatures that are none": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(temperatures=[0, -1])),
        ("temperatures",),
    ),
    "a teacher asked about rows that are none": (
        forged("manifest.json", lambda value: _first(value, "teachers")["reach"][0].update(rows=[{}])),
        ("reach.0.rows",),
    ),
    "a teacher of another side": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(side="nobody-00000000")),
        ("nobody",),
    ),
    "a teacher that failed at an example that is not there": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(failed_examples=["nobody"])),
        ("nobody",),
    ),
    "a teacher with a name of the wrong kind": (
        forged("manifest.json", lambda value: _first(value, "teachers").update(name=["a"])),
        ("name",),
    ),
    "a pair of sides that are not there": (
        forged("manifest.json", lambda value: value["pairs"][0].update(student_side="nobody-00000000")),
        ("nobody",),
    ),
    "a pair of an alignment that is not there": (
        lambda folder: (gone("alignments/*")(folder), forged("manifest.json", _renamed("alignments", "a~b"))(folder)),
        ("not aligned",),
    ),
    "an alignment of a version to come": (
        forged("alignments/*/plan.json", lambda value: value.update(format_version=9)),
        ("alignments/", "9"),
    ),
    "an alignment made from another side": (
        forged(
            "manifest.json",
            lambda value: _first(value, "alignments")["made_from"].update(
                dict.fromkeys(_first(value, "alignments")["made_from"], "0" * 64)
            ),
        ),
        ("alignments/",),
    ),
    "no output head": (gone("teachers/*/head.safetensors"), ("head.safetensors",)),
    "an output head that is cut": (cut("teachers/*/head.safetensors", 0.5), ("head.safetensors",)),
    "an output head of nothing": (holding("teachers/*/head.safetensors", b""), ("head.safetensors",)),
    "an output head with a bit turned around": (flipped("teachers/*/head.safetensors", 0.6), ("head.safetensors",)),
    "an output head that is a folder": (folder_at("teachers/*/head.safetensors"), ("head.safetensors",)),
    "an output head that is a pipe": (pipe_at("teachers/*/head.safetensors"), ("head.safetensors",)),
    "no receipt of the output head": (gone("teachers/*/head.receipt.json"), ("head",)),
    "a receipt of the output head edited by hand": (
        edited("teachers/*/head.receipt.json", '"bytes": ', '"bytes": 1'),
        ("head",),
    ),
    "no index of the pages": (gone("teachers/*/index.parquet"), ("teachers/", "index")),
    "no receipt of a part of the pages": (gone("teachers/*/part-00001.receipt.json"), ("part-00001",)),
    "a receipt of a part that is a list": (
        holding("teachers/*/part-00001.receipt.json", b"[]"),
        ("part-00001",),
    ),
    "a receipt of another part": (
        swapped("teachers/*/part-00001.receipt.json", "teachers/*/part-00002.receipt.json"),
        ("part-0000",),
    ),
    "a receipt of rows below none": (
        forged("teachers/*/part-00001.receipt.json", lambda value: value.update(rows=-1)),
        ("part-00001",),
    ),
    "a receipt of groups that do not sum": (
        forged("teachers/*/part-00001.receipt.json", lambda value: value.update(row_groups=[1, 1000])),
        ("part-00001",),
    ),
    "no receipt of a part of the corpus": (gone("corpus/part-00000.receipt.json"), ("part-00000",)),
}

# Found where a part is read, which is in the first step.
IN_TRAINING: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a teacher asked about rows that are not there": (
        forged("manifest.json", lambda value: _first(value, "teachers")["reach"][0].update(rows=[10**9])),
        ("sides/student", "1000000000"),
    ),
    "no part of the pages": (gone("teachers/*/part-00001.parquet"), ("part-00001",)),
    "a part of the pages that is cut": (cut("teachers/*/part-00001.parquet", 0.5), ("part-00001",)),
    "a part of the pages of nothing": (holding("teachers/*/part-00001.parquet", b""), ("part-00001",)),
    "a part of the pages with a bit turned around": (flipped("teachers/*/part-00001.parquet", 0.3), ("part-00001",)),
    "a part of the pages that is a folder": (folder_at("teachers/*/part-00001.parquet"), ("part-00001",)),
    "a part of the pages that is a pipe": (pipe_at("teachers/*/part-00001.parquet"), ("part-00001",)),
    "two parts of the pages in each other's place": (
        swapped("teachers/*/part-00001.parquet", "teachers/*/part-00002.parquet"),
        ("part-0000",),
    ),
    "pages of another folder": (
        swapped("teachers/*/part-00001.parquet", "sides/teacher-*/part-00001.parquet"),
        ("part-00001",),
    ),
    "no part of the student's side": (gone("sides/student-*/part-00001.parquet"), ("sides/student", "part-00001")),
    "a part of the student's side that is cut": (
        cut("sides/student-*/part-00001.parquet", 0.9),
        ("sides/student", "part-00001"),
    ),
    "a part of the alignment with a bit turned around": (
        flipped("alignments/*/part-00001.parquet", 0.2),
        ("alignments/", "part-00001"),
    ),
    "a part of the alignment of prose": (
        holding("alignments/*/part-00001.parquet", b"Dear reader, " * 90),
        ("alignments/", "part-00001"),
    ),
}

# Maps that one method reads and no other.
BY_METHOD: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "no vocabulary": ("boundary", gone("alignments/*/vocabulary.safetensors"), ("vocabulary",)),
    "a vocabulary that is cut": ("boundary", cut("alignments/*/vocabulary.safetensors", 0.8), ("vocabulary",)),
    "no nearest ids": ("mined", gone("alignments/*/nearest.safetensors"), ("nearest",)),
    "nearest ids with a bit turned around": (
        "mined",
        flipped("alignments/*/nearest.safetensors", 0.7),
        ("nearest",),
    ),
    "no embeddings of the teacher's": ("dskd", gone("teachers/*/embeddings.safetensors"), ("embeddings",)),
    "embeddings of the teacher's of prose": (
        "dskd",
        holding("teachers/*/embeddings.safetensors", b"Dear reader, " * 9),
        ("embeddings",),
    ),
}

TEACH = f"{CACHE} shards --teacher TEACHER --hidden-dtype fp32 --top-k 4"

CASES: list[Case] = [
    *(
        Case(f"shards: to train on, {wrong}", f"{RUN} shards", ("shards", *says), copied("SHARDS", "shards", damage))
        for wrong, (damage, says) in (BOTH | RUN_ALONE).items()
    ),
    *(
        Case(
            f"shards: to train on, {wrong}",
            f"{RUN} shards",
            ("shards", *says),
            copied("SHARDS", "shards", damage),
            leaves=TRAINED,
        )
        for wrong, (damage, says) in IN_TRAINING.items()
    ),
    *(
        Case(
            f"shards: to train on by {method}, {wrong}",
            f"{RUN} shards --method {method}",
            ("shards", *says),
            copied("SHARDS", "shards", damage),
        )
        for wrong, (method, damage, says) in BY_METHOD.items()
    ),
    *(
        Case(f"shards: to cache into, {wrong}", TEACH, ("shards", *says), copied("SHARDS", "shards", damage))
        for wrong, (damage, says) in BOTH.items()
    ),
    Case(
        "shards: to train on, a manifest that may not be read",
        f"{RUN} shards",
        ("manifest.json", "Permission denied"),
        copied("SHARDS", "shards", lambda folder: (folder / "manifest.json").chmod(0)),
        is_nobody=True,
    ),
    Case(
        "shards: to train on, a part that may not be read",
        f"{RUN} shards",
        ("part-00001", "Permission denied"),
        copied("SHARDS", "shards", lambda folder: the(folder, "teachers/*/part-00001.parquet").chmod(0)),
        leaves=TRAINED,
        is_nobody=True,
    ),
    Case(
        "shards: to train on, a folder that may not be read",
        f"{RUN} shards",
        ("shards",),
        copied("SHARDS", "shards", lambda folder: folder.chmod(0)),
        is_nobody=True,
    ),
    Case(
        "shards: to train on, a folder of examples",
        f"{RUN} shards",
        ("shards", "sra-data align"),
        written("shards/train.jsonl", '{"prompt": "p", "response": "r"}\n'),
    ),
]
