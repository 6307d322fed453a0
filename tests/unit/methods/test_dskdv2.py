"""DSKD v2: exactly aligned rows in both spaces, and projectors that begin where logits stay, against slow loops."""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape, StepTotals, StudentOutput, TeacherKnowledge, TeacherSetting
from sra_train.methods.dskdv2 import DSKDv2, DSKDv2Options, keeping_logits
from tests.reference import dual_space as slow
from tests.reference.losses import cross_entropy_sum
from tests.unit.methods import collated, worlds
from tests.unit.methods import dual_space_laws as laws
from tests.unit.methods.test_dskd import student_rows

CASES = {
    "published defaults": {},
    "every row": {"taught_where": "all"},
    "reverse, temperature 1": {"kd_divergence": "reverse", "temperature": 1.0, "taught_where": "all"},
    "js, alpha 0.2": {"kd_divergence": "js", "alpha": 0.2, "taught_where": "all"},
}


def make(*, teachers=None, dtype=torch.float64, **options) -> DSKDv2:
    setting = MethodSetting(
        student=ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY),
        teachers=tuple(teachers or [worlds.teacher_setting(laws.teacher_head())]),
        student_head=laws.student_head().live(),
    )
    method = DSKDv2(DSKDv2Options(**options), setting).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from where they begin, or few rows would be wrong
        for projector in method.parameters():
            projector += 0.3 * torch.randn(projector.shape, generator=generator, dtype=torch.float64)
    return method


def pairs_of(known: collated.Known) -> list[tuple[int, int]]:
    """(student's token, teacher's cached row) before every 1:1 span that a shared boundary precedes, and the ends."""
    (part,) = known.parts.teachers
    if part is None:
        return []
    cached, found = part.positions.tolist(), []
    spans = list(zip(part.spans.student_spans.tolist(), part.spans.teacher_spans.tolist(), strict=True))
    for (own, own_stop), (other, other_stop) in spans:
        if (own_stop - own, other_stop - other) == (1, 1):
            found.append((own - 1, cached.index(other - 1)))
    for own, other in zip(known.parts.side.label_spans.tolist(), part.side.label_spans.tolist(), strict=True):
        if known.parts.side.ids[own[1] - 1] == worlds.END[0]:
            found.append((own[1] - 2, cached.index(other[1] - 2)))
    return found


def reference(method: DSKDv2, known: collated.Known, hidden: torch.Tensor, head: worlds.Head) -> dict:
    """The slow loops of one example whose states are `hidden` [N, D_s]."""
    found = slow.dskdv2(
        pairs_of(known),
        student_hidden=hidden,
        teacher_hidden=known.teacher_hidden() if known.parts.teachers[0] else None,
        student_head=head.for_reference(),
        teacher_head=laws.teacher_head().for_reference(),
        mapping={t: s for s, t in worlds.SHARED} | worlds.DOUBLES | {worlds.END[1]: worlds.END[0]},
        to_student=method.teachers[0].to_student,
        to_teacher=method.teachers[0].to_teacher,
        temperature=method.options.temperature,
        kind=method.options.kd_divergence,
        where=method.options.taught_where,
    )
    labels = [(at, target) for at, _, target in student_rows(known)]
    found["ce_sum"] = cross_entropy_sum(hidden, head.for_reference(), labels)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_equal_the_slow_reference(case: str) -> None:
    method, head = make(**CASES[case]), laws.student_head()
    known = [*laws.examples(), *(collated.make(seed, [[(1, 1)] * 6]) for seed in (7, 8))]
    known[1] = known[1].without_teacher() if case == "every row" else known[1]
    leaves = laws.trained(method, head)
    found, hidden = collated.run(method, [known[0], None, *known[1:]], head)
    gradients = torch.autograd.grad(found.total, [hidden, *leaves], allow_unused=True)
    slots, totals = (0, 2, 3, 4, 5), collated.totals_of(known)
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
    assert int(found.counts["boundaries"]) == sum(len(pairs_of(one)) for one in known)
    slow_gradients = torch.autograd.grad(total, [states, *leaves], allow_unused=True)
    for one, other, leaf in zip(gradients, slow_gradients, [hidden, *leaves], strict=True):
        zero = torch.zeros_like(leaf)
        laws.close(zero if one is None else one, zero if other is None else other, "gradient")


