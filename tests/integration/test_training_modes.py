"""When dropout is on, in what precision a run computes, and what it measures: laws of whole runs.

One example, whose weights do not move, is read in every step and measured behind every one: what changes from one step
to the next is dropout's mask, and nothing else.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train import loop
from sra_train.config import load_config
from sra_train.loop import seed_random
from sra_train.methods import METHODS
from sra_train.parallel import make_accelerator
from sra_train.run import Run, resolve
from tests.synthetic_shards import SyntheticShards, make_shards
from tests.training_runs import Interrupting, losses, of_evaluations, train

STEPS = 5
STILL = {
    "method__name": "sft",
    "training__batch_size": 1,
    "training__epochs": STEPS,
    "training__learning_rate": 1e-30,
    "training__min_learning_rate": 0,
    "training__weight_decay": 0,
}


def one_example(folder: Path, dropout: float) -> SyntheticShards:
    """Shards with one example to train on and one to measure."""
    made = make_shards(folder, num_examples=2, num_dev=1, num_skipped=0, dropout=dropout, with_teacher=False)
    assert (made.num_train, made.num_dev) == (1, 1)
    return made


@pytest.fixture(scope="module")
def wet(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return one_example(tmp_path_factory.mktemp("wet"), dropout=0.2)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return one_example(tmp_path_factory.mktemp("dry"), dropout=0.0)


@pytest.fixture(scope="module")
def plain(dry, tmp_path_factory) -> Path:
    """The run without dropout: one loss in training, one in measuring, whatever the step."""
    out = tmp_path_factory.mktemp("plain") / "out"
    train(dry, out, **STILL)
    assert len(set(losses(out))) == len(set(of_evaluations(out, "loss"))) == 1
    return out


@pytest.mark.parametrize("generates", [False, True])
def test_every_step_has_a_dropout_mask_of_its_own_also_behind_an_evaluation(wet, plain, tmp_path, generates) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "ab", "response": "cd"}) + "\n")
    protocol = {"sets": {"one": str(data)}, "seeds": [1], "max_new_tokens": 2}
    train(wet, tmp_path / "out", **STILL, **({"evaluation__generation": protocol} if generates else {}))
    found = losses(tmp_path / "out")
    assert len(set(found)) == STEPS, "a mask came twice"
    assert not set(found) & set(losses(plain)), "a step was trained without dropout"
    evaluated = of_evaluations(tmp_path / "out", "loss")
    assert len(evaluated) == STEPS
    assert evaluated == of_evaluations(plain, "loss"), "dropout was on while measuring"


def test_a_resumed_run_draws_the_masks_it_would_have_drawn(wet, tmp_path) -> None:
    train(wet, tmp_path / "whole", **STILL)
    with pytest.raises(KeyboardInterrupt):
        train(wet, tmp_path / "pieces", Interrupting(2), **STILL)
    train(wet, tmp_path / "pieces", **STILL)
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")


def test_no_two_micro_batches_of_a_run_draw_alike() -> None:
    drawn = {}
    with torch.random.fork_rng(devices=[]):
        for place in itertools.product((0, 1), repeat=4):
            seed_random(*place)
            drawn[place] = torch.rand(4)
            seed_random(*place)
            assert torch.equal(torch.rand(4), drawn[place])
    assert len({tuple(values.tolist()) for values in drawn.values()}) == 16  # of (seed, step, micro-batch, rank)


def test_a_run_seeds_every_micro_batch_by_its_own_place(made, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[tuple[int, ...]] = []
    monkeypatch.setattr(loop, "seed_random", lambda *place: seeded.append(place) or seed_random(*place))
    train(made, tmp_path / "out", training__max_steps=3, training__micro_batch_size=2, training__seed=9)
    assert seeded == [(9, step, micro, 0) for step in range(3) for micro in range(3)]  # five examples, two at a time


@pytest.mark.parametrize(("precision", "dtype"), [("no", None), ("bf16", torch.bfloat16)])
def test_the_precision_of_a_run_is_that_of_its_student(dry, precision, dtype) -> None:
    overrides = {"data.shards": str(dry.shards), "training.precision": precision, "training.batch_size": 1}
    config = resolve(load_config(overrides=overrides | {"method.name": "sft"}))
    with ShardSet.open(config.data.shards) as shards:
        student = Run(config, make_accelerator(config.training), Reporter(), shards).build_student()
    assert student.compute_dtype == dtype
    assert student.training


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run_measures_the_names_its_method_says_and_no_others(made, tmp_path, method) -> None:
    out = tmp_path / "out"
    train(made, out, method__name=method, training__max_steps=1, evaluation__metric="ce")
    (record,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if "evaluation" in line]
    terms = METHODS[method].term_names(load_config(overrides={"method.name": method}).method.options)
    assert record.keys() - {"kind", "step"} == {"loss", "bits_per_byte", "ce", *terms}
