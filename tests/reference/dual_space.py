"""Dual-space distillation, one number at a time: cross-model attention (DSKD) and projected states (DSKD v2).

Independent of the package, as `losses.py` is, whose slow heads and divergences it uses. Everything is float64 and
differentiable by torch. An example here is a few lists: of rows that predict a label, each (position, the id read last
there, the id predicted).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.losses import divergence, dot, head_logits, log_softmax

Row = tuple[int, int, int]  # position, id read last, id predicted
ZERO = torch.zeros((), dtype=torch.float64)


def times(vector: Tensor, matrix: Tensor) -> Tensor:
    return torch.stack([dot(vector, matrix[:, column]) for column in range(matrix.shape[1])])


def over_deviation(rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows over the (unbiased) standard deviation of all their numbers together."""
    numbers = [float(number.detach()) for row in rows for number in row]
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    return [row / math.sqrt(variance) for row in rows]


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    return [value.exp() for value in log_softmax(list(scores))]


def frozen(head: dict) -> dict:
    return {**head, "weight": head["weight"].detach(), "bias": None if head["bias"] is None else head["bias"].detach()}


def at(logits: Sequence[Tensor], temperature: float) -> list[Tensor]:
    return log_softmax([logit / temperature for logit in logits])


def likeliest(logits: Sequence[Tensor]) -> int:
    values = [float(logit.detach()) for logit in logits]
    return values.index(max(values))


def carried(
    student: Sequence[Row],
    teacher: Sequence[Row],
    *,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_embedding: Callable[[int], Tensor],
    teacher_embedding: Callable[[int], Tensor],
    query: Tensor,
    to_student: Tensor,
    to_teacher: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's states at the student's rows, and the student's at the teacher's."""
    queries = [times(torch.cat([student_embedding(x), student_embedding(y)]), query) for _, x, y in student]
    keys = over_deviation([torch.cat([teacher_embedding(x), teacher_embedding(y)]) for _, x, y in teacher])
    states = over_deviation([teacher_hidden[position] for position, _, _ in teacher])
    predicted = over_deviation([teacher_embedding(y) for _, _, y in teacher])
    of_teacher = [times(h + e, to_student) for h, e in zip(states, predicted, strict=True)]
    of_student = [times(student_hidden[position], to_teacher) for position, _, _ in student]
    scores = [[dot(q, k) / math.sqrt(len(k)) for k in keys] for q in queries]
    for_student, for_teacher = [], []
    for row in scores:
        weights = softmax(row)
        for_student.append(sum(w * value for w, value in zip(weights, of_teacher, strict=True)))
    for column in range(len(keys)):
        weights = softmax([row[column] for row in scores])
        for_teacher.append(sum(w * value for w, value in zip(weights, of_student, strict=True)))
    return for_student, for_teacher


def dskd(
    student: Sequence[Row],
    teacher: Sequence[Row],
    *,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: dict,
    teacher_head: dict,
    temperature: float,
    kind: str,
    where: str,
    **attention: object,
) -> dict[str, Tensor]:
    """ce_mapped, kd_student, kd_teacher of one example, and how many rows the mapped states get right."""
    found = {"ce_mapped": ZERO, "kd_student": ZERO, "kd_teacher": ZERO, "right": 0}
    if not teacher or not student:
        return found
    for_student, for_teacher = carried(
        student, teacher, student_hidden=student_hidden, teacher_hidden=teacher_hidden, **attention
    )
    for (position, _, target), mapped in zip(student, for_student, strict=True):
        logits = head_logits(mapped, frozen(student_head))
        found["ce_mapped"] = found["ce_mapped"] - log_softmax(logits)[target]
        is_right = likeliest(logits) == target
        found["right"] += is_right
        if is_right or where == "all":
            taught = at(head_logits(mapped.detach(), frozen(student_head)), temperature)
            own = at(head_logits(student_hidden[position], student_head), temperature)
            found["kd_student"] = found["kd_student"] + divergence(taught, own, kind)
    for (position, _, _), mapped in zip(teacher, for_teacher, strict=True):
        taught = at(head_logits(teacher_hidden[position], frozen(teacher_head)), temperature)
        own = at(head_logits(mapped, frozen(teacher_head)), temperature)
        found["kd_teacher"] = found["kd_teacher"] + divergence(taught, own, "forward")
    return found


def dskdv2(
    pairs: Sequence[tuple[int, int]],
    *,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: dict,
    teacher_head: dict,
    mapping: dict[int, int],
    to_student: Tensor,
    to_teacher: Tensor,
    temperature: float,
    kind: str,
    where: str,
) -> dict[str, Tensor]:
    """The same three of one example whose rows are `pairs` of positions (student's, teacher's)."""
    found = {"ce_mapped": ZERO, "kd_student": ZERO, "kd_teacher": ZERO, "right": 0}
    for own_position, other_position in pairs:
        teacher_logits = head_logits(teacher_hidden[other_position], frozen(teacher_head))
        target = mapping.get(likeliest(teacher_logits))
        if target is None:
            continue
        mapped = times(teacher_hidden[other_position], to_student)
        logits = head_logits(mapped, frozen(student_head))
        found["ce_mapped"] = found["ce_mapped"] - log_softmax(logits)[target]
        is_right = likeliest(logits) == target
        found["right"] += is_right
        if is_right or where == "all":
            taught = at([logit.detach() for logit in logits], temperature)
            own = at(head_logits(student_hidden[own_position], student_head), temperature)
            found["kd_student"] = found["kd_student"] + divergence(taught, own, kind)
        projected = times(student_hidden[own_position], to_teacher)
        own = at(head_logits(projected, frozen(teacher_head)), temperature)
        found["kd_teacher"] = found["kd_teacher"] + divergence(at(teacher_logits, temperature), own, kind)
    return found