def test_rows_are_of_every_kind() -> None:
    """Right ones, wrong ones, those whose likeliest token the student lacks: or the reference test is blind."""
    method, known = make(), [*laws.examples(), *(collated.make(seed, [[(1, 1)] * 6]) for seed in (7, 8))]
    found = collated.run(method, known, laws.student_head())[0]
    mapping = {t: s for s, t in worlds.SHARED} | worlds.DOUBLES | {worlds.END[1]: worlds.END[0]}
    logits = [laws.teacher_head().live().logits(one.teacher_hidden()) for one in known]
    likeliest = [int(one[row].argmax()) for one, of in zip(logits, known, strict=True) for _, row in pairs_of(of)]
    known_to_student = [one in mapping for one in likeliest]
    assert 0 < int(found.counts["rows_right"]) < sum(known_to_student) < len(known_to_student)


def test_a_student_that_is_its_own_teacher_loses_nothing_and_is_right_everywhere() -> None:
    """Then the projectors are the identity: both heads say the same of every state."""
    head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, bias=True, softcap=4.0)
    ids, end = torch.arange(worlds.STUDENT_VOCABULARY - 1), worlds.STUDENT_VOCABULARY - 1
    shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    knowledge = TeacherKnowledge(ids, ids, head.live(), end_of_sequence=(end, end))
    setting = MethodSetting(shape, (TeacherSetting("itself", 1.0, shape, knowledge),), student_head=head.live())
    method = DSKDv2(DSKDv2Options(taught_where="all"), setting).double()
    for projector in method.parameters():
        torch.testing.assert_close(projector, torch.eye(worlds.STUDENT_WIDTH).double(), rtol=0, atol=1e-6)
    like = collated.make(0, [[(1, 1)] * 5], widths=(worlds.STUDENT_WIDTH,))
    batch, _ = collated.batch_of([like], make())
    (pages,) = batch.teachers
    states = torch.randn(1, len(like.hidden), worlds.STUDENT_WIDTH, generator=torch.Generator().manual_seed(1))
    states = states.double()
    pages.hidden[worlds.STUDENT_LAYERS] = torch.zeros_like(pages.hidden.pop(collated.LAST))
    pages.hidden[worlds.STUDENT_LAYERS][0, pages.aligned.teacher_positions] = states[0, pages.aligned.student_positions]
    output = StudentOutput({worlds.STUDENT_LAYERS: states}, {}, head.live())
    found = method(output, batch, StepTotals(like.num_labels, 1))
    assert float(found.per_example["kd_student"].abs().max()) < 1e-10
    assert float(found.per_example["kd_teacher"].abs().max()) < 1e-10
    assert int(found.counts["rows_right"]) == int(found.counts["boundaries"]) == 6


