"""The laws of method.md, section 9, that need no file; each test is named as its law."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape, StepTotals, StudentOutput, TeacherKnowledge, TeacherSetting
from sra_train.methods import SFT, SRA
from sra_train.methods.sft import SFTOptions
from sra_train.methods.sra import SRAOptions
from tests.unit.methods import worlds

LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=5)
FIVE = ("ce_sum", "labels", "cos", "geo", "kd")
VARIANTS = {
    "default": {},
    "boundary": {"kd_position": "boundary"},
    "top_k": {"kd_position": "boundary", "kd_source": "top_k"},
    "rest, last": {"kd_vocabulary": "rest", "pooling": "last"},
}


def teacher_head() -> worlds.Head:
    return worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)


def student_head() -> worlds.Head:
    return worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)


def examples_of(sizes) -> list[worlds.Example]:
    made = [worlds.make_example(seed, sizes=one) for seed, one in enumerate(sizes)]
    worlds.add_top_k(made, teacher_head(), k=5)
    return made


def identical_world(dtype=torch.float64, **options):
    """A student that is its own teacher: same states, attention, head and tokenizer."""
    vocabulary, width, layers = worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, worlds.STUDENT_LAYERS
    head = worlds.make_head(12, vocabulary, width, bias=True, softcap=4.0, dtype=dtype)
    ids = torch.arange(vocabulary - 1)
    shape = ModelShape(layers, width, vocabulary)
    end = vocabulary - 1
    knowledge = TeacherKnowledge(ids, ids, head.live(), end_of_sequence=(end, end))
    setting = MethodSetting(student=shape, teachers=(TeacherSetting("itself", 1.0, shape, knowledge),))
    method = SRA(SRAOptions(**options), setting).to(dtype)
    with torch.no_grad():
        for projector in method.parameters():
            projector.copy_(torch.eye(width))
    examples = [worlds.make_example(s, sizes=[(n, n) for n in (2, 1, 3)], prompt=1, dtype=dtype) for s in range(3)]
    examples = [
        replace(
            one,
            teacher_hidden=one.teacher_hidden | {layer: all_of[:-1] for layer, all_of in one.student_hidden.items()},
            teacher_attention=one.teacher_attention | {layer: row[:-1] for layer, row in one.student_attention.items()},
        )
        for one in examples
    ]
    for one in examples:
        log_probs = torch.log_softmax(head.live().logits(one.teacher_hidden[layers]), 1)
        one.top_k_values, one.top_k_ids = log_probs.topk(4, dim=1)
        left = log_probs.scatter(1, one.top_k_ids, -torch.inf)
        one.log_tails = {2.0: torch.logsumexp(left / 2.0, 1)}
    batch, hidden, attention = worlds.make_batch(examples)
    del batch.teachers[0].hidden[worlds.TEACHER_LAYERS]  # this teacher has the student's layers only
    return method(StudentOutput(hidden, attention, head.live()), batch, StepTotals(9, 3))


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_losses_are_zero_when_student_equals_teacher(variant: str, divergence: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        found = identical_world(dtype, kd_divergence=divergence, **VARIANTS[variant])
        for name in ("cos", "geo", "kd"):
            assert float(found.per_example[name].abs().max()) < tolerance, name
        assert float(found.per_example["ce_sum"].min()) > 0


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=4), seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_geometry_does_not_change_under_rotation_and_scaling_of_the_student(sizes, seed, scale) -> None:
    examples = examples_of(sizes)
    width = worlds.STUDENT_WIDTH
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    turned = [
        replace(one, student_hidden={layer: scale * states @ rotation for layer, states in one.student_hidden.items()})
        for one in examples
    ]
    method = worlds.make_method(SRAOptions(kd=False, cos=False), None)
    before, after = (worlds.run(method, some, student_head()).per_example["geo"] for some in (examples, turned))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=4), data=st.data())
def test_five_numbers_do_not_depend_on_padding_company_or_order(variant: str, sizes, data) -> None:
    examples = examples_of(sizes)
    method = worlds.make_method(SRAOptions(**VARIANTS[variant]), teacher_head())
    head = student_head()
    totals = worlds.totals_of(examples)
    alone = {one.name: worlds.run(method, [one], head, totals).per_example for one in examples}
    rows = data.draw(st.permutations([*examples, None]))
    padding = {name: data.draw(st.integers(0, 3)) for name in ("extra_tokens", "extra_positions", "extra_spans")}
    garbage = data.draw(st.floats(-50, 50))
    together = worlds.run(method, rows, head, totals, garbage=garbage, **padding).per_example
    for place, one in enumerate(rows):
        for name in FIVE:
            expected = torch.zeros(()) if one is None else alone[one.name][name][0]
            torch.testing.assert_close(
                together[name][place].double(),
                expected.double(),
                rtol=1e-10,
                atol=1e-12,
                msg=lambda text, n=name: f"{n}: {text}",
            )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_micro_batches_add_up_to_the_large_batch(variant: str) -> None:
    examples = examples_of([[(1, 2), (2, 1)], [], [(3, 3)], [(1, 1), (1, 1), (2, 4)]])
    method = worlds.make_method(SRAOptions(**VARIANTS[variant]), teacher_head())
    totals = worlds.totals_of(examples)

    def gradients(batches):
        head = student_head()
        head.weight.requires_grad_(True)
        method.zero_grad()
        total = sum(worlds.run(method, batch, head, totals).total for batch in batches)
        total.backward()
        return total.detach(), [head.weight.grad, *(projector.grad for projector in method.parameters())]

    whole, whole_gradients = gradients([examples])
    parts, part_gradients = gradients([examples[:1], [examples[1], None], examples[2:]])
    torch.testing.assert_close(parts, whole)
    for part, all_of in zip(part_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(part, all_of)


def test_rows_of_weight_zero_leave_no_gradient() -> None:
    method = worlds.make_method(SRAOptions(), teacher_head())
    examples = examples_of([[(1, 2), (2, 1)], [(2, 2)]])
    batch, hidden, attention = worlds.make_batch(examples, weights=[1.0, 0.0])
    hidden = {layer: states.requires_grad_(True) for layer, states in hidden.items()}
    found = method(StudentOutput(hidden, attention, student_head().live()), batch, StepTotals(5, 1))
    (gradient,) = torch.autograd.grad(found.total, [hidden[worlds.STUDENT_LAYERS]])
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0
    assert all(float(found.per_example[name][1]) == 0 for name in FIVE)


def test_no_gradient_reaches_the_attention() -> None:
    method = worlds.make_method(SRAOptions(kd_reduction="salience"), teacher_head())
    batch, hidden, attention = worlds.make_batch(examples_of([[(1, 2), (2, 1)], [(2, 2)]]))
    attention = {layer: weights.requires_grad_(True) for layer, weights in attention.items()}
    teacher = {layer: weights.requires_grad_(True) for layer, weights in batch.teachers[0].attention.items()}
    states = {layer: one.requires_grad_(True) for layer, one in hidden.items()}
    total = method(StudentOutput(states, attention, student_head().live()), batch, StepTotals(5, 2)).total
    rows = [*attention.values(), *teacher.values()]
    assert torch.autograd.grad(total, rows, allow_unused=True) == (None,) * len(rows)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_one_span_gives_no_nan(variant: str) -> None:
    examples = examples_of([[(3, 2)], []])
    head = student_head()
    head.weight.requires_grad_(True)
    for one in examples:
        for states in one.student_hidden.values():
            states.requires_grad_(True)
    method = worlds.make_method(SRAOptions(**VARIANTS[variant]), teacher_head())
    found = worlds.run(method, examples, head, extra_spans=3)
    found.total.backward()
    assert float(found.per_example["geo"].abs().max()) == 0
    trained = [head.weight, *(one.student_hidden[worlds.STUDENT_LAYERS] for one in examples)]
    assert all(torch.isfinite(tensor.grad).all() for tensor in trained)
    assert torch.isfinite(found.total)


def test_states_of_length_zero_give_no_nan() -> None:
    (example,) = examples_of([[(1, 1), (2, 2)]])
    example.student_hidden[worlds.STUDENT_LAYERS] = torch.zeros_like(
        example.student_hidden[worlds.STUDENT_LAYERS]
    ).requires_grad_(True)
    found = worlds.run(worlds.make_method(SRAOptions(), teacher_head()), [example], student_head())
    found.total.backward()
    assert torch.isfinite(example.student_hidden[worlds.STUDENT_LAYERS].grad).all()


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=3), student=st.floats(1e-6, 1e6), teacher=st.floats(1e-6, 1e6))
def test_multiplying_all_attention_by_a_constant_changes_nothing(sizes, student, teacher) -> None:
    examples = examples_of(sizes)
    scaled = [
        replace(
            one,
            student_attention={layer: student * weights for layer, weights in one.student_attention.items()},
            teacher_attention={layer: teacher * weights for layer, weights in one.teacher_attention.items()},
        )
        for one in examples
    ]
    method = worlds.make_method(SRAOptions(), teacher_head())
    before, after = (worlds.run(method, some, student_head()).per_example for some in (examples, scaled))
    for name in FIVE:
        torch.testing.assert_close(after[name], before[name], rtol=1e-9, atol=1e-12)


def per_example_kd(examples, **options) -> torch.Tensor:
    method = worlds.make_method(SRAOptions(cos=False, geo=False, kd_position="boundary", **options), teacher_head())
    return worlds.run(method, examples, student_head()).per_example["kd"]


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=3), temperature=st.sampled_from([1.0, 2.0]))
def test_top_k_is_never_above_head_with_rest_and_rises_with_k_to_equal_it(sizes, temperature) -> None:
    """With one teacher id per string; where several spell one, a k that cuts between them is no coarsening."""
    examples = [worlds.make_example(seed, sizes=one) for seed, one in enumerate(sizes)]
    doubles = worlds.DOUBLES.copy()
    worlds.DOUBLES.clear()
    try:
        head_with_rest = per_example_kd(examples, kd_vocabulary="rest", temperature=temperature)
        before = torch.zeros_like(head_with_rest)
        for k in (1, 2, 4, 8, 16, worlds.TEACHER_VOCABULARY):
            worlds.add_top_k(examples, teacher_head(), k=k)
            found = per_example_kd(examples, kd_source="top_k", temperature=temperature)
            assert bool((found <= head_with_rest + 1e-9).all())
            assert bool((found >= before - 1e-9).all())
            before = found
    finally:
        worlds.DOUBLES.update(doubles)
    torch.testing.assert_close(before, head_with_rest, rtol=1e-9, atol=1e-10)


def test_top_k_of_the_whole_vocabulary_equals_head_with_rest_where_several_ids_spell_one_string() -> None:
    examples = [worlds.make_example(seed, sizes=[(1, 2), (2, 1)]) for seed in range(3)]
    worlds.add_top_k(examples, teacher_head(), k=worlds.TEACHER_VOCABULARY)
    for divergence in ("forward", "js"):
        top_k = per_example_kd(examples, kd_source="top_k", kd_divergence=divergence)
        head = per_example_kd(examples, kd_vocabulary="rest", kd_divergence=divergence)
        torch.testing.assert_close(top_k, head, rtol=1e-9, atol=1e-10)


def test_tied_weights_collect_the_gradients_of_every_user() -> None:
    examples = examples_of([[(1, 2), (2, 1)], [(2, 2)]])
    method = worlds.make_method(SRAOptions(), teacher_head())
    batch, hidden, attention = worlds.make_batch(examples)
    last, ids = worlds.STUDENT_LAYERS, batch.input_ids

    def gradients(embedding, head):
        states = {**hidden, last: hidden[last] + embedding[ids]}
        total = method(StudentOutput(states, attention, OutputHead(head)), batch, StepTotals(5, 2)).total
        return torch.autograd.grad(total, [embedding] if embedding is head else [embedding, head])

    weight = student_head().weight
    tied = weight.clone().requires_grad_(True)
    apart = [weight.clone().requires_grad_(True) for _ in range(2)]
    (together,) = gradients(tied, tied)
    torch.testing.assert_close(together, sum(gradients(*apart)))


def test_a_frozen_head_gets_no_gradient_and_changes_no_value() -> None:
    examples = examples_of([[(1, 2), (2, 1)], [(2, 2)]])
    method = worlds.make_method(SRAOptions(), teacher_head())
    frozen, live = student_head(), student_head()
    live.weight.requires_grad_(True)
    states = [one.student_hidden[worlds.STUDENT_LAYERS].requires_grad_(True) for one in examples]
    gradients = []
    for head in (frozen, live):
        gradients.append(torch.autograd.grad(worlds.run(method, examples, head).total, states))
    assert frozen.weight.grad is None
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_sft_is_the_cross_entropy_of_sra_and_reads_no_teacher() -> None:
    examples = examples_of([[(1, 2), (2, 1)], []])
    shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    sft = SFT(SFTOptions(), MethodSetting(student=shape))
    assert SFT.knowledge_needs(SFTOptions()) is None
    assert sft.needs == ()
    batch, hidden, attention = worlds.make_batch(examples)
    bare = replace(batch, teachers=())
    found = sft(StudentOutput(hidden, attention, student_head().live()), bare, worlds.totals_of(examples))
    other = worlds.run(worlds.make_method(SRAOptions(), teacher_head()), examples, student_head())
    torch.testing.assert_close(found.per_example["ce_sum"], other.per_example["ce_sum"])
    torch.testing.assert_close(found.total, found.terms["ce"])
    torch.testing.assert_close(found.terms["ce"], other.terms["ce"])
