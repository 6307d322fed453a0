"""Asking a teacher again: what it says now about some examples, encoded as the folder of shards stores it.

Everything the pages were made with (model, revision, adapter, dtype, layers, int8's channel scales, batch budget) is
read from the manifest, so that what differs is the teacher or the machine, never the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sra_data.errors import ShardError
from sra_data.options import recorded, restored
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import ShardSet
from sra_data.stages.cache.parts import UnitSettings
from sra_data.stages.cache.unit import CacheWorker
from sra_data.teacher.loading import load, settled
from sra_data.teacher.spec import CaptureOptions, TeacherSpec, check_teacher


def recapture(
    shards: ShardSet, teacher: str, numbers: Sequence[int], how: TeacherSpec = TeacherSpec()
) -> list[TeacherRow]:
    """What a teacher says now about some rows.

    Args:
        shards: the folder.
        teacher: name of its pages, which are sealed.
        numbers: of the rows.
        how: to open it: device, trust and the like; what the pages know themselves is theirs.

    Raises:
        ConfigError: If it is to be in two places.
        ModelError: If the teacher is not to be had.
        ShardError: If its weights or configuration are not those the pages were made with.
    """
    check_teacher(how)
    settings = settings_of_pages(shards, teacher, how)
    loaded = load(settings.teacher)
    known = shards.teacher(teacher).facts["fingerprint"]["teacher"]
    if loaded.fingerprint != known:
        raise ShardError(
            f"{settings.folder}: made with a teacher of fingerprint {known[:12]}, {loaded.name} now has "
            f"{loaded.fingerprint[:12]}; put that model back, or delete the folder and run `sra-data cache-teacher`"
        )
    worker = CacheWorker(settings, loaded)
    try:
        return worker.say(numbers)
    finally:
        worker.close()


def settings_of_pages(shards: ShardSet, teacher: str, how: TeacherSpec = TeacherSpec()) -> UnitSettings:
    """The settings that a teacher's pages were made with, as far as they are its pages' own."""
    pages = shards.teacher(teacher)
    facts, inputs = pages.facts, pages.facts["fingerprint"]
    numbers = recorded(restored(TeacherSpec, inputs))
    spec = replace(how, name=facts["name"], revision=facts["revision"], adapter=facts["adapter"], **numbers)
    return UnitSettings(
        shards=shards.path,
        section=pages.section,
        teacher=settled(spec),
        capture=restored(CaptureOptions, inputs),
        side=facts["side"],
        alignment=facts["alignment"] and facts["alignment"].removeprefix("alignments/"),
        hidden_size=inputs["hidden_size"],
        vocabulary_size=inputs["vocabulary_size"],
        batch_tokens=inputs["batch_tokens"],
        channel_scales={int(layer): text for layer, text in inputs["channel_scales"].items()},
    )
