"""DSKD: cross-model attention and both spaces, against slow float64 loops, literal numbers and the laws."""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.output_head import OutputHead
from sra_train.contract import (
    Batch,
    InputEmbeddings,
    LabelRows,
    MethodSetting,
    ModelShape,
    ResponseRows,
    StepTotals,
    StudentOutput,
    TeacherKnowledge,
    TeacherSetting,
    map_tensors,
)
from sra_train.methods.dskd import DSKD, DSKDOptions
from tests.reference import dual_space as slow
from tests.reference.losses import cross_entropy_sum
from tests.unit.methods import collated, worlds
from tests.unit.methods import dual_space_laws as laws

SEED = 20  # of projectors that are right about some rows
CASES = {
    "published defaults": {},
    "every row": {"taught_where": "all"},
    "reverse, temperature 1": {"kd_divergence": "reverse", "temperature": 1.0, "taught_where": "all"},
    "js, alpha 0.2": {"kd_divergence": "js", "alpha": 0.2, "taught_where": "all"},
}


def make(*, teachers=None, dtype=torch.float64, seed=SEED, **options) -> DSKD:
    setting = MethodSetting(
        student=ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY),
        teachers=tuple(teachers or [collated.teacher(laws.teacher_head())]),
        seed=seed,
    )
    return DSKD(DSKDOptions(**options), setting).to(dtype)


def student_rows(known: collated.Known) -> list[slow.Row]:
    ids = known.parts.side.ids.tolist()
    labels = [token for start, stop in known.parts.side.label_spans.tolist() for token in range(start, stop)]
    return [(token - 1, ids[token - 1], ids[token]) for token in labels]


def teacher_rows(known: collated.Known) -> list[slow.Row]:
    (part,) = known.parts.teachers
    if part is None:
        return []
    ids, cached = part.side.ids.tolist(), part.positions.tolist()
    labels = [token for start, stop in part.side.label_spans.tolist() for token in range(start, stop)]
    return [(cached.index(token - 1), ids[token - 1], ids[token]) for token in labels]


def reference(method: DSKD, known: collated.Known, hidden: torch.Tensor, head: worlds.Head) -> dict:
    """The slow loops of one example whose states are `hidden` [N, D_s]."""
    own, other = collated.student_embeddings(), collated.teacher_embeddings()
    attention = method.teachers[0].attention
    rows = student_rows(known)
    found = slow.dskd(
        rows,
        teacher_rows(known),
        student_hidden=hidden,
        teacher_hidden=known.teacher_hidden() if known.parts.teachers[0] else None,
        student_head=head.for_reference(),
        teacher_head=laws.teacher_head().for_reference(),
        temperature=method.options.temperature,
        kind=method.options.kd_divergence,
        where=method.options.taught_where,
        student_embedding=lambda one: own[one],
        teacher_embedding=lambda one: other.weight[other.ids.tolist().index(one)] * other.scale,
        query=attention.query,
        to_student=attention.to_student,
        to_teacher=attention.to_teacher,
    )
    found["ce_sum"] = cross_entropy_sum(hidden, head.for_reference(), [(at, target) for at, _, target in rows])
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_equal_the_slow_reference(case: str) -> None:
    method, head, known = make(**CASES[case]), laws.student_head(), laws.examples()
    known[1] = known[1].without_teacher() if case == "every row" else known[1]
    leaves = laws.trained(method, head)
    found, hidden = collated.run(method, [known[0], None, *known[1:]], head)
    gradients = torch.autograd.grad(found.total, [hidden, *leaves], allow_unused=True)
    slots, totals = (0, 2, 3), collated.totals_of(known)
    states = hidden.detach().clone().requires_grad_(True)
    expected = [
        reference(method, one, states[slot, : len(one.hidden)], head) for one, slot in zip(known, slots, strict=True)
    ]
    options = method.options
    ce = sum(one["ce_sum"] for one in expected)
    total = options.alpha * ce + (1 - options.alpha) * sum(one[name] for one in expected for name in laws.TERMS)
    total = total / totals.labels
    laws.close(found.total, total, "total")
    for name in ("ce_sum", *laws.TERMS):
        laws.close(found.per_example[name][[*slots]], torch.stack([one[name] for one in expected]).detach(), name)
        assert float(found.per_example[name][1]) == 0
    assert int(found.counts["rows_right"]) == sum(one["right"] for one in expected)
    slow_gradients = torch.autograd.grad(total, [states, *leaves], allow_unused=True)
    for one, other, leaf in zip(gradients, slow_gradients, [hidden, *leaves], strict=True):
        zero = torch.zeros_like(leaf)
        laws.close(zero if one is None else one, zero if other is None else other, "gradient")


