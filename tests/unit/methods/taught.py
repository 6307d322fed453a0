"""Methods of cross entropy and one value per teacher, made over the small worlds; what their tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sra_train.contract import LossTerms, MethodSetting, ModelShape, StepTotals, TeacherSetting
from sra_train.methods import method_type
from tests.reference import losses as slow
from tests.unit.methods import worlds

SIZES = [[(1, 1), (2, 3), (1, 2)], [(3, 1)], [], [(1, 1), (1, 1), (2, 1), (1, 4), (2, 2)]]
ROWS: dict[str, dict[str, Any]] = {
    "uld": {"aligned": "response"},
    "alm": {"chunks": True},
    "multilevel-ot": {"aligned": "response"},
}
TERMS = {"uld": ("uld",), "alm": ("alm",), "multilevel-ot": ("l1", "soft_ce", "sinkhorn")}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias and scale": {"bias": True, "scale": 0.7},
    "soft-cap": {"bias": True, "scale": 1.3, "softcap": 2.5},
}


def student_head(**form: Any) -> worlds.Head:
    return worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, **form)


def teacher_head(**form: Any) -> worlds.Head:
    return worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, **form)


def build(sizes: Sequence[list[tuple[int, int]]] = SIZES, seed: int = 0, **form: Any) -> list[worlds.Example]:
    """Examples whose teacher said something of every next token; the second one does not close."""
    found = []
    for place, one in enumerate(sizes):
        found.append(worlds.make_example(seed + place, sizes=one, closes=place != 1, **form))
        add_next_log_prob(found[-1], seed + place)
    return found


def add_next_log_prob(example: worlds.Example, seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    example.next_log_prob = -4 * torch.rand(len(example.teacher_hidden[1]), generator=generator, dtype=torch.float64)


def make(name: str, teachers: Sequence[TeacherSetting] | None = None, **options: Any) -> Any:
    """The method with the usual teacher, or with `teachers`."""
    kind = method_type(name)
    shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    setting = MethodSetting(shape, tuple(teachers or [worlds.teacher_setting(teacher_head())]))
    return kind(kind.options_type(**options), setting).double()


def run(
    method: Any, examples: list[worlds.Example | None], head: worlds.Head, totals: StepTotals | None = None, **form: Any
) -> LossTerms:
    return worlds.run(method, examples, head, totals, **ROWS[method.name], **form)


def rows_beside(example: worlds.Example) -> list[tuple[Tensor, Tensor]]:
    """The states (student's, teacher's) that predict the i-th token of the response, the end as one more."""
    start, stop = example.label_start, example.label_stop - int(example.closes)
    student = example.student_hidden[worlds.STUDENT_LAYERS]
    teacher = example.teacher_hidden[worlds.TEACHER_LAYERS]
    count = min(stop - start, len(teacher) - 1) + 1
    return [(student[start - 1 + i], teacher[i]) for i in range(count)]


def compare_with_reference(
    method: Any, form: str, expected: Callable[[worlds.Example, worlds.Head, worlds.Head], dict[str, Tensor]]
) -> None:
    """Every term of every example, the loss and all gradients against the slow loops; weights of terms are the total's.

    Args:
        method: Made with the teacher's head of `form`.
        form: Of `HEADS`.
        expected: (example, student's head, teacher's head) -> value of each term, and ``total``, their weighted sum.
    """
    examples, head = build(), student_head(**HEADS[form])
    totals, options = worlds.totals_of(examples), method.options
    leaves = {f"{one.name}": one.student_hidden[worlds.STUDENT_LAYERS] for one in examples} | {"weight": head.weight}
    leaves |= {} if head.bias is None else {"bias": head.bias}
    for tensor in leaves.values():
        tensor.requires_grad_(True)
    found = [expected(one, head, teacher_head(**HEADS[form])) for one in examples]
    last = worlds.STUDENT_LAYERS
    ce = [slow.cross_entropy_sum(one.student_hidden[last], head.for_reference(), one.labels) for one in examples]
    size = totals.labels if options.kd_reduction == "token" else totals.examples
    distilled = sum(one["total"] for one in found) / size
    total = options.alpha * sum(ce) / totals.labels + (1 - options.alpha) * distilled
    wanted = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)

    rows = [examples[0], None, *examples[1:]]
    terms = run(method, rows, head, totals, extra_tokens=2, extra_positions=1, extra_spans=1)
    gradients = torch.autograd.grad(terms.total, list(leaves.values()), allow_unused=True)
    torch.testing.assert_close(terms.total, total, rtol=1e-9, atol=1e-11)
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(terms.per_example["ce_sum"][kept], torch.stack(ce).detach(), rtol=1e-9, atol=1e-11)
    for name in TERMS[method.name]:
        values = torch.stack([one[name] for one in found]).detach()
        torch.testing.assert_close(terms.per_example[name][kept], values, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(terms.terms[name], values.sum() / size, rtol=1e-9, atol=1e-11)
        assert float(terms.per_example[name][1]) == 0
    for name, own, other in zip(leaves, gradients, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def reduced(values: list[Tensor], reduction: str) -> Tensor:
    """Rows or chunks of one example."""
    total = torch.zeros((), dtype=torch.float64)
    for one in values:
        total = total + one
    return total / max(len(values), 1) if reduction == "mean" else total
