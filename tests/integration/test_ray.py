"""Who runs the units does not matter: one process, actors of Ray, jobs apart; nor which actors die at their commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sra_data.shards.manifest import Plan
from sra_data.stages.align import stage as align_stage
from sra_data.stages.cache import units as cache_units
from tests.integration.command_lines import sra_data
from tests.integration.ray_kills import hooked, noted
from tests.integration.ray_worlds import Place, done, several_units, write_place
from tests.ray_clusters import of_two_cores

pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
pytestmark = pytest.mark.slow  # a cluster takes seconds to start, and every actor imports torch
OVER_RAY = ("--engine", "ray", "--workers", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The pair, and Ray."""
    made = write_place(tmp_path_factory.mktemp("ray"))
    with of_two_cores(), several_units():
        yield made


def test_one_process_ray_and_jobs_apart_leave_the_same_bytes(place: Place, tmp_path: Path) -> None:
    over_ray, apart = tmp_path / "ray", tmp_path / "apart"
    num_units = len(Plan.load(place.aligned / "corpus").units)
    assert num_units > 3
    jobs = ["0:1", f"1:{num_units - 1}", f"{num_units - 1}:{num_units}"]
    done(place.align(over_ray, *OVER_RAY))
    for units in jobs:
        done(place.align(apart, "--units", units))
    assert (place.differences(over_ray), place.differences(apart)) == ([], [])
    done(place.cache(over_ray, *OVER_RAY))
    for units in jobs:
        done(place.cache(apart, "--units", units))
    assert (place.differences(over_ray), place.differences(apart)) == ([], [])
    assert sra_data("verify", over_ray).exit_code == 0


def test_actors_killed_between_a_part_and_its_receipt_leave_every_unit_made_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    for stage, words in ((align_stage, place.align(shards)), (cache_units, place.cache(shards))):
        notes = tmp_path / stage.__name__
        notes.mkdir()
        before = place.receipts(shards)
        monkeypatch.setattr(stage, "run_units", hooked(stage.run_units, notes, deaths=2))
        done([*words, *OVER_RAY])
        assert len(list(notes.glob("death-*"))) == 2
        assert len(noted(notes / "workers")) >= 3
        commits = [name for (name,) in noted(notes / "commits")]
        assert sorted(commits) == sorted(place.receipts(shards) - before)
        assert place.differences(shards) == []
    assert sra_data("verify", shards).exit_code == 0


def test_a_finished_folder_costs_no_actor(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(align_stage, "run_units", hooked(align_stage.run_units, tmp_path))
    monkeypatch.setattr(cache_units, "run_units", hooked(cache_units.run_units, tmp_path))
    done(place.align(place.whole, *OVER_RAY))
    done(place.cache(place.whole, *OVER_RAY))
    assert not (tmp_path / "workers").exists()
