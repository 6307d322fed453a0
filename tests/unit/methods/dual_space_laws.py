"""What holds of every method that projects states between two spaces; each test file of one gives its makers.

The laws are functions and no tests, so that DSKD and DSKD v2 are held to the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sra_train.contract import StudentOutput, TeacherSetting
from sra_train.methods.base import Method
from tests.unit.methods import collated, worlds
from tests.waits import WaitCounter

TURNS = [[[(1, 1), (2, 3), (1, 2)]], [[(3, 1)], [(1, 1), (1, 1), (2, 2), (1, 1)]], [[(1, 1), (1, 4), (1, 1), (1, 1)]]]
TERMS = ("ce_mapped", "kd_student", "kd_teacher")
Maker = Callable[..., Method]  # options, teachers= -> the method in float64


def student_head() -> worlds.Head:
    return worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, bias=True, scale=0.7)


def teacher_head(seed: int = 11, width: int = worlds.TEACHER_WIDTH) -> worlds.Head:
    return worlds.make_head(seed, worlds.TEACHER_VOCABULARY, width, bias=True, softcap=4.0)


def examples(**form) -> list[collated.Known]:
    return [collated.make(seed, turns, closes=seed != 2, **form) for seed, turns in enumerate(TURNS)]


def check_independence(make: Maker, *, terms: tuple[str, ...] = TERMS, **options) -> None:
    """The numbers of an example depend on no padding, no company and no order."""
    method, known = make(**options), examples()
    head, totals = student_head(), collated.totals_of(known)
    alone = {one.name: collated.run(method, [one], head, totals)[0].per_example for one in known}
    longer = collated.make(9, [[(4, 2), (1, 1), (3, 7), (1, 1), (2, 2)], [(1, 1)]])
    for rows, garbage in (([known[1], None, known[2], known[0]], -40.0), ([longer, *known, None], 1e6)):
        found = collated.run(method, rows, head, totals, garbage=garbage)[0].per_example
        for place, one in enumerate(rows):
            if one is longer:
                continue
            for name in ("ce_sum", "labels", *terms):
                expected = torch.zeros(()) if one is None else alone[one.name][name][0]
                close(found[name][place].double(), expected.double(), name)


def check_micro_batches(make: Maker, **options) -> None:
    """Totals and gradients of micro-batches add up to the batch's."""
    method, known = make(**options), examples()
    totals = collated.totals_of(known)

    def gradients(batches) -> tuple[Tensor, list[Tensor]]:
        head = student_head()
        leaves = trained(method, head)
        total = sum(collated.run(method, batch, head, totals)[0].total for batch in batches)
        return total.detach(), [*torch.autograd.grad(total, leaves)]

    whole, of_whole = gradients([known])
    parts, of_parts = gradients([known[:1], [None, known[1]], known[2:]])
    close(parts, whole, "total")
    for one, other in zip(of_parts, of_whole, strict=True):
        close(one, other, "gradient")


def check_several_teachers(
    make: Maker, setting: Callable[..., TeacherSetting], *, terms: tuple[str, ...] = TERMS, **options
) -> None:
    """Two teachers are the weighted mean of each alone; one that lacks a row leaves the other's terms as they are."""
    shares, heads, widths = (0.3, 0.7), (teacher_head(), teacher_head(21, 5)), (worlds.TEACHER_WIDTH, 5)
    known = examples(widths=widths)

    def only(place: int) -> list[collated.Known]:
        parts = [replace(one.parts, teachers=(one.parts.teachers[place],)) for one in known]
        return [replace(one, parts=part) for one, part in zip(known, parts, strict=True)]

    def run(rows, teachers):
        head, method = student_head(), make(**options, teachers=teachers)
        leaves = trained(method, head)
        found, hidden = collated.run(method, rows, head)
        return found, torch.autograd.grad(found.total, [hidden, *leaves])

    settings = [
        setting(head, name=f"teacher-{at}", weight=share)
        for at, (head, share) in enumerate(zip(heads, shares, strict=True))
    ]
    both, gradients = run(known, settings)
    alone = [run(only(at), [setting(head)]) for at, head in enumerate(heads)]
    close(both.total, sum(s * one.total for s, (one, _) in zip(shares, alone, strict=True)), "total")
    for name in terms:
        values = [one.per_example[name] for one, _ in alone]
        close(both.per_example[name], sum(s * v for s, v in zip(shares, values, strict=True)), name)
        close(both.per_example[f"{name}[teacher-1]"], values[1], name)
    for at in range(3):  # the student's states and its head
        close(gradients[at], sum(s * one[at] for s, (_, one) in zip(shares, alone, strict=True)), "gradient")
    own = [gradient for s, (_, one) in zip(shares, alone, strict=True) for gradient in [s * g for g in one[3:]]]
    for one, other in zip(gradients[3:], own, strict=True):  # a projector learns from its own teacher
        close(one, other, "projector")
    lacking = [known[0].without_teacher(1), *known[1:]]
    found, _ = run(lacking, settings)
    for name in terms:
        assert float(found.per_example[f"{name}[teacher-1]"][0]) == 0
        close(found.per_example[f"{name}[teacher-0]"], both.per_example[f"{name}[teacher-0]"], name)
        close(found.per_example[f"{name}[teacher-1]"][1:], both.per_example[f"{name}[teacher-1]"][1:], name)
    assert int(found.counts["rows_without_teacher[teacher-1]"]) == 1


def check_lacking_rows(make: Maker, **options) -> None:
    """A batch whose rows the teacher lacks, or that has no row at all, is cross entropy alone, finite in every part."""
    method, head = make(**options), student_head()
    leaves = trained(method, head)
    known = examples()
    for rows in ([known[0].without_teacher(), None], [None, known[0].without_teacher()]):
        found, hidden = collated.run(method, rows, head)
        close(found.total.detach(), 0.5 * found.terms["ce"], "total")
        gradients = torch.autograd.grad(found.total, [hidden, *leaves], allow_unused=True)
        assert all(torch.isfinite(one).all() for one in gradients if one is not None)
        assert float(found.per_example["ce_sum"].sum()) > 0


def check_no_waits(make: Maker, **options) -> None:
    """Forward and backward ask for nothing that only the device knows; what learns is no buffer."""
    method, head = make(**options), student_head()
    trained(method, head)
    batch, hidden = collated.batch_of(examples(), method)
    hidden.requires_grad_(True)
    embeddings, totals = collated.student_embeddings(), collated.totals_of(examples())
    before = [one.clone() for one in method.buffers()]
    with WaitCounter() as waits:
        output = StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, head.live(), embeddings)
        method(output, batch, totals).total.backward()
    assert waits.found == {}
    learning = [hidden, head.weight, *method.parameters()]
    assert all(one.grad is not None and float(one.grad.abs().max()) > 0 for one in learning)
    assert all(not one.requires_grad for one in method.buffers())
    assert all(torch.equal(one, other) for one, other in zip(before, method.buffers(), strict=True))
    assert set(method.state_dict()) == {name for name, _ in method.named_parameters()}  # what a checkpoint holds


def trained(method: Method, head: worlds.Head) -> list[Tensor]:
    """Everything that learns beside the student's states."""
    head.weight.requires_grad_(True)
    assert head.bias is not None
    head.bias.requires_grad_(True)
    return [head.weight, head.bias, *method.parameters()]


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, msg=lambda text: f"{name}: {text}")
