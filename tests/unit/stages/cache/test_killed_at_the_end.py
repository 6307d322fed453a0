"""A teacher's folder killed between its last writes: the rerun measures what was not, and believes nothing half."""

from __future__ import annotations

import pytest

from sra_data.errors import ShardError
from sra_data.shards.manifest import Manifest
from sra_data.stages.cache import stage
from sra_data.stages.cache.stage import cache_teacher
from sra_data.terminal import Reporter
from tests.unit.stages.cache.test_claims import folder_of
from tests.unit.stages.cache.worlds import World


class KilledError(BaseException):
    """The process is gone."""


def die(*arguments: object, **named: object) -> None:
    raise KilledError


def section_of(world: World) -> dict:
    return Manifest.load(world.shards).section(f"teachers/{folder_of(world).name}") or {}


@pytest.mark.parametrize("step", ["measure_faithfulness", "record_reach"])
def test_what_was_not_measured_is_measured_by_the_rerun(world: World, monkeypatch, step: str) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stage, step, die)
        with pytest.raises(KilledError):
            cache_teacher(world.options(), Reporter())
    assert "reach" not in section_of(world)
    assert cache_teacher(world.options(), Reporter()).num_done == 0
    assert {"faithfulness", "reach"} <= set(section_of(world))


def test_pages_that_are_not_faithful_are_never_sealed_beside_their_number(world: World, monkeypatch) -> None:
    """One write says both: a kill between two would leave a folder that a rerun takes for measured and good."""
    said = []
    record = stage.record

    def refuse(*arguments: object, **named: object) -> None:
        raise ShardError("too far from the teacher")

    monkeypatch.setattr(stage, "refuse_unfaithful", refuse)
    monkeypatch.setattr(
        stage, "record", lambda *places, **values: (said.append(set(values)), record(*places, **values))
    )
    with pytest.raises(ShardError, match="too far"):
        cache_teacher(world.options(), Reporter())
    assert said == [{"faithfulness", "root"}]
    assert section_of(world)["root"] is None


def test_a_finished_rerun_leaves_no_temporary_file_of_a_killed_process(world: World) -> None:
    cache_teacher(world.options(), Reporter())
    for left in (world.shards / "manifest.json.tmp", folder_of(world) / "part-00000.receipt.json.tmp"):
        left.write_bytes(b"half")
    cache_teacher(world.options(), Reporter())
    assert not list(world.shards.rglob("*.tmp"))
