"""L_KD over events about the bytes that follow a boundary: what it equals, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from sra_data.errors import ConfigError
from sra_train.contract import MethodSetting, ModelShape
from sra_train.methods.sra import SRA, SRAOptions
from sra_train.methods.terms.events import Events
from tests.reference import losses as slow
from tests.unit.methods import worlds

BOUNDARY = {"cos": False, "geo": False, "kd_position": "boundary"}


def heads() -> tuple[worlds.Head, worlds.Head]:
    student = worlds.make_head(1, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    return student, worlds.make_head(2, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)


def examples():
    return [worlds.make_example(seed, sizes=[(1, 2), (2, 1), (1, 1)]) for seed in range(3)]


def kd(**options) -> torch.Tensor:
    student, teacher = heads()
    method = worlds.make_method(SRAOptions(**BOUNDARY, **options), teacher)
    return worlds.run(method, examples(), student).per_example["kd"]


@pytest.mark.parametrize("divergence", ["forward", "js"])
@pytest.mark.parametrize("vocabulary", ["byte_prefix", "first_piece"])
def test_a_map_that_is_the_shared_vocabulary_gives_rest(vocabulary, divergence):
    with_rest = kd(kd_vocabulary="rest", kd_divergence=divergence)
    torch.testing.assert_close(
        kd(kd_vocabulary=vocabulary, kd_divergence=divergence), with_rest, rtol=1e-10, atol=1e-12
    )


def test_next_bytes_are_compared_with_end_of_sequence_as_one_more_event():
    student, teacher = heads()
    found = kd(kd_vocabulary="next_byte", temperature=1.5)
    for example, value in zip(examples(), found, strict=True):
        total = 0.0
        for student_span, teacher_span in zip(example.student_spans, example.teacher_spans, strict=True):
            states = (
                example.student_hidden[worlds.STUDENT_LAYERS][student_span[-1]],
                example.teacher_hidden[worlds.TEACHER_LAYERS][teacher_span[-1]],
            )
            q, p = (
                torch.softmax(torch.stack(slow.head_logits(state, head.for_reference())) / 1.5, 0)
                for state, head in zip(states, (student, teacher), strict=True)
            )
            for event in range(3):  # the three bytes ids begin with in turn
                a, b = p[:-1][event::3].sum(), q[:-1][event::3].sum()
                total = total + a * (a.log() - b.log())
            total = total + p[-1] * (p[-1].log() - q[-1].log())
        torch.testing.assert_close(value, total, rtol=1e-10, atol=1e-12)


def test_the_gradient_reaches_the_student_and_no_teacher():
    student, teacher = heads()
    for head in (student, teacher):
        head.weight.requires_grad_()
    method = worlds.make_method(SRAOptions(**BOUNDARY, kd_vocabulary="next_byte"), teacher)
    worlds.run(method, examples(), student).total.backward()
    assert student.weight.grad.abs().sum() > 0
    assert teacher.weight.grad is None


@pytest.mark.parametrize("wrong", [{"kd_position": "center_of_mass"}, {"kd_source": "top_k"}])
@pytest.mark.parametrize("vocabulary", ["first_piece", "byte_prefix", "next_byte"])
def test_events_are_only_those_behind_a_boundary_in_a_whole_distribution(vocabulary, wrong):
    with pytest.raises(ConfigError, match=f"kd_vocabulary={vocabulary}.*set kd_position=boundary and kd_source=head"):
        SRAOptions(**{"kd_position": "boundary", "kd_source": "head", "kd_vocabulary": vocabulary, **wrong})


def test_shards_without_a_map_are_refused_with_the_command_that_makes_it():
    _, teacher = heads()
    known = worlds.teacher_setting(teacher)
    bare = replace(known, knowledge=replace(known.knowledge, images=None))
    student = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    message = "kd_vocabulary=next_byte: the shards hold no map of ids; run `sra-data align`"
    with pytest.raises(ConfigError, match=message):
        SRA(SRAOptions(**BOUNDARY, kd_vocabulary="next_byte"), MethodSetting(student, (bare,)))


def test_two_ids_of_one_role_are_an_event_of_their_own():
    events = Events(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 2).with_pair(2, 0)
    assert events.count == 3
    assert events.student.tolist() == [0, 2, 1]
    assert events.teacher.tolist() == [1, 0, 2]
