"""Laws of every method that adds one value per teacher to cross entropy: company, order, parts, several teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_train.contract import LossTerms, StepTotals, StudentOutput
from tests.unit.methods import taught, worlds

LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=4)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "uld": ("uld", {}),
    "uld, token": ("uld", {"kd_reduction": "token", "temperature": 2.0}),
    "alm": ("alm", {}),
    "alm, token": ("alm", {"kd_reduction": "token", "temperature": 2.0}),
    "multilevel-ot": ("multilevel-ot", {"top_k": 5}),
    "multilevel-ot, token, logits": (
        "multilevel-ot",
        {"top_k": 4, "kd_reduction": "token", "ranking": "token", "compared": "logits", "sinkhorn_of": "compared"},
    ),
}
OTHER_SIZES = [[(3, 1), (1, 4), (1, 1)], [(1, 3), (3, 2)], []]  # the same tokens of the student, cut elsewhere
SIZES = [[(1, 2), (2, 1), (2, 3)], [(3, 1), (1, 1)], []]
OTHER_WIDTH, OTHER_LAYERS = 5, 2
OTHER = worlds.Tokenizer(size=11, shared=((1, 4), (2, 0), (3, 7), (6, 2), (9, 10)), doubles={8: 3}, end=(12, 9))
SHARES = (0.3, 0.7)


def method_of(variant: str, teachers=None) -> Any:
    name, options = VARIANTS[variant]
    return taught.make(name, teachers, **options)


def numbers(found: LossTerms, name: str) -> dict[str, torch.Tensor]:
    return {one: found.per_example[one] for one in ("ce_sum", "labels", *taught.TERMS[name])}


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=4), data=st.data())
def test_numbers_of_an_example_do_not_depend_on_padding_company_or_order(variant: str, sizes, data) -> None:
    examples = taught.build(sizes)
    method, head, totals = method_of(variant), taught.student_head(), worlds.totals_of(examples)
    alone = {one.name: numbers(taught.run(method, [one], head, totals), method.name) for one in examples}
    rows = data.draw(st.permutations([*examples, None]))
    padding = {name: data.draw(st.integers(0, 3)) for name in ("extra_tokens", "extra_positions", "extra_spans")}
    garbage = data.draw(st.floats(-50, 50))
    together = numbers(taught.run(method, rows, head, totals, garbage=garbage, **padding), method.name)
    for place, one in enumerate(rows):
        for name, values in together.items():
            expected = torch.zeros(()) if one is None else alone[one.name][name][0]
            close(values[place].double(), expected.double())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_micro_batches_add_up_to_the_large_batch(variant: str) -> None:
    examples = taught.build()
    method, totals = method_of(variant), worlds.totals_of(examples)

    def gradients(batches):
        head = taught.student_head(bias=True)
        leaves = [head.weight, head.bias]
        for one in leaves:
            one.requires_grad_(True)
        total = sum(taught.run(method, batch, head, totals).total for batch in batches)
        return total.detach(), torch.autograd.grad(total, leaves)

    whole, of_whole = gradients([examples])
    parts, of_parts = gradients([examples[:1], [examples[1], None], examples[2:]])
    close(parts, whole)
    for part, all_of in zip(of_parts, of_whole, strict=True):
        close(part, all_of)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_rows_of_weight_zero_leave_no_gradient(variant: str) -> None:
    method, examples = method_of(variant), taught.build()[:2]
    batch, hidden, attention = worlds.make_batch(examples, weights=[1.0, 0.0], **taught.ROWS[method.name])
    states = hidden[worlds.STUDENT_LAYERS].requires_grad_(True)
    found = method(StudentOutput(hidden, attention, taught.student_head().live()), batch, StepTotals(5, 1))
    (gradient,) = torch.autograd.grad(found.total, [states])
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0
    assert all(float(values[1]) == 0 for values in numbers(found, method.name).values())


class World:
    """The same examples as two teachers have them, whose widths, depths and vocabularies differ."""

    def __init__(self) -> None:
        self.heads = [
            taught.teacher_head(),
            worlds.make_head(21, OTHER.size, OTHER_WIDTH, bias=True, softcap=4.0),
        ]
        self.first = taught.build(SIZES)
        form = {"teacher_width": OTHER_WIDTH, "teacher_layers": OTHER_LAYERS}
        self.second = [
            worlds.another_teacher(one, 50 + place, sizes=sizes, **form)
            for place, (one, sizes) in enumerate(zip(self.first, OTHER_SIZES, strict=True))
        ]
        for place, one in enumerate(self.second):
            taught.add_next_log_prob(one, 70 + place)
        self.head = taught.student_head()
        self.head.weight.requires_grad_(True)

    def method(self, variant: str, *chosen: int, shares: tuple[float, ...] = (1.0,)) -> Any:
        known: list[dict[str, Any]] = [{}, {"layers": OTHER_LAYERS, "tokenizer": OTHER}]
        teachers = [
            worlds.teacher_setting(self.heads[which], name=f"teacher-{place}", weight=share, **known[which])
            for place, (which, share) in enumerate(zip(chosen, shares, strict=True))
        ]
        return method_of(variant, teachers)

    def run(self, method: Any, *rows: list[worlds.Example | None]) -> tuple[LossTerms, list[torch.Tensor]]:
        """Losses, and the gradients of the student's last states and its head."""
        likes = [next((one for one in known if one is not None), self.second[0]) for known in rows]
        form = taught.ROWS[method.name]
        batch, hidden, attention = worlds.make_batch(self.first, teachers=rows, likes=likes, **form)
        leaves = [hidden[worlds.STUDENT_LAYERS].requires_grad_(True), self.head.weight]
        output = StudentOutput(hidden, attention, self.head.live())
        found = method(output, batch, worlds.totals_of(self.first))
        return found, list(torch.autograd.grad(found.total, leaves))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_two_teachers_are_the_weighted_mean_of_each_alone(variant: str) -> None:
    world = World()
    rows = (world.first, world.second)
    alone = [world.run(world.method(variant, which), rows[which]) for which in (0, 1)]
    method = world.method(variant, 0, 1, shares=SHARES)
    together, gradients = world.run(method, *rows)
    close(together.total, sum(share * found.total for share, (found, _) in zip(SHARES, alone, strict=True)))
    for name in taught.TERMS[method.name]:
        values = [found.per_example[name] for found, _ in alone]
        close(together.per_example[name], sum(s * v for s, v in zip(SHARES, values, strict=True)))
        for place, one in enumerate(values):
            close(together.per_example[f"{name}[teacher-{place}]"], one)
            close(together.terms[f"{name}[teacher-{place}]"], alone[place][0].terms[name])
    close(together.per_example["ce_sum"], alone[0][0].per_example["ce_sum"])
    for place, gradient in enumerate(gradients):
        close(gradient, sum(s * found[place] for s, (_, found) in zip(SHARES, alone, strict=True)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_row_that_one_teacher_lacks_keeps_its_labels_and_the_other_teacher(variant: str) -> None:
    world = World()
    method = world.method(variant, 0, 1, shares=SHARES)
    whole, _ = world.run(method, world.first, world.second)
    found, gradients = world.run(method, world.first, [None, *world.second[1:]])
    close(found.per_example["ce_sum"], whole.per_example["ce_sum"])
    for name in taught.TERMS[method.name]:
        close(found.per_example[f"{name}[teacher-0]"], whole.per_example[f"{name}[teacher-0]"])
        close(found.per_example[f"{name}[teacher-1]"][1:], whole.per_example[f"{name}[teacher-1]"][1:])
        assert float(found.per_example[f"{name}[teacher-1]"][0]) == 0
    assert int(found.counts["rows_without_teacher[teacher-1]"]) == 1
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_batch_that_the_teacher_lacks_altogether_is_cross_entropy(variant: str) -> None:
    world = World()
    method = world.method(variant, 1)
    found, gradients = world.run(method, [None, None, None])
    close(found.total.detach(), method.options.alpha * found.terms["ce"])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
