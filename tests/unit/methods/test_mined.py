"""MinED: distributions along a map of ids where tokens pair, labels elsewhere; against slow loops, and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape, StepTotals, StudentOutput
from sra_train.methods.mined import MinED, MinEDOptions
from sra_train.methods.terms.head_loss import ChunkedHead
from sra_train.methods.terms.pushforward import PushforwardTerm
from tests.reference import edit_distance, losses
from tests.unit.methods import collated, worlds
from tests.unit.methods import dual_space_laws as laws
from tests.unit.methods.test_dskd import student_rows

CASES = {"published defaults": {}, "temperature 1, alpha 0.2": {"temperature": 1.0, "alpha": 0.2}}
TERMS = ("kd",)
ZERO = torch.zeros((), dtype=torch.float64)


def setting(head: worlds.Head | None, **form) -> object:
    """A teacher with a map by edit distance."""
    made = worlds.teacher_setting(head, **form)
    nearest = torch.from_numpy(collated.NEAREST.student_of_teacher).long()
    return replace(made, knowledge=replace(made.knowledge, nearest=nearest))


def make(*, teachers=None, dtype=torch.float64, **options) -> MinED:
    shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    return MinED(MinEDOptions(**options), MethodSetting(shape, tuple(teachers or [setting(laws.teacher_head())]))).to(
        dtype
    )


def paired(known: collated.Known) -> dict[int, int]:
    """Student's position -> the teacher's cached row, of labels alone with each other on the path and in the map."""
    (part,) = known.parts.teachers
    found = {}
    if part is None:
        return found
    cached = part.positions.tolist()
    for own, other in zip(known.parts.side.label_spans.tolist(), part.side.label_spans.tolist(), strict=True):
        student = [collated.NEAREST.student_pieces[one] or 16 * b"\xff" for one in known.parts.side.ids[slice(*own)]]
        teacher = [collated.NEAREST.teacher_pieces[one] or 16 * b"\xff" for one in part.side.ids[slice(*other)]]
        for i, j in edit_distance.alone(edit_distance.warped_path(student, teacher)):
            ids = int(known.parts.side.ids[own[0] + i]), int(part.side.ids[other[0] + j])
            if ids == worlds.END or ids[0] == collated.NEAREST.student_of_teacher[ids[1]]:
                found[own[0] - 1 + i] = cached.index(other[0] - 1 + j)
    return found


def reference(method: MinED, known: collated.Known, hidden: torch.Tensor, head: worlds.Head) -> dict:
    """ce_sum and kd of one example whose states are `hidden` [N, D_s]."""
    temperature, labels = method.options.temperature, [(at, target) for at, _, target in student_rows(known)]
    images = dict(enumerate(collated.NEAREST.student_of_teacher.tolist())) | {worlds.END[1]: worlds.END[0]}
    found = {"kd": ZERO, "ce_sum": losses.cross_entropy_sum(hidden, head.for_reference(), labels)}
    if known.parts.teachers[0] is None:
        return found
    rows = paired(known)
    for position, target in labels:
        logits = losses.head_logits(hidden[position], head.for_reference())
        student = losses.log_softmax([logit / temperature for logit in logits])
        if position not in rows:
            found["kd"] = found["kd"] - student[target]
            continue
        state = known.teacher_hidden()[rows[position]]
        logits = losses.head_logits(state, laws.teacher_head().for_reference())
        with_image = [one for one in range(len(logits)) if images[one] >= 0]
        log_probs = losses.log_softmax([logits[one] / temperature for one in with_image])
        pushed = [ZERO for _ in student]
        for one, value in zip(with_image, log_probs, strict=True):
            pushed[images[one]] = pushed[images[one]] + value.exp()
        found["kd"] = found["kd"] + losses.divergence([value.log() for value in pushed], student, "forward")
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_slow_reference(case: str) -> None:
    method, head, known = make(**CASES[case]), laws.student_head(), laws.examples()
    known[1] = known[1].without_teacher() if case != "published defaults" else known[1]
    leaves = laws.trained(method, head)
    found, hidden = collated.run(method, [known[0], None, *known[1:]], head)
    gradients = torch.autograd.grad(found.total, [hidden, *leaves])
    slots, totals = (0, 2, 3), collated.totals_of(known)
    states = hidden.detach().clone().requires_grad_(True)
    expected = [
        reference(method, one, states[slot, : len(one.hidden)], head) for one, slot in zip(known, slots, strict=True)
    ]
    alpha = method.options.alpha
    total = sum(alpha * one["ce_sum"] + (1 - alpha) * one["kd"] for one in expected) / totals.labels
    laws.close(found.total, total, "total")
    for name in ("ce_sum", "kd"):
        laws.close(found.per_example[name][[*slots]], torch.stack([one[name] for one in expected]).detach(), name)
        assert float(found.per_example[name][1]) == 0
    num_paired = sum(len(paired(one)) for one in known)
    known_labels = sum(one.num_labels for one in known if one.parts.teachers[0])
    assert int(found.counts["boundaries"]) == num_paired
    assert int(found.counts["labels_one_hot"]) == known_labels - num_paired
    assert 0 < num_paired < known_labels
    for one, other in zip(gradients, torch.autograd.grad(total, [states, *leaves]), strict=True):
        laws.close(one, other, "gradient")


def test_a_pushed_distribution_by_hand() -> None:
    """Three ids of a teacher with p = (0.5, 0.3, 0.2), sent to 1, 1 and nowhere: all of what has an image is at id 1.

    So the divergence from a student that has (0.25, 0.75) is log(1 / 0.75) = 0.287682, and its gradient q - p. Sent to
    1, 0 and 0 instead, P = (0.5, 0.5): 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75) = 0.143841.
    """
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    for images, value, gradient in (([1, 1, -1], 0.287682, [0.25, -0.25]), ([1, 0, 0], 0.143841, [-0.25, 0.25])):
        head = ChunkedHead(torch.eye(3, dtype=torch.float64), None, scale=1.0, softcap=None)
        term = PushforwardTerm(
            logits, head, torch.ones(1), images=torch.tensor(images), student_vocabulary=2, temperature=1.0
        )
        term.begin(0, 1)
        values, slope = term.evaluate(student, 0, 1)
        assert values.tolist() == pytest.approx([value], abs=1e-6)
        assert slope[0].tolist() == pytest.approx(gradient)


def test_a_label_at_a_temperature_by_hand() -> None:
    """Logits (log 4, 0) at T = 2 are (2/3, 1/3): a label that no token pairs with costs log(3/2) nats."""
    method, head = make(), laws.student_head()
    known = collated.make(0, [[(1, 1)]], closes=False)
    batch, hidden = collated.batch_of([known], method)
    pages = batch.teachers[0]
    others = replace(batch.label_rows, targets=torch.zeros_like(batch.label_rows.targets))
    names = ("example", "student_positions", "teacher_positions", "targets")
    none = {name: getattr(pages.aligned, name)[:0] for name in names}
    nothing = replace(pages.aligned, **none, other_labels=others)
    batch = replace(batch, teachers=(replace(pages, aligned=nothing),))
    weight, bias = torch.zeros_like(head.weight)[:2], torch.tensor([math.log(4), 0.0], dtype=torch.float64)
    output = StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, OutputHead(weight, bias))
    found = method(output, batch, StepTotals(1, 1))
    assert float(found.per_example["kd"][0]) == pytest.approx(math.log(1.5))
    assert float(found.per_example["ce_sum"][0]) == pytest.approx(math.log(1.25))


def test_numbers_do_not_depend_on_padding_company_or_order() -> None:
    laws.check_independence(make, terms=TERMS)


def test_micro_batches_add_up_to_the_large_batch() -> None:
    laws.check_micro_batches(make)


def test_two_teachers_are_the_weighted_mean_of_each_alone() -> None:
    laws.check_several_teachers(make, setting, terms=TERMS)


def test_a_batch_the_teacher_lacks_is_cross_entropy_alone() -> None:
    laws.check_lacking_rows(make)


def test_forward_and_backward_never_wait_and_nothing_is_saved() -> None:
    laws.check_no_waits(make)


def test_what_is_asked_for_is_what_is_read() -> None:
    (needs,) = make().needs
    assert (needs.hidden, needs.aligned) == ((worlds.TEACHER_LAYERS,), "edited")
    knowledge = MinED.knowledge_needs(MinEDOptions())
    assert knowledge.head
    assert knowledge.nearest


def test_what_cannot_be_is_refused() -> None:
    for options, message in (
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0: must be a positive finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            MinEDOptions(**options)
    with pytest.raises(ConfigError, match="hold no map by edit distance; run `sra-data align --edit-distance`"):
        make(teachers=[worlds.teacher_setting(laws.teacher_head())])
    with pytest.raises(ConfigError, match="hold no teacher's head"):
        make(teachers=[setting(None)])
    with pytest.raises(ConfigError, match="hold no teacher's pages"):
        MinED(MinEDOptions(), MethodSetting(ModelShape(1, 2, 3)))
    method = make()
    batch, hidden = collated.batch_of(laws.examples(), method)
    batch.teachers[0].hidden.clear()
    with pytest.raises(ShardError, match="its pages hold no hidden states of layer 4"):
        method(StudentOutput({3: hidden}, {}, laws.student_head().live()), batch, StepTotals(1, 1))
