"""Everything that can be read of a folder of shards or a checkpoint, as one digest: equal where it reads alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sra_data.errors import SRAError
from sra_data.shards.images import IMAGES
from sra_data.shards.nearest import NEAREST
from sra_data.shards.store import ShardSet, has_file
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from sra_train.record.checkpoint import Checkpoints


def read_shards(shards: Path) -> str:
    """Every row of every folder, and every file beside the parts."""
    digest = xxhash.xxh3_128()
    with ShardSet.open(shards) as opened:
        names = {group: opened.manifest.names(group) for group in ("sides", "alignments", "teachers")}
        readers = [opened.corpus, *map(opened.side, names["sides"])]
        readers += [*map(opened.alignment, names["alignments"]), *map(opened.teacher, names["teachers"])]
        for reader in readers:
            _add(digest, reader.read(range(len(reader))))
        for pair in opened.manifest.pairs:
            beside = opened.pair(student=pair["student_side"], teacher=pair["teacher_side"])
            _add(digest, beside.vocabulary())
            for name, load in ((IMAGES, beside.images), (NEAREST, beside.nearest)):
                if has_file(beside.reader.folder, name):
                    _add(digest, load())
        for name in names["teachers"]:
            _add(digest, [opened.head(name), opened.embeddings(name)])
    return digest.hexdigest()


def read_checkpoints(run: Path) -> str:
    """Every checkpoint of a run, as resuming reads it."""
    identity = json.loads((run / "run.json").read_text("utf-8"))["identity"]
    checkpoints = Checkpoints(run / "checkpoints", keep_last=1, identity=identity)
    digest = xxhash.xxh3_128()
    for step in checkpoints.steps():
        _add(digest, checkpoints.read(step))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Take a value in: dataclasses, lists, dictionaries, arrays, tensors and plain values."""
    if dataclasses.is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key}:".encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    elif hasattr(value, "numpy") or isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value.numpy() if hasattr(value, "numpy") else value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    else:
        digest.update(f"{value!r};".encode())


def refusal(step: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a step returns, and what it refused with, "" where it did not.

    Raises:
        AssertionError: If the refusal is not one line. Any other exception passes.
    """
    try:
        return step(*arguments), ""
    except SRAError as error:
        said = str(error)
    assert said, "a refusal without a word"
    assert "\n" not in said, f"more than a line: {said!r}"
    said.encode()  # a terminal can print it
    return None, said


def problems(shards: Path) -> list[str]:
    """What `verify` says, a line each; what it refuses to begin with is one."""
    summary, said = refusal(verify, VerifyOptions(shards), Reporter())
    return [said] if summary is None else list(summary.problems)
