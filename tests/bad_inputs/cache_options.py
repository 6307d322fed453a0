"""`sra-data cache-teacher`: options that cannot be, and what is not there to be cached."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.bad_inputs.case import CACHE, Case, copied, usage, written
from tests.crash.world import World

HERE = f"{CACHE} ALIGNED"
SPAN = f"{HERE} --granularity span"
LONG = "n" * 300


def _two_teachers(place: Path, world: World) -> None:
    """Shards aligned for two teachers: which one is meant?"""
    shutil.copytree(world.root / "whole" / "align", place / "two")
    from sra_data.shards.manifest import Manifest

    manifest = Manifest.load(place / "two")
    (pair,) = manifest.pairs
    manifest.record({}, [{**pair, "teacher": {"name": "org/other", "revision": None}}])


CASES: list[Case] = [
    *usage(
        "cache-teacher's options",
        {
            "an option that is none": (f"{HERE} --logits sampled", ("has no such option", "--logits")),
            "a word too many": (f"{HERE} more", ("unexpected extra argument", "more")),
            "states in three bits": (f"{HERE} --hidden-dtype int3", ("--hidden-dtype", "int3", "int8")),
            "rows by word": (f"{HERE} --granularity word", ("--granularity", "word")),
            "weights in eight bits": (f"{HERE} --dtype fp8", ("--dtype", "fp8", "bf16")),
            "three bits": (f"{HERE} --quantization 3bit", ("--quantization", "3bit")),
            "ids in words": (f"{HERE} --top-k ten", ("--top-k", "valid integer")),
            "half an id": (f"{HERE} --top-k 1.5", ("--top-k", "valid integer")),
            "failures in words": (f"{HERE} --max-failed some", ("--max-failed", "valid integer")),
            "tokens in thousands": (f"{HERE} --batch-tokens 4k", ("--batch-tokens", "valid integer")),
            "an engine that is none": (f"{HERE} --engine slurm", ("--engine", "slurm", "local")),
        },
        code=2,
    ),
    *usage(
        "cache-teacher's options",
        {
            "no shards here": (CACHE, ("shards", "sra-data align")),
            "shards that are not there": (f"{CACHE} nowhere", ("nowhere", "sra-data align")),
            "shards without a name": (f"{CACHE} ''", ("sra-data align",)),
            "shards with a name too long": (f"{CACHE} {LONG}", ("nnn",)),
            "a file as the shards": (f"{CACHE} DATA", ("data.jsonl",)),
            "a model as the shards": (f"{CACHE} TEACHER", ("teacher", "sra-data align")),
            "a map beside a device": (f"{HERE} --device-map auto", ("--device cpu with --device-map auto",)),
            "cut over processes beside a device": (
                f"{HERE} --tensor-parallel",
                ("--device cpu with --tensor-parallel",),
            ),
            "cut over one process": (
                "sra-data cache-teacher --json ALIGNED --tensor-parallel",
                ("--tensor-parallel", "torchrun"),
            ),
            "layer 0": (f"{HERE} --layers 0", ("--layers 0", "1 to 3")),
            "a layer beyond the last": (f"{HERE} --layers 1,9", ("--layers 9", "1 to 3")),
            "the first layer": (f"{HERE} --layers first", ("--layers first",)),
            "half a layer": (f"{HERE} --layers 1.5", ("--layers 1.5",)),
            "no layer": (f"{HERE} --layers ''", ("--layers",)),
            "a layer from behind": (f"{HERE} --layers -1", ("--layers -1",)),
            "layers by a range": (f"{HERE} --layers 1-3", ("--layers 1-3",)),
            "a layer in raised digits": (f"{HERE} --layers ²", ("--layers ²",)),
            "a layer of thousands of digits": (f"{HERE} --layers {'9' * 5000}", ("--layers",)),
            "ids below none": (f"{HERE} --top-k -1", ("--top-k -1",)),
            "more ids than there are": (f"{HERE} --top-k 100000", ("--top-k 100000",)),
            "no temperature above 0": (f"{HERE} --temperatures 0", ("--temperatures",)),
            "a temperature below 0": (f"{HERE} --temperatures 1,-2", ("--temperatures",)),
            "a temperature that is no number": (f"{HERE} --temperatures nan", ("--temperatures",)),
            "a temperature without end": (f"{HERE} --temperatures inf", ("--temperatures",)),
            "a temperature in words": (f"{HERE} --temperatures warm", ("--temperatures warm",)),
            "failures below none": (f"{HERE} --max-failed -1", ("--max-failed -1",)),
            "batches of no token": (f"{HERE} --batch-tokens 0", ("--batch-tokens 0",)),
            "no processes": (f"{HERE} --workers 0", ("--workers 0",)),
            "processes below none": (f"{HERE} --workers -2", ("--workers -2",)),
            "units without a colon": (f"{HERE} --units 1", ("--units 1",)),
            "units beyond the plan": (f"{HERE} --units 0:99", ("--units 0:99",)),
            "units that end before they begin": (f"{HERE} --units 3:1", ("--units 3:1",)),
            "units in raised digits": (f"{HERE} --units ¹:²", ("--units",)),
            "units below none": (f"{HERE} --units -1:2", ("--units -1:2",)),
            "units of thousands of digits": (f"{HERE} --units 0:{'9' * 5000}", ("--units",)),
            "a side that there is not": (f"{HERE} --side nobody", ("nobody", "--side")),
            "a side of another tokenizer": (f"{HERE} --side student", ("--side", "tokenizer")),
            "a side without a name": (f"{HERE} --side ''", ("--side",)),
            "a teacher that there is not": (f"{HERE} --teacher ./nowhere", ("./nowhere",)),
            "a teacher without a name": (f"{HERE} --teacher ''", ("a model without a name",)),
            "a teacher that is a file": (f"{HERE} --teacher DATA", ("data.jsonl",)),
            "a teacher out of reach": (f"{HERE} --teacher someone/nothing", ("someone/nothing",)),
            "an adapter that there is not": (f"{HERE} --adapter ./nowhere", ("--adapter ./nowhere",)),
            "an adapter that is a file": (f"{HERE} --adapter DATA", ("--adapter", "data.jsonl")),
            "an adapter that is a model": (f"{HERE} --adapter TEACHER", ("--adapter",)),
            "an adapter out of reach": (f"{HERE} --adapter someone/nothing", ("--adapter", "someone/nothing")),
            "a device that there is not": (f"{HERE} --device tpu", ("--device tpu",)),
            "a device that this machine lacks": (f"{HERE} --device cuda:7", ("--device cuda:7",)),
            "a device without memory": (f"{HERE} --device meta", ("--device meta",)),
            "four bits without their library": (f"{HERE} --quantization 4bit", ("--quantization", "bitsandbytes")),
            "a student without spans": (f"{HERE} --student STUDENT", ("--student", "--granularity span")),
            "an alignment without spans": (f"{HERE} --alignment x", ("--alignment x", "--granularity span")),
            "spans of nobody": (f"{SPAN} --student nobody", ("nobody", "--student")),
            "spans of no alignment": (f"{SPAN} --alignment nothing", ("nothing", "--alignment")),
            "spans without attention": (f"{SPAN} --no-attention", ("--granularity span", "attention")),
            "spans without states": (f"{SPAN} --hidden-dtype none", ("--granularity span", "--hidden-dtype none")),
            "another top k than is there": (f"{CACHE} SHARDS --hidden-dtype fp32 --top-k 3", ("other inputs", "top k")),
            "another dtype than is there": (f"{CACHE} SHARDS --hidden-dtype int8 --top-k 4", ("hidden dtype",)),
        },
    ),
    Case(
        "cache-teacher's options: one of two teachers",
        f"{CACHE} two",
        ("2 teachers", "org/other", "--teacher"),
        _two_teachers,
    ),
    Case(
        "cache-teacher's options: an empty folder",
        f"{CACHE} empty",
        ("empty", "sra-data align"),
        lambda place, world: (place / "empty").mkdir(),
    ),
    Case(
        "cache-teacher's options: shards that may not be written",
        f"{CACHE} locked --teacher TEACHER --top-k 4",
        ("locked",),
        copied("ALIGNED", "locked", lambda folder: [one.chmod(0o555) for one in (*folder.rglob("*/"), folder)]),
        is_nobody=True,
    ),
    Case(
        "cache-teacher's options: a file in place of the teachers' folder",
        f"{CACHE} shards --top-k 4",
        ("teachers",),
        copied("ALIGNED", "shards", lambda folder: (folder / "teachers").write_text("no folder")),
    ),
    Case(
        "cache-teacher's options: a folder of a run",
        f"{CACHE} out",
        ("out", "sra-data align"),
        written("out/run.json", "{}"),
    ),
]
