"""Laws of the engine of a Ray cluster: each unit once, whatever becomes of its actors. It is told of two cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sra_data.engines import ray_cluster, ray_crew
from sra_data.engines.work import Needs
from sra_data.errors import ConfigError, ShardError, SRAError
from tests.ray_clusters import of_two_cores, until
from tests.unit.engines import ray_workers
from tests.unit.engines.ray_workers import Cued, Noting

ray = pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
pytestmark = pytest.mark.slow  # a cluster takes seconds to start, and so does each actor


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two cores."""
    with of_two_cores():
        yield


def test_every_unit_is_done_once_and_told(tmp_path: Path) -> None:
    told: list[int] = []
    noting = Noting(tmp_path)
    done = list(ray_cluster.run_units(range(7), noting, num_workers=2, advance=told.append))
    assert sorted(done) == [(unit, unit * unit) for unit in range(7)]
    assert sum(told) == 21
    assert [len(noting.done(unit)) for unit in range(7)] == [1] * 7


def test_a_core_stays_free_and_all_are_when_it_ends(tmp_path: Path) -> None:
    running = ray_cluster.run_units(range(3), Noting(tmp_path, seconds=0.5), num_workers=2)
    next(running)
    assert ray.available_resources()["CPU"] >= 1.0
    running.close()
    until(lambda: ray.available_resources()["CPU"] == 2.0)


def test_without_units_nobody_is_hired() -> None:
    assert list(ray_cluster.run_units([], ray_workers.dying)) == []


def test_an_actor_works_where_the_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, (folder, gpus, threads)),) = ray_cluster.run_units([1], ray_workers.telling_where)
    assert Path(folder) == tmp_path.resolve()
    assert (gpus or "", threads) == ("", "1")


def test_a_folder_that_a_machine_does_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_crew.os, "getcwd", lambda: "/not/on/this/machine")
    with pytest.raises(ConfigError, match=r"^/not/on/this/machine: No such file .* must see the driver's folder"):
        list(ray_cluster.run_units([1], Noting(tmp_path)))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_unit_of_a_lost_actor_is_done_by_another(tmp_path: Path, num_workers: int) -> None:
    told: list[int] = []
    cued = Cued(tmp_path, unit=4, times=2, act=ray_workers.die)
    done = list(ray_cluster.run_units(range(6), cued, num_workers=num_workers, advance=told.append))
    assert sorted(done) == [(unit, unit * unit) for unit in range(6)]
    assert cued.tries() == 2
    assert [len(cued.done(unit)) for unit in range(6)] == [1] * 6
    assert sum(told) == 15
    assert min(told) == -2  # what the lost ones had told


def test_a_unit_that_costs_three_actors_is_given_up_in_one_line(tmp_path: Path) -> None:
    cued = Cued(tmp_path, unit=1, times=9, act=ray_workers.die)
    with pytest.raises(SRAError, match=r"^1: 3 workers were lost over it, the last one died .* are kept") as given:
        list(ray_cluster.run_units(range(3), cued, num_workers=1))
    assert cued.tries() == 3
    assert "\n" not in str(given.value)


@pytest.mark.parametrize("how", [ray_workers.sleep, ray_workers.stop], ids=["asleep", "stopped"])
def test_an_actor_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]
) -> None:
    monkeypatch.setattr(ray_crew, "HANGS_AFTER", 4.0)
    cued = Cued(tmp_path, unit=1, act=how)
    assert dict(ray_cluster.run_units(range(3), cued, num_workers=1)) == {0: 0, 1: 1, 2: 4}
    assert cued.tries() == 1


def test_one_that_makes_progress_does_not_hang_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_crew, "HANGS_AFTER", 4.0)
    started = time.monotonic()
    noting = Noting(tmp_path, seconds=3.0)
    assert dict(ray_cluster.run_units(range(2), noting, num_workers=1)) == {0: 0, 1: 1}
    assert time.monotonic() - started > 4.0
    assert len(set(noting.done(0) + noting.done(1))) == 1


def test_what_a_unit_raises_arrives_as_it_is_after_what_was_done_before(tmp_path: Path) -> None:
    running = ray_cluster.run_units(range(3), Cued(tmp_path, act=ray_workers.refuse), num_workers=1)
    assert next(running) == (0, 0)
    with pytest.raises(ShardError, match=r"^unit 1: refused$"):
        next(running)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"a bug") as found:
        list(ray_cluster.run_units(range(3), Cued(tmp_path, act=ray_workers.blunder), num_workers=1))
    assert "in blunder" in found.value.__notes__[0]


def test_why_a_worker_could_not_be_made_arrives() -> None:
    with pytest.raises(ShardError, match=r"^no worker here$"):
        list(ray_cluster.run_units([1, 2], ray_workers.unwilling))


def test_workers_that_die_before_they_begin_are_given_up_in_one_line() -> None:
    with pytest.raises(SRAError, match=r"^no worker of Ray begins: 3 workers were lost"):
        list(ray_cluster.run_units([1, 2], ray_workers.dying))


def test_a_cluster_without_room_for_so_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_crew, "LOADS_FOR", 2.0)
    other = ray.remote(num_cpus=2)(Holding).remote()
    ray.get(other.held.remote())
    with pytest.raises(SRAError, match=r"for 2 s the cluster has had no room for a worker; see `ray status`"):
        list(ray_cluster.run_units([1], Noting(tmp_path)))
    ray.kill(other)


class Holding:
    """Somebody else's actor."""

    def held(self) -> None:
        """It has begun."""


def test_more_than_the_machines_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--workers 3: the cluster has room for 2, of at least 0.5 cores each"):
        list(ray_cluster.run_units(range(5), Noting(tmp_path), num_workers=3))
    with pytest.raises(ConfigError, match=r"the cluster has 2 cores and 0 GPUs on 1 machine, one core stays free"):
        list(ray_cluster.run_units(range(5), Noting(tmp_path), needs=Needs(gpus=1)))
