"""SRA, option by option, against the slow float64 loops: every term's value and the whole loss's gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sra_data.errors import ShardError
from sra_train.contract import StudentOutput
from sra_train.methods.sra import LayerPair, SRAOptions
from tests.unit.methods import worlds

SIZES = [[(1, 1), (2, 3), (1, 2)], [(3, 1)], [], [(1, 1), (1, 1), (2, 1), (1, 4), (2, 2)]]
PAIRS = (LayerPair(student=2, teacher=1, weight=0.3), LayerPair(student="last", teacher=3, weight=0.7))
BOUNDARY = {"kd_position": "boundary"}
CASES = {
    "published defaults": {},
    "lora's alpha": {"alpha": 0.6},
    "mean pooling": {"pooling": "mean"},
    "last-token pooling": {"pooling": "last"},
    "uniform salience": {"salience_power": 0.0},
    "steep salience": {"salience_power": 2.5, "kd_reduction": "salience"},
    "two layer pairs": {"layer_pairs": PAIRS},
    "two layer pairs, boundary, salience": {"layer_pairs": PAIRS, "kd_reduction": "salience", **BOUNDARY},
    "kd mean, reverse": {"kd_reduction": "mean", "kd_divergence": "reverse"},
    "kd js, temperature 1": {"kd_divergence": "js", "temperature": 1.0},
    "kd with rest": {"kd_vocabulary": "rest"},
    "kd with rest, js": {"kd_vocabulary": "rest", "kd_divergence": "js"},
    "boundary": BOUNDARY,
    "boundary, js": {"kd_divergence": "js", **BOUNDARY},
    "boundary, rest": {"kd_vocabulary": "rest", **BOUNDARY},
    "boundary, rest, reverse": {"kd_vocabulary": "rest", "kd_divergence": "reverse", **BOUNDARY},
    "boundary, top k": {"kd_source": "top_k", **BOUNDARY},
    "boundary, top k, reverse, mean": {
        "kd_source": "top_k", "kd_divergence": "reverse", "kd_reduction": "mean", **BOUNDARY
    },
    "boundary, top k, js": {"kd_source": "top_k", "kd_divergence": "js", **BOUNDARY},
    "centre of mass, top k": {"kd_source": "top_k"},
    "no cos": {"cos": False},
    "no geo": {"geo": False, "lambda_geo": 3.0},
    "no kd": {"kd": False},
    "alpha 0": {"alpha": 0.0},
}  # fmt: skip
HEADS = {
    "plain": {},
    "bias and scale": {"bias": True, "scale": 0.7},
    "soft-cap": {"bias": True, "scale": 1.3, "softcap": 2.5},
}


def build(seed: int = 0):
    return [worlds.make_example(seed + place, sizes=sizes, closes=place != 1) for place, sizes in enumerate(SIZES)]


def leaves(examples, head, method):
    """Everything that is trained, as leaf tensors of the reference's graph."""
    tensors = {}
    for example in examples:
        for layer, states in example.student_hidden.items():
            tensors[f"{example.name} layer {layer}"] = states
    tensors["head"] = head.weight
    if head.bias is not None:
        tensors["bias"] = head.bias
    for place, projector in enumerate(method.parameters()):
        tensors[f"projector {place}"] = projector
    return tensors


def reference_total(options, found, totals):
    distilled = sum(one["cos"] + options.lambda_geo * one["geo"] + one["kd"] for one in found)
    ce = sum(one["ce_sum"] for one in found)
    return options.alpha * ce / totals.labels + (1 - options.alpha) * distilled / totals.examples


