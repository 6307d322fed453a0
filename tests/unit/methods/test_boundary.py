"""`boundary` and `strict`: which rows are taught, and what is compared there, against slow loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sra_data.errors import ConfigError
from sra_train.contract import MethodSetting, ModelShape, StudentOutput
from sra_train.methods import METHODS
from sra_train.methods.sra import SRAOptions
from sra_train.methods.terms.divergence import divergence_and_gradient
from sra_train.methods.terms.events import Events, EventTerm
from sra_train.methods.terms.head_loss import ChunkedHead
from tests.reference import losses as slow
from tests.unit.methods import worlds
from tests.waits import WaitCounter

SIZES = [[(1, 2), (2, 1), (1, 1)], [], [(1, 1), (3, 2)], [(1, 1), (1, 1), (1, 1)]]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "boundary": ("boundary", {}),
    "boundary, prefix, mean": ("boundary", {"kd_vocabulary": "byte_prefix", "kd_reduction": "mean"}),
    "boundary, next byte": ("boundary", {"kd_vocabulary": "next_byte", "temperature": 1.5}),
    "boundary, rest, js": ("boundary", {"kd_vocabulary": "rest", "kd_divergence": "js", "kd_reduction": "sum"}),
    "boundary, top k": ("boundary", {"kd_source": "top_k", "temperature": 2.0}),
    "boundary, the student's support": ("boundary", {"kd_divergence": "reverse", "student_top_k": 3}),
    "strict": ("strict", {}),
    "strict, reverse, mean": ("strict", {"kd_divergence": "reverse", "kd_reduction": "mean", "temperature": 2.0}),
}
BESIDE = {**CASES, "strict, span representations": ("strict", {"lambda_cos": 0.7})}


def heads() -> tuple[worlds.Head, worlds.Head]:
    student = worlds.make_head(1, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, bias=True)
    return student, worlds.make_head(2, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, softcap=5.0)


def examples_of(sizes, teacher: worlds.Head) -> list[worlds.Example]:
    made = [worlds.make_example(seed, sizes=one, closes=seed != 2) for seed, one in enumerate(sizes)]
    worlds.add_top_k(made, teacher, k=5)
    return made


def method_of(name: str, teacher: worlds.Head, *, teachers=None, seed: int = 0, **options: Any) -> Any:
    kind = METHODS[name]
    setting = MethodSetting(
        student=ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY),
        teachers=tuple(teachers or [worlds.teacher_setting(teacher)]),
        seed=seed,
    )
    return kind(kind.options_type(**options), setting).to(torch.float64)  # type: ignore[call-arg]


def rows_by_hand(example: worlds.Example, name: str) -> list[tuple[int, int]]:
    """(student's token, teacher's row) of every boundary that is taught."""
    spans = list(zip(example.student_spans, example.teacher_spans, strict=True))
    if not spans:
        return []
    rows = [(example.label_start - 1, 0, spans[0])]
    for place, (ours, theirs) in enumerate(spans):
        rows.append((ours[-1], theirs[-1], spans[place + 1] if place + 1 < len(spans) else None))
    has_end = example.ids[-1] == worlds.END[0]
    return [
        (ours, theirs)
        for ours, theirs, following in rows
        if name == "boundary" or (has_end if following is None else [len(one) for one in following] == [1, 1])
    ]


def of_row(options: Any, example: worlds.Example, student: Tensor, teacher: Tensor, row: int) -> Tensor:
    """The divergence at one row, by the slow loops."""
    mapping = {t: s for s, t in worlds.SHARED} | worlds.DOUBLES | {worlds.END[1]: worlds.END[0]}
    temperature, kind = options.temperature, options.kd_divergence
    if options.kd_source == "top_k":
        ids, values = example.top_k_ids[row].tolist(), example.top_k_values[row]
        return slow.kd_top_k(
            student, ids, values, float(example.log_tails[temperature][row]), mapping, temperature, kind
        )
    if options.kd_vocabulary == "renormalised":
        return slow.kd_renormalised(student, teacher, [*worlds.SHARED, worlds.END], temperature, kind)
    if options.kd_vocabulary == "next_byte":
        groups = [[list(range(start, size - 1, 3)) for start in range(3)] + [[size - 1]] for size in (13, 17)]
        log_q, log_p = (slow.log_softmax([z / temperature for z in one]) for one in (student, teacher))
        events = [
            [slow.log_sum_exp([log[i] for i in ids]) for ids in of]
            for log, of in zip((log_q, log_p), groups, strict=True)
        ]
        return slow.divergence(events[1], events[0], kind)
    if options.student_top_k:
        log_q, log_p = (slow.log_softmax([z / temperature for z in one]) for one in (student, teacher))
        shared = sorted(set(mapping.values()))
        chosen = sorted(shared, key=lambda i: -float(log_q[i].detach()))[: options.student_top_k]
        ours = [log_q[i] for i in chosen] + [slow.log_sum_exp([log_q[i] for i in range(13) if i not in chosen])]
        theirs = [slow.log_sum_exp([log_p[t] for t in range(17) if mapping.get(t) == i]) for i in chosen]
        theirs.append(slow.log_sum_exp([log_p[t] for t in range(17) if mapping.get(t) not in chosen]))
        return slow.divergence(theirs, ours, kind)
    return slow.kd_rest(student, teacher, mapping, temperature, kind)  # the maps of the small world are equal strings


def by_hand(name: str, options: Any, example: worlds.Example, student: worlds.Head, teacher: worlds.Head) -> Tensor:
    """The term of one example."""
    rows = rows_by_hand(example, name)
    values = [
        of_row(
            options,
            example,
            slow.head_logits(example.student_hidden[worlds.STUDENT_LAYERS][ours], student.for_reference()),
            slow.head_logits(example.teacher_hidden[worlds.TEACHER_LAYERS][theirs], teacher.for_reference()),
            theirs,
        )
        for ours, theirs in rows
    ]
    total = sum(values, start=torch.zeros((), dtype=torch.float64))
    return total / len(rows) if rows and options.kd_reduction == "mean" else total


@pytest.mark.parametrize("case", CASES)
def test_terms_and_gradients_equal_the_slow_reference(case: str) -> None:
    name, chosen = CASES[case]
    student, teacher = heads()
    examples = examples_of(SIZES, teacher)
    method = method_of(name, teacher, alpha=0.3, **chosen)
    leaves = [student.weight.requires_grad_(), *(one.student_hidden[worlds.STUDENT_LAYERS] for one in examples)]
    for leaf in leaves:
        leaf.requires_grad_()
    found, totals = worlds.run(method, examples, student), worlds.totals_of(examples)
    terms = [by_hand(name, method.options, one, student, teacher) for one in examples]
    sums = [
        slow.cross_entropy_sum(one.student_hidden[worlds.STUDENT_LAYERS], student.for_reference(), one.labels)
        for one in examples
    ]
    size = totals.labels if method.options.kd_reduction == "token" else totals.examples
    expected = 0.3 * sum(sums) / totals.labels + 0.7 * sum(terms) / size
    torch.testing.assert_close(found.per_example["kd"], torch.stack(terms).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.per_example["ce_sum"], torch.stack(sums).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.terms["kd"], sum(terms).detach() / size, rtol=1e-9, atol=1e-12)
    ours, theirs = torch.autograd.grad(found.total, leaves), torch.autograd.grad(expected, leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)
    assert int(found.counts["boundaries"]) == sum(len(rows_by_hand(one, name)) for one in examples)
    assert int(found.counts["examples_without_boundary"]) == sum(not rows_by_hand(one, name) for one in examples)


def test_the_first_token_of_a_response_and_its_end_are_taught() -> None:
    """One span of one token: the row before it, and the one at it, which says that nothing more follows."""
    _, teacher = heads()
    (example,) = examples_of([[(1, 1)]], teacher)
    assert rows_by_hand(example, "strict") == [(1, 0), (2, 1)]
    batch, _, _ = worlds.make_batch([example], aligned="strict")
    rows = batch.teachers[0].aligned
    assert rows.student_positions.tolist() == [1, 2]
    assert rows.teacher_positions.tolist() == [0, 1]
    assert rows.targets.tolist() == [example.ids[2], worlds.END[0]]
    assert rows.other_labels.positions.tolist() == []


@pytest.mark.parametrize("case", BESIDE)
@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=4), min_size=1, max_size=4),
    data=st.data(),
)
def test_numbers_of_an_example_do_not_depend_on_padding_company_or_order(case: str, sizes, data) -> None:
    name, chosen = BESIDE[case]
    student, teacher = heads()
    examples = examples_of(sizes, teacher)
    method, totals = method_of(name, teacher, **chosen), worlds.totals_of(examples)
    alone = {one.name: worlds.run(method, [one], student, totals).per_example for one in examples}
    rows = data.draw(st.permutations([*examples, None]))
    padding = {one: data.draw(st.integers(0, 3)) for one in ("extra_tokens", "extra_positions", "extra_spans")}
    together = worlds.run(method, rows, student, totals, **padding).per_example
    for place, one in enumerate(rows):
        for key in ("ce_sum", "labels", "kd"):
            expected = torch.zeros(()) if one is None else alone[one.name][key][0]
            torch.testing.assert_close(together[key][place].double(), expected.double(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", BESIDE)
def test_micro_batches_add_up_to_the_large_batch(case: str) -> None:
    name, chosen = BESIDE[case]
    student, teacher = heads()
    examples = examples_of(SIZES, teacher)
    method, totals = method_of(name, teacher, **chosen), worlds.totals_of(examples)
    student.weight.requires_grad_()

    def gradient(batches) -> tuple[Tensor, Tensor]:
        total = sum(worlds.run(method, batch, student, totals).total for batch in batches)
        return total.detach(), torch.autograd.grad(total, student.weight)[0]

    for one, other in zip(
        gradient([examples]), gradient([examples[:2], [None, examples[2]], examples[3:]]), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reduction", ["token", "mean"])
@pytest.mark.parametrize("name", ["boundary", "strict"])
def test_two_teachers_are_the_weighted_mean_and_a_row_that_one_lacks_keeps_the_rest(name: str, reduction: str) -> None:
    student, teacher = heads()
    examples = examples_of(SIZES, teacher)
    other = worlds.make_head(5, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    settings_of = [
        worlds.teacher_setting(head, name=f"teacher-{place}", weight=share)
        for place, (head, share) in enumerate(((teacher, 0.25), (other, 0.75)))
    ]
    method = method_of(name, teacher, teachers=settings_of, kd_reduction=reduction)
    totals = worlds.totals_of(examples)
    lacking = [None, *examples[1:]]
    batch, hidden, attention = worlds.make_batch(
        examples, teachers=[examples, lacking], aligned=method.needs[0].aligned
    )
    found = method(StudentOutput(hidden, attention, student.live()), batch, totals)
    alone = [worlds.run(method_of(name, head, kd_reduction=reduction), examples, student) for head in (teacher, other)]
    expected = [one.per_example["kd"].clone() for one in alone]
    expected[1][0] = 0
    torch.testing.assert_close(found.per_example["kd"], 0.25 * expected[0] + 0.75 * expected[1])
    torch.testing.assert_close(found.per_example["ce_sum"], alone[0].per_example["ce_sum"])
    size = totals.labels if reduction == "token" else totals.examples
    torch.testing.assert_close(found.total, 0.5 * found.terms["ce"] + 0.5 * found.per_example["kd"].sum() / size)
    assert int(found.counts["rows_without_teacher[teacher-1]"]) == 1


@pytest.mark.parametrize("name", ["boundary", "strict"])
def test_span_representations_beside_are_those_of_sra(name: str) -> None:
    """The same projector, states and weights: the term is SRA's, and the loss the sum of both."""
    student, teacher = heads()
    examples, factor = examples_of(SIZES, teacher), 0.7
    bare, both = method_of(name, teacher), method_of(name, teacher, lambda_cos=factor, seed=3)
    alone = worlds.make_method(SRAOptions(geo=False, kd=False), None)
    totals = worlds.totals_of(examples)
    leaves = [student.weight.requires_grad_(), *(one.student_hidden[worlds.STUDENT_LAYERS] for one in examples)]
    for leaf in leaves:
        leaf.requires_grad_()
    found, plain, spans = (worlds.run(one, examples, student, totals) for one in (both, bare, alone))
    torch.testing.assert_close(found.per_example["cos"], spans.per_example["cos"])
    torch.testing.assert_close(found.per_example["kd"], plain.per_example["kd"])
    assert float(found.terms["cos"]) > 0
    expected = plain.total + factor * (spans.total - 0.5 * spans.terms["ce"])
    torch.testing.assert_close(found.total, expected)
    (own,), (theirs,) = both.parameters(), alone.parameters()
    gradients = torch.autograd.grad(found.total, [own])[0], torch.autograd.grad(spans.total, [theirs])[0]
    torch.testing.assert_close(gradients[0], factor * gradients[1])
    assert int(found.counts["spans"]) == sum(len(one) for one in SIZES)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_the_students_support_coarsens_and_with_all_events_it_is_the_whole(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, states, weight = (torch.randn(*size, generator=generator).double() for size in ((6, 13), (6, 8), (17, 8)))
    images = torch.tensor([0, 1, 2, 3, -1, 5, 6, 5, 0, 9, -1, 9, 2, 3, 1, -1, 12])
    events = Events.of_images(images, student_vocabulary=13, teacher_vocabulary=17)

    def values(k: int) -> Tensor:
        head = ChunkedHead(weight, None, scale=1.0, softcap=None)
        term = EventTerm(states, head, torch.ones(6), events=events, temperature=1.3, kind=kind, student_top_k=k)
        term.begin(0, 6)
        return term.evaluate(logits, 0, 6)[0]

    whole = values(0)
    torch.testing.assert_close(values(events.count - 1), whole)
    found = torch.stack([values(k) for k in range(1, events.count)])
    assert bool((found >= -1e-12).all())
    assert bool((found.diff(dim=0) >= -1e-12).all())  # merging outcomes never adds to a divergence
    torch.testing.assert_close(found[-1], whole)


def test_an_outcome_nobody_can_have_costs_nothing_on_the_support() -> None:
    student = torch.log_softmax(torch.tensor([[0.0, 1.0, -1e30]]).double(), 1)
    values, slopes = divergence_and_gradient(
        student_log_probs=student.clone(), teacher_log_probs=student.clone(), kind="reverse"
    )
    assert float(values) == 0
    assert slopes.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("case", CASES)
def test_a_forward_and_its_backward_never_wait_for_the_device(case: str) -> None:
    name, chosen = CASES[case]
    student, teacher = heads()
    method, examples = method_of(name, teacher, **chosen), examples_of(SIZES, teacher)
    student.weight.requires_grad_()
    batch, hidden, attention = worlds.make_batch(examples, aligned=method.needs[0].aligned)
    with WaitCounter() as waits:
        method(StudentOutput(hidden, attention, student.live()), batch, worlds.totals_of(examples)).total.backward()
    assert not waits.found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1\.0: must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0: must be a positive finite number"),
        ({"kd_source": "top_k", "kd_vocabulary": "first_piece"}, "kd_vocabulary=first_piece.*kd_source=head"),
        ({"student_top_k": -1}, "student_top_k=-1"),
        ({"lambda_cos": -0.5}, "lambda_cos=-0.5: must be a finite number"),
        ({"student_top_k": 8, "kd_vocabulary": "rest"}, "student_top_k=8: how many events stand alone"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHODS["boundary"].options_type(**options)


@pytest.mark.parametrize("name", ["boundary", "strict"])
def test_a_method_with_a_teacher_says_which_command_makes_one(name: str) -> None:
    kind = METHODS[name]
    with pytest.raises(ConfigError, match=f"method={name}: the shards hold no teacher's pages; run `sra-data cache"):
        kind(kind.options_type(), MethodSetting(student=ModelShape(1, 2, 3)))  # type: ignore[call-arg]