def test_the_first_projectors_by_hand() -> None:
    """S = (1), (1) and T = (1, 0), (3, 0) over two shared ids.

    To the student: the number whose product with (1), (1) is nearest to (1), (3) is 2, so W = (2), (0). To the teacher:
    x (1, 0) and x (3, 0) nearest to 1 and 1: x = (1 + 3) / (1 + 9) = 0.4, so W = (0.4, 0).
    """
    own, other = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[1.0, 0.0], [3.0, 0.0]]).double()
    to_student, to_teacher = keeping_logits(source=other, target=own), keeping_logits(source=own, target=other)
    torch.testing.assert_close(to_student, torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(to_teacher, torch.tensor([[0.4, 0.0]]))


def test_logits_stay_what_they_are_where_a_matrix_can_do_it() -> None:
    """A teacher's head made from the student's, T = S A: every state keeps all its logits in the student's space."""
    generator = torch.Generator().manual_seed(2)
    own = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    other = own @ torch.randn(5, 9, generator=generator, dtype=torch.float64)
    states = torch.randn(7, 9, generator=generator, dtype=torch.float64)
    mapped = states @ keeping_logits(source=other, target=own).double()
    torch.testing.assert_close(mapped @ own.T, states @ other.T, rtol=1e-4, atol=1e-4)


def test_first_projectors_are_those_of_the_shared_rows_with_their_scaling() -> None:
    head, other = laws.student_head(), laws.teacher_head()
    setting = MethodSetting(
        ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY),
        (worlds.teacher_setting(other),),
        student_head=head.live(),
    )
    (teacher,) = DSKDv2(DSKDv2Options(), setting).teachers
    pairs = [*worlds.SHARED, worlds.END]
    own = head.weight[[s for s, _ in pairs]] * head.scale
    theirs = other.weight[[t for _, t in pairs]] * other.scale
    for found, source, target in ((teacher.to_student, theirs, own), (teacher.to_teacher, own, theirs)):
        expected = (torch.linalg.pinv(target) @ source).T
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_numbers_do_not_depend_on_padding_company_or_order() -> None:
    laws.check_independence(make, taught_where="all")


def test_micro_batches_add_up_to_the_large_batch() -> None:
    laws.check_micro_batches(make, taught_where="all")


def test_two_teachers_are_the_weighted_mean_of_each_alone() -> None:
    def apart(*, teachers, **options) -> DSKDv2:
        """Without the noise, whose numbers depend on how many projectors there are."""
        shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
        setting = MethodSetting(shape, tuple(teachers), student_head=laws.student_head().live())
        return DSKDv2(DSKDv2Options(**options), setting).double()

    laws.check_several_teachers(apart, worlds.teacher_setting, taught_where="all")


def test_a_batch_the_teacher_lacks_is_cross_entropy_alone() -> None:
    laws.check_lacking_rows(make)


def test_forward_and_backward_never_wait_and_only_projectors_are_saved() -> None:
    laws.check_no_waits(make, taught_where="all")


def test_half_precision_states_give_numbers_near_and_finite_gradients() -> None:
    known, head = laws.examples(), laws.student_head()
    wide = collated.run(make(taught_where="all"), known, head)[0]
    method = make(taught_where="all", dtype=torch.float32)
    small = worlds.Head(head.weight.float(), head.bias.float(), head.scale)
    batch, hidden = collated.batch_of(known, method, dtype=torch.float32)
    hidden = hidden.bfloat16().requires_grad_(True)
    found = method(StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, small.live()), batch, collated.totals_of(known))
    found.total.backward()
    assert torch.isfinite(hidden.grad).all()
    torch.testing.assert_close(found.total.double(), wide.total, rtol=0.05, atol=0.05)


def test_what_is_asked_for_is_what_is_read() -> None:
    (needs,) = make().needs
    assert (needs.hidden, needs.ids, needs.aligned) == ((worlds.TEACHER_LAYERS,), False, "strict")
    assert needs.tokens is not None
    assert DSKDv2.knowledge_needs(DSKDv2Options()).head


def test_what_cannot_be_is_refused() -> None:
    for options, message in (
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0: must be a positive finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            DSKDv2Options(**options)
    with pytest.raises(ConfigError, match="hold no teacher's head"):
        make(teachers=[worlds.teacher_setting(None)])
    with pytest.raises(ConfigError, match="hold no teacher's pages"):
        DSKDv2(DSKDv2Options(), MethodSetting(ModelShape(1, 2, 3), student_head=OutputHead(torch.ones(3, 2))))
    method = make()
    batch, hidden = collated.batch_of(laws.examples(), method)
    batch.teachers[0].hidden.clear()
    with pytest.raises(ShardError, match="its pages hold no hidden states of layer 4"):
        method(StudentOutput({3: hidden}, {}, laws.student_head().live()), batch, StepTotals(1, 1))
