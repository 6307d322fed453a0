"""Asking the teacher again: what it says now about some examples, encoded as the folder of shards stores it.

Everything the pages were made with (model, revision, adapter, dtype, layers, int8's channel scales, batch budget) is
read from the manifest, so that what differs is the teacher or the machine, never the options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sra_data.errors import ShardError
from sra_data.shards.schema import CorpusRow, TeacherRow
from sra_data.shards.store import ShardSet
from sra_data.stages.cache.unit import CacheWorker, UnitSettings
from sra_data.teacher.capture import CaptureOptions


def recapture(
    shards: ShardSet,
    rows: Sequence[CorpusRow],
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> list[TeacherRow]:
    """What the teacher that the manifest names says now about corpus rows.

    Args:
        shards: with sealed pages of the teacher.
        rows: of its corpus, whole.
        device: torch device; a GPU where there is one.
        trust_remote_code: run code that comes with the model.
        allow_pickle: read .bin weights.

    Raises:
        ModelError: If the teacher is not to be had.
        ShardError: If its weights or configuration are not those the pages were made with.
    """
    settings = settings_of_pages(
        shards,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    teacher = settings.load()
    known = shards.teacher.facts["fingerprint"]["teacher"]
    if teacher.fingerprint != known:
        raise ShardError(
            f"{shards.teacher.folder}: made with a teacher of fingerprint {known[:12]}, {teacher.name} now has "
            f"{teacher.fingerprint[:12]}; put that model back, or delete the folder and run `sra-data cache-teacher`"
        )
    worker = CacheWorker(settings, teacher)
    try:
        return worker.say(rows)
    finally:
        worker.close()


def settings_of_pages(
    shards: ShardSet, *, device: str, trust_remote_code: bool = False, allow_pickle: bool = False
) -> UnitSettings:
    """The settings that the teacher's pages were made with, as far as they are its pages' own."""
    facts = shards.teacher.facts
    inputs = facts["fingerprint"]
    return UnitSettings(
        shards=shards.path,
        teacher=facts["name"],
        revision=facts["revision"],
        adapter=facts["adapter"],
        quantization=inputs["quantization"],
        dtype=inputs["dtype"],
        device=device,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        capture=CaptureOptions(
            layers=tuple(inputs["layers"]),
            hidden_dtype=inputs["hidden_dtype"],
            attention=inputs["attention"],
            top_k=inputs["top_k"],
            temperatures=tuple(inputs["temperatures"]),
            num_samples=inputs["num_samples"],
            seed=inputs["seed"] or 0,
            granularity=inputs["granularity"],
        ),
        alignment=facts.get("alignment"),
        hidden_size=inputs["hidden_size"],
        vocabulary_size=inputs["vocabulary_size"],
        batch_tokens=inputs["batch_tokens"],
        channel_scales={int(layer): text for layer, text in inputs["channel_scales"].items()},
    )
