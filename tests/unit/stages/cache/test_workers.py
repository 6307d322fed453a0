"""Workers elsewhere: each with a GPU of its own, and none beside a teacher that only the parent holds."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from sra_data.engines import Needs
from sra_data.errors import ConfigError
from sra_data.stages.cache import run as cache_run
from sra_data.stages.cache import units as cache_units
from sra_data.stages.cache.stage import cache_teacher
from sra_data.stages.cache.unit import MakeWorker
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter
from tests.unit.stages.cache.worlds import World


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The models that the parent has loaded, as long as somebody holds them."""
    models: list[weakref.ref[Any]] = []
    original = cache_run.load

    def load(spec: TeacherSpec) -> Any:
        teacher = original(spec)
        models.append(weakref.ref(teacher.model))
        return teacher

    monkeypatch.setattr(cache_run, "load", load)
    return models


@pytest.mark.parametrize("asked", [{"num_workers": 2}, {"engine": "ray"}], ids=["pool", "ray"])
def test_the_parent_lets_go_of_its_teacher_before_workers_elsewhere_load_theirs(
    world: World, loaded: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    held: list[int] = []

    def elsewhere(units: Any, make_worker: Any, *, advance: Any, **rest: Any) -> Any:
        assert isinstance(make_worker, MakeWorker)
        held.append(sum(model() is not None for model in loaded))
        yield from make_worker()(units, advance)

    monkeypatch.setattr(cache_units, "run_units", elsewhere)
    monkeypatch.setattr(cache_units, "check", lambda *asked: None)
    summary = cache_teacher(world.options(**asked), Reporter())
    assert (summary.num_done, summary.num_missing) == (3, 0)
    assert held == [0]
    assert len(loaded) == 2  # once to admit it and for its head, once to measure its pages


def test_one_worker_here_takes_the_teacher_that_is_at_hand(world: World, loaded: list[weakref.ref[Any]]) -> None:
    cache_teacher(world.options(), Reporter())
    assert len(loaded) == 1


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cuda:1", 0), ("cpu", 0)])
def test_a_worker_needs_a_gpu_where_the_teacher_runs_on_any(device: str, gpus: int) -> None:
    run = SimpleNamespace(settings=SimpleNamespace(teacher=TeacherSpec(device=device)))
    assert cache_units._needs(run) == Needs(gpus=gpus)  # type: ignore[arg-type]


def test_fewer_gpus_than_workers_are_refused_before_a_teacher_is_loaded(
    world: World, loaded: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(cache_units, "_needs", lambda run: Needs(gpus=1))
    with pytest.raises(ConfigError, match="--workers 2: each takes 1 GPU, and this machine has 1; ask for at most 1"):
        cache_teacher(world.options(num_workers=2), Reporter())
    assert loaded == []
    assert not list(world.shards.glob("teachers/*"))
