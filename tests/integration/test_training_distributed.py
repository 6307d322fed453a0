"""1, 2 and 4 processes on gloo, DDP and FSDP2: the same batches, the same losses, one after the other in one epoch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import start_ranks
from tests.synthetic_shards import SyntheticShards, make_shards
from tests.training_runs import EPSILON, losses, of_steps, train, weights

RANK = Path(__file__).with_name("training_rank.py")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return make_shards(tmp_path_factory.mktemp("still"))


def options(made: SyntheticShards, out: Path, **changes: object) -> dict[str, object]:
    plain = {
        "data.shards": str(made.shards),
        "output_dir": str(out),
        "training.epochs": 1,
        "training.batch_size": 4,
        "training.learning_rate": 3e-3,
        "training.epsilon": EPSILON,
        "tracking.plots": False,
    }
    return plain | {name.replace("__", "."): value for name, value in changes.items()}


def launch(world_size: int, chosen: dict[str, object], *, stop_after: int = -1) -> int:
    """Run `world_size` processes as torchrun would; the first one's exit code."""
    ended = start_ranks([sys.executable, str(RANK), json.dumps(chosen), str(stop_after)], world_size)
    codes, said = {code for code, _, _ in ended}, "\n".join(error for _, _, error in ended)
    assert len(codes) == 1, said
    code = codes.pop()
    assert code in (0, 130), said
    return code


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=5e-3, atol=5e-5)


def test_two_processes_learn_what_one_learns(still, tmp_path) -> None:
    train(still, tmp_path / "one", training__epochs=1, training__batch_size=4)
    assert launch(2, options(still, tmp_path / "two")) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=5e-5)
    # AdamW divides a gradient by its size, so that weights alone cannot tell a sum over ranks from a mean
    norms = [of_steps(tmp_path / name, "grad_norm") for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    exported = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    close(*exported)


@pytest.mark.slow
def test_two_processes_learn_from_two_teachers_what_one_does_though_a_rank_may_have_rows_of_one_only(tmp_path) -> None:
    two = make_shards(tmp_path / "two", num_teachers=2, num_skipped_by_second=8)
    teachers = [two.teachers[0], f"{two.teachers[1]}:0.25"]
    train(two, tmp_path / "one", training__epochs=1, training__batch_size=4, data__teachers=teachers)
    chosen = options(two, tmp_path / "both", training__micro_batch_size=1, data__teachers=teachers)
    assert launch(2, chosen) == 0
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=5e-5)
    close(weights(tmp_path / "one"), weights(tmp_path / "both"))


@pytest.mark.slow
def test_four_processes_learn_what_one_learns_though_the_last_batch_is_not_full(still, tmp_path) -> None:
    # 23 examples: the sixth batch of 4 holds 3, and of 4 ranks one has only a row of weight 0
    train(still, tmp_path / "one", training__epochs=1, training__batch_size=4)
    assert launch(4, options(still, tmp_path / "four")) == 0
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=5e-5)
    close(weights(tmp_path / "one"), weights(tmp_path / "four"))


@pytest.mark.slow
def test_a_world_that_does_not_divide_the_batch_changes_nothing(still, tmp_path) -> None:
    train(still, tmp_path / "one", training__epochs=1, training__batch_size=4)
    assert launch(3, options(still, tmp_path / "three", training__micro_batch_size=1)) == 0
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=5e-5)


@pytest.mark.slow
def test_two_processes_then_one_then_two_in_one_epoch(still, tmp_path) -> None:
    train(still, tmp_path / "whole", training__epochs=1, training__batch_size=4)
    chosen = options(still, tmp_path / "pieces")
    assert launch(2, chosen, stop_after=1) == 130
    assert launch(1, chosen, stop_after=4) == 130
    assert launch(2, chosen) == 0
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), rel=5e-5)
    close(weights(tmp_path / "whole"), weights(tmp_path / "pieces"))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [2, 1])
def test_fsdp2_learns_what_one_process_learns(still, tmp_path, micro_batch_size) -> None:
    train(still, tmp_path / "one", training__epochs=1, training__batch_size=4)
    chosen = options(
        still, tmp_path / "sharded", training__strategy="fsdp2", training__micro_batch_size=micro_batch_size
    )
    assert launch(2, chosen, stop_after=2) == 130
    assert launch(2, chosen) == 0
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "one"), rel=5e-5)
    norms = [of_steps(tmp_path / name, "grad_norm") for name in ("one", "sharded")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    close(weights(tmp_path / "one"), weights(tmp_path / "sharded"))


def gradients(out: Path) -> dict[str, torch.Tensor]:
    """Of every parameter in the run's only step: what AdamW remembers of it, but for a factor."""
    moments = load_file(out / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    return {name.removesuffix("/exp_avg"): value for name, value in moments.items() if name.endswith("/exp_avg")}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4)])
def test_the_gradient_of_every_parameter_is_the_one_of_a_single_process(
    still, tmp_path, strategy: str, world_size: int
) -> None:
    train(still, tmp_path / "one", training__max_steps=1, training__batch_size=4)
    chosen = options(still, tmp_path / "many", training__max_steps=1, training__strategy=strategy)
    assert launch(world_size, chosen) == 0
    one, many = gradients(tmp_path / "one"), gradients(tmp_path / "many")
    assert one.keys() == many.keys()
    assert sum(float(value.abs().max()) > 0 for value in one.values()) > 10
    for name, expected in one.items():
        least = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(
            many[name], expected, rtol=1e-3, atol=least, msg=lambda said, at=name: f"{at}: {said}"
        )
