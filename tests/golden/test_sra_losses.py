"""Losses and gradients of SRA with one teacher stay what they were before there could be several.

`sra_losses.json` was recorded from the code of shard format 1 on the worlds of tests/unit/methods, in float64: the
total, the terms, and of every gradient its sum weighted by cos(0), cos(1), ... It is never recorded again: a build that
gives other numbers computes another loss. (On the machine where both were run, they were equal to the bit.)
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sra_train.contract import StudentOutput
from sra_train.methods.sra import SRAOptions
from tests.unit.methods import worlds
from tests.unit.methods.test_sra_against_reference import CASES, HEADS, SIZES

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("sra_losses.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_losses_and_gradients_are_what_they_were(name: str) -> None:
    case, form = name.split(" | ")
    found, recorded = numbers(CASES[case], HEADS[form]), RECORDED[name]
    assert found["total"] == pytest.approx(recorded["total"], rel=1e-12)
    assert found["terms"] == pytest.approx(recorded["terms"], rel=1e-12)
    assert found["gradients"] == pytest.approx(recorded["gradients"], rel=1e-10, abs=1e-13)


def numbers(options: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    examples = [worlds.make_example(place, sizes=sizes, closes=place != 1) for place, sizes in enumerate(SIZES)]
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, **form)
    worlds.add_top_k(examples, teacher_head, k=6)
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, **form)
    method = worlds.make_method(SRAOptions(**options), teacher_head)
    rows = [examples[0], None, *examples[1:]]
    batch, hidden, attention = worlds.make_batch(rows, extra_tokens=2, extra_positions=1)
    leaves = [*hidden.values(), head.weight, *method.parameters()]
    for leaf in leaves:
        leaf.requires_grad_(True)
    found = method(StudentOutput(hidden, attention, head.live()), batch, worlds.totals_of(examples))
    gradients = torch.autograd.grad(found.total, leaves, allow_unused=True)
    return {
        "total": float(found.total.detach()),
        "terms": {name: float(value) for name, value in found.terms.items()},
        "gradients": [0.0 if gradient is None else weighted(gradient) for gradient in gradients],
    }


def weighted(gradient: torch.Tensor) -> float:
    flat = gradient.reshape(-1)
    return float((flat * torch.cos(torch.arange(len(flat), dtype=flat.dtype))).sum())
