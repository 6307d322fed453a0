"""How many workers a Ray cluster is given, and what is refused before it is asked; no cluster is started."""

from __future__ import annotations

import importlib.util
import signal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sra_data import engines
from sra_data.engines import ray_cluster
from sra_data.engines.work import Needs
from sra_data.errors import ConfigError

Machines = list[tuple[int, int]]  # cores and GPUs of each


def ray_of(machines: Machines) -> SimpleNamespace:
    """A cluster that can be asked for its machines."""
    nodes = [{"Alive": True, "Resources": {"CPU": float(cores), "GPU": float(gpus)}} for cores, gpus in machines]
    return SimpleNamespace(nodes=lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])


@given(
    machines=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=4),
    num_workers=st.none() | st.integers(1, 12),
    gpus=st.sampled_from([0, 1]),
)
def test_one_core_of_the_cluster_stays_free_and_no_machine_bears_more_than_it_has(
    machines: Machines, num_workers: int | None, gpus: int
) -> None:
    most = sum(min(2 * cores, has if gpus else 2 * cores) for cores, has in machines)
    if min(most, 2 * (sum(cores for cores, _ in machines) - 1)) < (num_workers or 1):
        with pytest.raises(ConfigError, match="one core stays free"):
            ray_cluster._shares(ray_of(machines), num_workers, Needs(gpus=gpus))
        return
    count, cpus = ray_cluster._shares(ray_of(machines), num_workers, Needs(gpus=gpus))
    assert count == num_workers or num_workers is None
    assert count * cpus <= sum(cores for cores, _ in machines) - 1
    borne = sum(int(min(cores / cpus, has / gpus if gpus else cores / cpus)) for cores, has in machines)
    assert 1 <= count <= borne


@pytest.mark.parametrize(
    ("machines", "num_workers", "gpus", "expected"),
    [
        ([(8, 0)], None, 0, (7, 1.0)),
        ([(8, 0), (4, 0)], None, 0, (11, 1.0)),
        ([(2, 0)], None, 0, (1, 1.0)),
        ([(2, 0)], 2, 0, (2, 0.5)),  # two share a core, and the other stays free
        ([(8, 8)], None, 1, (8, 0.5)),  # no GPU waits for a core
        ([(16, 8)], None, 1, (8, 1.0)),
        ([(16, 8)], 3, 1, (3, 1.0)),
        ([(16, 2), (64, 0)], None, 1, (2, 1.0)),
    ],
)
def test_workers_get_whole_cores_where_there_are_enough(
    machines: Machines, num_workers: int | None, gpus: int, expected: tuple[int, float]
) -> None:
    assert ray_cluster._shares(ray_of(machines), num_workers, Needs(gpus=gpus)) == expected


def test_more_workers_than_there_is_room_for_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as refused:
        ray_cluster._shares(ray_of([(2, 1), (1, 0)]), 5, Needs())
    assert str(refused.value) == (
        "--workers 5: the cluster has room for 4, of at least 0.5 cores each (3 cores and 1 GPU on 2 machines, and one "
        "core stays free); ask for fewer, or add machines"
    )
    with pytest.raises(ConfigError, match=r"--workers 2: the cluster has room for 1, of .* and 1 GPU each"):
        ray_cluster._shares(ray_of([(2, 1), (1, 0)]), 2, Needs(gpus=1))
    with pytest.raises(ConfigError, match=r"the cluster has 8 cores and 0 GPUs on 1 machine, one core stays free"):
        ray_cluster._shares(ray_of([(8, 0)]), None, Needs(gpus=1))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = r"--engine ray: Ray is not installed; run `pip install 'sra-distill\[ray\]'`"
    with pytest.raises(ConfigError, match=told):
        engines.check("ray", None, Needs())
    with pytest.raises(ConfigError, match=told):
        list(engines.run_units([1], lambda: lambda units, advance: iter(()), engine="ray"))


def test_no_cluster_at_the_address_is_one_line_and_changes_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=r"--engine ray: no cluster at 127\.0\.0\.1:1, .* `ray start --head`"):
        engines.check("ray", None, Needs())
    with pytest.raises(ConfigError, match="no cluster at"):
        list(engines.run_units([1], lambda: lambda units, advance: iter(()), engine="ray"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
    monkeypatch.setenv("RAY_ADDRESS", "no address")
    with pytest.raises(ConfigError, match="--engine ray: no cluster at no address, which is RAY_ADDRESS"):
        engines.check("ray", None, Needs())


def test_fewer_than_one_worker_is_refused_before_ray_is_looked_for() -> None:
    with pytest.raises(ConfigError, match="--workers 0: must be at least 1"):
        engines.check("ray", 0, Needs())