def test_some_rows_are_right_and_some_are_not() -> None:
    """Or the reference test would not tell the two kinds of rows apart."""
    right = int(collated.run(make(), laws.examples(), laws.student_head())[0].counts["rows_right"])
    assert 0 < right < collated.totals_of(laws.examples()).labels


def test_numbers_of_one_row_each_by_hand() -> None:
    """With one row a side all attention is 1, so the mapped states are the values themselves.

    N h = (3, 1) / sqrt(2) and N e_T(y) = (0, 2) / sqrt(2), so V_T = (2.12132, 2.12132) under P = 1. Read by the head
    (1, 0), (0, 0) at label 0:  CE_mapped = log(1 + exp(-2.12132)) = 0.113216. At T = 2 it says P = (0.742817, 0.257183)
    beside the student's (0.5, 0.5): KD_student = 0.123057. The student's (0, 0) maps to logits 0 and 0 in the teacher's
    space, whose own logits there are 3 and 1: P = (0.731059, 0.268941) at T = 2, KD_teacher = 0.110944.
    """
    head = worlds.Head(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    shape = ModelShape(1, 2, 2)
    ids = torch.arange(2)
    knowledge = TeacherKnowledge(
        ids,
        ids,
        head=OutputHead(torch.eye(2, dtype=torch.float64)),
        embeddings=InputEmbeddings(ids, torch.tensor([[1.0, 5.0], [0.0, 2.0]], dtype=torch.float64)),
    )
    method = DSKD(DSKDOptions(), MethodSetting(shape, (TeacherSetting("one", 1.0, shape, knowledge),))).double()
    attention = method.teachers[0].attention
    with torch.no_grad():
        attention.to_student.copy_(torch.eye(2))
        attention.to_teacher.copy_(torch.eye(2))
    row = LabelRows(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    rows = ResponseRows(torch.tensor([0]), 1, LabelRows(*(torch.tensor([n]) for n in (0, 0, 1))), torch.tensor([0]), 1)
    like = collated.batch_of([collated.make(0, [[(1, 1)]], closes=False)], make())[0]
    pages = map_tensors(like.teachers[0], lambda one: one)
    pages = type(pages)(
        **{
            **vars(pages),
            "hidden": {1: torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)},
            "ids": torch.tensor([[0]]),
            "responses": rows,
        }
    )
    batch = Batch(
        ["a"], torch.ones(1).double(), torch.tensor([[1, 0]]), torch.tensor([[-100, 0]]), torch.tensor([2]), row
    )
    batch = type(batch)(**{**vars(batch), "teachers": (pages,)})
    output = StudentOutput(
        {1: torch.zeros(1, 2, 2, dtype=torch.float64)}, {}, head.live(), torch.ones(2, 2, dtype=torch.float64)
    )
    found = method(output, batch, StepTotals(1, 1))
    expected = {"ce_mapped": 0.113216, "kd_student": 0.123057, "kd_teacher": 0.110944, "ce_sum": 0.693147}
    assert {name: float(found.per_example[name][0]) for name in expected} == pytest.approx(expected, abs=2e-6)
    assert float(found.total.detach()) == pytest.approx(
        0.5 * 0.693147 + 0.5 * (0.113216 + 0.123057 + 0.110944), abs=2e-6
    )


def test_numbers_do_not_depend_on_padding_company_or_order() -> None:
    laws.check_independence(make)


def test_micro_batches_add_up_to_the_large_batch() -> None:
    laws.check_micro_batches(make, taught_where="all")


def test_two_teachers_are_the_weighted_mean_of_each_alone() -> None:
    laws.check_several_teachers(make, collated.teacher, taught_where="all")


def test_a_batch_the_teacher_lacks_is_cross_entropy_alone() -> None:
    laws.check_lacking_rows(make)


def test_forward_and_backward_never_wait_and_only_projectors_are_saved() -> None:
    laws.check_no_waits(make, taught_where="all")


def test_float32_agrees_with_float64() -> None:
    known, head = laws.examples(), laws.student_head()
    wide = collated.run(make(taught_where="all"), known, head)[0]
    small = worlds.Head(head.weight.float(), head.bias.float(), head.scale)
    narrow = collated.run(make(taught_where="all", dtype=torch.float32), known, small, dtype=torch.float32)[0]
    for name in laws.TERMS:
        torch.testing.assert_close(narrow.per_example[name].double(), wide.per_example[name], rtol=2e-5, atol=2e-5)


def test_half_precision_states_give_numbers_near_and_finite_gradients() -> None:
    known, head = laws.examples(), laws.student_head()
    wide = collated.run(make(taught_where="all"), known, head)[0]
    method = make(taught_where="all", dtype=torch.float32)
    small = worlds.Head(head.weight.float(), head.bias.float(), head.scale)
    batch, hidden = collated.batch_of(known, method, dtype=torch.float32)
    hidden = hidden.bfloat16().requires_grad_(True)
    output = StudentOutput(
        {worlds.STUDENT_LAYERS: hidden}, {}, small.live(), collated.student_embeddings(torch.float32)
    )
    found = method(output, batch, collated.totals_of(known))
    found.total.backward()
    assert torch.isfinite(hidden.grad).all()
    torch.testing.assert_close(found.total.double(), wide.total, rtol=0.05, atol=0.05)


def test_gradients_pass_the_finite_difference_check() -> None:
    method, head, known = make(taught_where="all"), laws.student_head(), laws.examples()[:1]
    batch, hidden = collated.batch_of(known, method)
    totals, embeddings = collated.totals_of(known), collated.student_embeddings()
    attention = method.teachers[0].attention

    def total(hidden, *projectors):
        with torch.no_grad():
            for name, value in zip(("query", "to_teacher"), projectors, strict=False):
                getattr(attention, name).copy_(value)
        output = StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, head.live(), embeddings)
        found = method(output, batch, totals)
        # what the mapped states say to KD_student is held fast, so it is no part of a slope in the query
        return found.total - 0.5 * found.terms["kd_student"] if projectors else found.total

    hidden.requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(hidden), [hidden])
    move = 1e-5 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        difference = (total(hidden + move) - total(hidden - move)) / 2
    torch.testing.assert_close(difference, (gradient * move).sum(), rtol=1e-6, atol=1e-11)
    start = [attention.query.detach().clone(), attention.to_teacher.detach().clone()]
    slopes = torch.autograd.grad(total(hidden, *start), [attention.query, attention.to_teacher])
    moves = [
        1e-5 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for one in start
    ]
    with torch.no_grad():
        ahead = total(hidden, *(one + move for one, move in zip(start, moves, strict=True)))
        behind = total(hidden, *(one - move for one, move in zip(start, moves, strict=True)))
    expected = sum((slope * move).sum() for slope, move in zip(slopes, moves, strict=True))
    torch.testing.assert_close((ahead - behind) / 2, expected, rtol=1e-6, atol=1e-11)


