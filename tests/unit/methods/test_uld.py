"""ULD: sorted distributions, against slow float64 loops and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape, StudentOutput, TeacherKnowledge, TeacherSetting
from sra_train.methods import method_type
from sra_train.methods.terms import head_loss
from sra_train.methods.terms.head_loss import ChunkedHead, RowGroup, head_losses
from sra_train.methods.terms.sorted_distance import SortedDistanceTerm
from sra_train.methods.uld import ULD, ULDOptions
from tests.reference import losses as slow
from tests.reference import ranks
from tests.unit.methods import taught, worlds

CASES = {
    "published defaults": {},
    "another temperature": {"temperature": 2.5},
    "sum": {"kd_reduction": "sum", "alpha": 0.3},
    "token": {"kd_reduction": "token"},
    "no cross entropy": {"alpha": 0.0},
}


@pytest.mark.parametrize("form", taught.HEADS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_slow_reference(case: str, form: str) -> None:
    options = ULDOptions(**CASES[case])

    def expected(example, head, teacher_head):
        rows = [
            ranks.sorted_distance(
                slow.head_logits(student, head.for_reference()),
                slow.head_logits(teacher, teacher_head.for_reference()),
                options.temperature,
            )
            for student, teacher in taught.rows_beside(example)
        ]
        value = taught.reduced(rows, options.kd_reduction)
        return {"uld": value, "total": value}

    teacher = worlds.teacher_setting(taught.teacher_head(**taught.HEADS[form]))
    taught.compare_with_reference(taught.make("uld", [teacher], **CASES[case]), form, expected)


def distance(student: list[float], teacher: list[float]) -> tuple[float, list[float]]:
    """Of distributions given as probabilities: a head of one row per id, read at the state 1."""
    weight = torch.tensor(student, dtype=torch.float64).log()[:, None].requires_grad_()
    other = torch.tensor(teacher, dtype=torch.float64).log()[:, None]
    one = torch.ones(1, 1, dtype=torch.float64)
    head = ChunkedHead(other, None, scale=1.0, softcap=None)
    term = SortedDistanceTerm(one, head, torch.ones(1, dtype=torch.float64), temperature=1.0)
    total, _ = head_losses(OutputHead(weight), [RowGroup(one, [term])])
    (gradient,) = torch.autograd.grad(total, weight)
    return float(total.detach()), gradient[:, 0].tolist()


def test_two_distributions_by_hand() -> None:
    """Sorted (0.5, 0.3, 0.2) and (0.6, 0.25, 0.1, 0.05): 0.1 + 0.05 + 0.1, and 0.05 that the student has no rank for.

    Slopes by rank -1, +1, +1; their mean under the student is -0.5 + 0.3 + 0.2 = 0.
    """
    value, gradient = distance([0.2, 0.5, 0.3], [0.1, 0.05, 0.6, 0.25])
    assert value == pytest.approx(0.3)
    assert gradient == pytest.approx([0.2, -0.5, 0.3])


def test_a_longer_vocabulary_of_the_student_faces_zeros() -> None:
    """(0.4, 0.3, 0.2, 0.1) against (0.7, 0.3, 0, 0): 0.3 + 0 + 0.2 + 0.1."""
    value, gradient = distance([0.1, 0.2, 0.4, 0.3], [0.29999, 0.70001])
    assert value == pytest.approx(0.60002)
    # slopes by id: +1, +1, -1, +1; their mean under q is 0.1 + 0.2 - 0.4 + 0.3 = 0.2
    assert gradient == pytest.approx([0.1 * 0.8, 0.2 * 0.8, 0.4 * -1.2, 0.3 * 0.8])


@pytest.mark.parametrize(("rows_per_chunk", "rows_per_block"), [(1, 1), (4, 2), (5, 3), (100, 2)])
def test_chunks_and_blocks_of_rows_change_nothing(monkeypatch, rows_per_chunk: int, rows_per_block: int) -> None:
    head, teacher = taught.student_head(), taught.teacher_head()
    head.weight.requires_grad_()
    random = torch.Generator().manual_seed(2)
    states = torch.randn(11, worlds.STUDENT_WIDTH, generator=random, dtype=torch.float64)
    taught_states = torch.randn(11, worlds.TEACHER_WIDTH, generator=random, dtype=torch.float64)
    coefficients = torch.rand(11, generator=random, dtype=torch.float64)

    def found(**limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        chunked = ChunkedHead(teacher.weight, None, scale=1.0, softcap=None)
        term = SortedDistanceTerm(taught_states, chunked, coefficients, temperature=1.0)
        total, [[values]] = head_losses(head.live(), [RowGroup(states, [term])], **limit)
        return values, torch.autograd.grad(total, head.weight)[0]

    whole = found()
    row = 8 * worlds.STUDENT_VOCABULARY
    monkeypatch.setitem(head_loss.BLOCK_BYTES, "cpu", row * rows_per_block)
    for one, other in zip(found(chunk_bytes=row * rows_per_chunk), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_permutation_of_either_vocabulary_changes_nothing() -> None:
    one, _ = distance([0.1, 0.2, 0.4, 0.3], [0.5, 0.25, 0.25])
    other, _ = distance([0.4, 0.3, 0.1, 0.2], [0.25, 0.5, 0.25])
    assert one == pytest.approx(other)


def test_the_distance_is_zero_when_student_equals_teacher_and_lies_within_two() -> None:
    vocabulary, width, layers = worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, worlds.STUDENT_LAYERS
    head = taught.student_head(bias=True, softcap=4.0)
    shape = ModelShape(layers, width, vocabulary)
    knowledge = TeacherKnowledge(torch.arange(vocabulary), torch.arange(vocabulary), head.live())
    method = ULD(ULDOptions(), MethodSetting(shape, (TeacherSetting("itself", 1.0, shape, knowledge),))).double()
    examples = [worlds.make_example(s, sizes=[(n, n) for n in (2, 1, 3)], prompt=1) for s in range(3)]
    same = [
        replace(one, teacher_hidden={layer: states[:-1] for layer, states in one.student_hidden.items()})
        for one in examples
    ]
    assert float(taught.run(method, same, head).per_example["uld"].abs().max()) < 1e-12
    far = taught.run(taught.make("uld"), taught.build(), head).per_example["uld"]
    assert bool(((far > 0) & (far < 2)).all())


def test_the_gradient_reaches_no_teacher() -> None:
    teacher = taught.teacher_head()
    teacher.weight.requires_grad_()
    head = taught.student_head()
    head.weight.requires_grad_()
    method = taught.make("uld", [worlds.teacher_setting(teacher)])
    taught.run(method, taught.build(), head).total.backward()
    assert teacher.weight.grad is None
    assert float(head.weight.grad.abs().max()) > 0
    assert list(method.state_dict()) == []


def test_the_rows_are_as_many_as_both_responses_have_and_one() -> None:
    examples = taught.build()  # responses of (4, 6), (3, 1), (0, 0), (7, 9) tokens
    found = taught.run(taught.make("uld"), examples, taught.student_head())
    assert int(found.counts["rows"]) == 5 + 2 + 1 + 8
    assert int(found.counts["examples_without_row"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\); with 1 nothing is distilled: method=sft"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"temperature": 0.0}, "temperature=0.0: must be a positive finite number"),
        ({"temperature": float("inf")}, "temperature=inf: must be"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(options, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ULDOptions(**options)
    assert "\n" not in str(caught.value)


def test_what_is_not_known_of_the_teacher_is_refused() -> None:
    shape = ModelShape(2, 4, 13)
    with pytest.raises(ConfigError, match="method=uld: the shards hold no teacher's pages; run `sra-data cache-teach"):
        ULD(ULDOptions(), MethodSetting(shape))
    with pytest.raises(ConfigError, match="method=uld: the shards hold no teacher's head; run `sra-data cache-teach"):
        ULD(ULDOptions(), MethodSetting(shape, (worlds.teacher_setting(None),)))
    batch, hidden, attention = worlds.make_batch(taught.build(), aligned="response")
    pages = replace(batch.teachers[0], hidden={})
    output = StudentOutput(hidden, attention, taught.student_head().live())
    with pytest.raises(ShardError, match=r"hold no hidden states of layer 4.*--layers 4"):
        taught.make("uld")(output, replace(batch, teachers=(pages,)), worlds.totals_of(taught.build()))


def test_it_asks_for_the_last_layer_the_head_and_the_rows_of_responses() -> None:
    (needs,) = taught.make("uld").needs
    assert (needs.hidden, needs.attention, needs.top_k, needs.aligned) == ((4,), (), False, "response")
    assert needs.tokens is not None
    assert needs.tokens.option == "method=uld"
    assert method_type("uld").knowledge_needs(ULDOptions()).head
    assert taught.make("uld").student_needs.layers == (worlds.STUDENT_LAYERS,)
