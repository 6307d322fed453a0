"""A Ray cluster of several machines, simulated on this one: work is spread over them, and one may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sra_data.stages.align import stage as align_stage
from sra_data.stages.cache import units as cache_units
from tests.integration.command_lines import sra_data
from tests.integration.ray_kills import hooked, noted
from tests.integration.ray_worlds import Place, done, several_units, write_place
from tests.ray_clusters import forgetting_processes, seeing_the_tests

ray = pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
pytestmark = pytest.mark.slow  # each machine takes seconds to start, and every actor imports torch
OVER_RAY = ("--engine", "ray", "--workers", 4)  # two on each machine: one at least is on none of the driver's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The pair."""
    made = write_place(tmp_path_factory.mktemp("ray"))
    with several_units():
        yield made


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three machines of a core each; RAY_ADDRESS names the first, where the driver is."""
    from ray.cluster_utils import Cluster

    with seeing_the_tests(), forgetting_processes():
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            machines.add_node(num_cpus=1)
            machines.add_node(num_cpus=1)
            monkeypatch.setenv("RAY_ADDRESS", machines.address)
            yield machines
        finally:
            machines.shutdown()


def machines_of(notes: Path) -> set[str]:
    """Where the actors were."""
    return {machine for _, machine in noted(notes / "workers")}


def test_a_machine_that_is_lost_costs_its_units_their_time_alone(
    place: Place, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    for stage, words in ((align_stage, place.align(shards)), (cache_units, place.cache(shards))):
        notes = tmp_path / stage.__name__
        notes.mkdir()
        lost: list[str] = []

        def lose(count: int, notes: Path = notes, lost: list[str] = lost) -> None:
            """After the first unit: a machine that is not the driver's, and that has an actor."""
            others = machines_of(notes) - {ray.get_runtime_context().get_node_id()}
            away = [node for node in cluster.worker_nodes if node.node_id in others]
            if not lost and away:
                lost.append(away[0].node_id)
                cluster.remove_node(away[0], allow_graceful=False)

        before = place.receipts(shards)
        with monkeypatch.context() as patch:
            patch.setattr(stage, "run_units", hooked(stage.run_units, notes, after=lose))
            done([*words, *OVER_RAY])
        assert len(lost) == 1
        commits = [name for (name,) in noted(notes / "commits")]
        assert len(commits) == len(set(commits))
        assert set(commits) <= place.receipts(shards) - before
        assert place.differences(shards) == []
        cluster.add_node(num_cpus=1)
    assert sra_data("verify", shards).exit_code == 0


def test_more_workers_than_the_cluster_has_room_for_are_refused_before_anything_is_written(
    place: Place, cluster: Any, tmp_path: Path
) -> None:
    answer = sra_data(*place.align(tmp_path / "shards", "--engine", "ray", "--workers", 5))
    assert answer.error.startswith("--workers 5: the cluster has room for 4, of at least 0.5 cores each (3 cores and ")
    assert not (tmp_path / "shards").exists()