def test_what_is_asked_for_is_what_is_read() -> None:
    method = make()
    (needs,) = method.needs
    assert (needs.hidden, needs.attention, needs.ids, needs.responses) == ((worlds.TEACHER_LAYERS,), (), True, True)
    assert needs.tokens is not None
    assert method.student_needs.embeddings
    knowledge = DSKD.knowledge_needs(DSKDOptions())
    assert knowledge.head
    assert knowledge.embeddings


def test_what_cannot_be_is_refused() -> None:
    for options, message in (
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0: must be a positive finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            DSKDOptions(**options)
    with pytest.raises(ConfigError, match="no head or no input embeddings of the teacher"):
        make(teachers=[worlds.teacher_setting(laws.teacher_head())])
    wrong = collated.teacher(laws.teacher_head())
    narrow = TeacherSetting("narrow", 1.0, ModelShape(4, 6, 17), wrong.knowledge)
    with pytest.raises(ConfigError, match="input embeddings are 8 wide, its last states 6"):
        make(teachers=[narrow])
    with pytest.raises(ConfigError, match="hold no teacher's pages"):
        DSKD(DSKDOptions(), MethodSetting(ModelShape(1, 2, 3)))
    method = make()
    batch, hidden = collated.batch_of(laws.examples(), method)
    batch.teachers[0].hidden.clear()
    output = StudentOutput({3: hidden}, {}, laws.student_head().live(), collated.student_embeddings())
    with pytest.raises(ShardError, match="its pages hold no hidden states of layer 4"):
        method(output, batch, StepTotals(1, 1))


def test_the_students_embeddings_count_as_its_first_block_sees_them() -> None:
    """A family that multiplies looked-up rows says so with a scale; the table may as well hold the products."""
    method, head = make(taught_where="all"), laws.student_head()
    batch, hidden = collated.batch_of(laws.examples(), method)
    table, totals = collated.student_embeddings(), collated.totals_of(laws.examples())
    one, other, plain = (
        method(StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, head.live(), *given), batch, totals).per_example
        for given in ((table, 3.0), (3.0 * table,), (table,))
    )
    for name in laws.TERMS:
        laws.close(one[name], other[name], name)
        assert not torch.allclose(one[name], plain[name])