@pytest.mark.parametrize("form", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_equal_the_slow_reference(case: str, form: str) -> None:
    if form != "plain" and not CASES[case].get("kd", True):
        form = "plain"
    options = SRAOptions(**CASES[case])
    examples = build()
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, **HEADS[form])
    worlds.add_top_k(examples, teacher_head, k=6)
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, **HEADS[form])
    method = worlds.make_method(options, teacher_head)
    totals = worlds.totals_of(examples)

    tensors = leaves(examples, head, method)
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    found = [worlds.reference(options, method, example, head, teacher_head) for example in examples]
    expected_total = reference_total(options, found, totals)
    expected_gradients = torch.autograd.grad(expected_total, list(tensors.values()), allow_unused=True)

    # A filling row in the middle, and padding on every side.
    rows = [examples[0], None, *examples[1:]]
    terms = worlds.run(method, rows, head, totals, extra_tokens=2, extra_positions=1, extra_spans=1)
    gradients = torch.autograd.grad(terms.total, list(tensors.values()), allow_unused=True)

    torch.testing.assert_close(terms.total, expected_total, rtol=1e-9, atol=1e-11)
    for name in ("ce_sum", "cos", "geo", "kd"):
        if name in terms.per_example:
            kept = terms.per_example[name][[0, 2, 3, 4]].double()
            torch.testing.assert_close(kept, torch.stack([one[name] for one in found]).detach(), rtol=1e-9, atol=1e-11)
            assert float(terms.per_example[name][1]) == 0
    for name, expected, actual in zip(tensors, expected_gradients, gradients, strict=True):
        expected = torch.zeros_like(tensors[name]) if expected is None else expected
        actual = torch.zeros_like(tensors[name]) if actual is None else actual
        torch.testing.assert_close(
            actual, expected, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


INNER = {
    "an inner pair": {"layer_pairs": ("1:2",)},
    "an inner pair, boundary": {"layer_pairs": ("1:2",), **BOUNDARY},
    "an inner pair, boundary, top k": {"layer_pairs": ("1:2",), "kd_source": "top_k", **BOUNDARY},
    "an inner pair, uniform mean": {"layer_pairs": ("1:2",), "pooling": "mean", "salience_power": 0.0},
    "an inner pair, no kd": {"layer_pairs": ("1:2",), "kd": False},
    "kd alone": {"cos": False, "geo": False},
    "kd alone, boundary": {"cos": False, "geo": False, **BOUNDARY},
}


@pytest.mark.parametrize("options", (CASES | INNER).values(), ids=CASES | INNER)
def test_what_is_asked_for_suffices_and_without_any_of_it_the_loss_is_refused(options) -> None:
    options, examples = SRAOptions(**options), build()
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    worlds.add_top_k(examples, teacher_head, k=6)
    method = worlds.make_method(options, teacher_head)
    batch, hidden, attention = worlds.make_batch(examples)
    (teacher,), (needs,), own = batch.teachers, method.needs, method.student_needs
    columns = {
        "hidden": {layer: teacher.hidden[layer] for layer in needs.hidden},
        "attention": {layer: teacher.attention[layer] for layer in needs.attention},
        "log_tails": {one: teacher.log_tails[one] for one in needs.temperatures},
        "top_k_ids": teacher.top_k_ids if needs.top_k else None,
        "top_k_values": teacher.top_k_values if needs.top_k else None,
    }
    said = {"hidden": {layer: hidden[layer] for layer in own.layers}}
    said["attention"] = {layer: attention[layer] for layer in own.attention_layers}

    def total(columns, said):
        pages = replace(batch, teachers=(replace(teacher, **columns),))
        return method(StudentOutput(**said, head=head.live()), pages, worlds.totals_of(examples)).total

    whole = method(StudentOutput(hidden, attention, head.live()), batch, worlds.totals_of(examples)).total
    assert torch.equal(total(columns, said), whole)
    for name, values in columns.items():
        for key in values if isinstance(values, dict) else ():
            lacking = {**columns, name: {other: one for other, one in values.items() if other != key}}
            with pytest.raises(ShardError, match="its pages hold no"):
                total(lacking, said)
    for name, values in said.items():
        for key in values:
            with pytest.raises((KeyError, AssertionError)):
                total(columns, {**said, name: {other: one for other, one in values.items() if other != key}})


def test_terms_are_reported_as_they_stand_in_the_formula() -> None:
    options = SRAOptions(alpha=0.3)
    examples = build(20)
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    found = worlds.run(worlds.make_method(options, teacher_head), examples, head)
    terms = found.terms
    total = 0.3 * terms["ce"] + 0.7 * (terms["cos"] + options.lambda_geo * terms["geo"] + terms["kd"])
    torch.testing.assert_close(found.total.detach(), total)
    torch.testing.assert_close(terms["ce"], found.per_example["ce_sum"].sum() / found.per_example["labels"].sum())
    assert int(found.counts["spans"]) == 9
    assert int(found.counts["examples_without_span"]) == 1


def test_float32_agrees_with_float64() -> None:
    options = SRAOptions()
    form = {"dtype": torch.float32, "bias": True}
    examples = [worlds.make_example(place, sizes=sizes, dtype=torch.float32) for place, sizes in enumerate(SIZES)]
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, **form)
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, **form)
    method = worlds.make_method(options, teacher_head, torch.float32)
    terms = worlds.run(method, examples, head)

    def double(values):
        return {layer: tensor.double() for layer, tensor in values.items()}

    wide = [
        replace(
            example,
            student_hidden=double(example.student_hidden),
            teacher_hidden=double(example.teacher_hidden),
            student_attention=double(example.student_attention),
            teacher_attention=double(example.teacher_attention),
        )
        for example in examples
    ]
    heads = [worlds.Head(one.weight.double(), one.bias.double()) for one in (head, teacher_head)]
    found = [worlds.reference(options, method.double(), example, *heads) for example in wide]
    for name in ("ce_sum", "cos", "geo", "kd"):
        expected = torch.stack([one[name] for one in found]).detach().float()
        torch.testing.assert_close(terms.per_example[name].float(), expected, rtol=2e-5, atol=2e-6)


def test_gradients_pass_the_finite_difference_check() -> None:
    options = SRAOptions(kd_position="boundary", kd_divergence="js", lambda_geo=2.0)
    examples = [worlds.make_example(5, sizes=[(1, 2), (2, 1), (1, 1)])]
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, softcap=3.0)
    method = worlds.make_method(options, teacher_head)
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, bias=True, softcap=3.0)
    batch, hidden, attention = worlds.make_batch(examples)
    last = worlds.STUDENT_LAYERS

    def total(states, weight, bias):
        live = replace(head, weight=weight, bias=bias).live()
        return method(StudentOutput({**hidden, last: states}, attention, live), batch, worlds.totals_of(examples)).total

    inputs = [tensor.clone().requires_grad_(True) for tensor in (hidden[last], head.weight, head.bias)]
    gradients = torch.autograd.grad(total(*inputs), inputs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = [1e-5 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in inputs]
        with torch.no_grad():
            ahead = total(*(tensor + move for tensor, move in zip(inputs, step, strict=True)))
            behind = total(*(tensor - move for tensor, move in zip(inputs, step, strict=True)))
        slope = sum((gradient * move).sum() for gradient, move in zip(gradients, step, strict=True))
        torch.testing.assert_close((ahead - behind) / 2, slope, rtol=1e-6, atol=1e-11)
