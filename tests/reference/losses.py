"""The losses of method.md, section 5, written down one number at a time.

Independent of the package: nothing of it is imported, no vectorised trick is shared. Everything is a Python loop over
float64 scalars or rows, and differentiable by torch, so that values AND gradients can be compared. Slow on purpose.

Legend: an example is a dictionary of float64 tensors without padding:
    student_hidden {layer: [N, D_s]}, teacher_hidden {layer: [P, D_t]}, student_attention {layer: [N]},
    teacher_attention {layer: [P]}, student_spans / teacher_spans: lists of lists of token indices,
    labels: list of (position that predicts, id).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(a, b, strict=True):
        total = total + x * y
    return total


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())


def log_softmax(values: list[Tensor]) -> list[Tensor]:
    largest = max(float(value.detach()) for value in values)
    if largest == -math.inf:
        raise AssertionError("a distribution without any outcome")
    normaliser = largest + torch.log(sum((value - largest).exp() for value in values))
    return [value - normaliser for value in values]


def log_sum_exp(values: list[Tensor]) -> Tensor:
    finite = [value for value in values if float(value.detach()) > -math.inf]
    if not finite:
        return torch.tensor(-math.inf, dtype=torch.float64)
    largest = max(float(value.detach()) for value in finite)
    return largest + torch.log(sum((value - largest).exp() for value in finite))


def pooled(hidden: Tensor, attention: Tensor | None, span: list[int], pooling: str) -> Tensor:
    """C_k of one span: sum of a_t H_t over sum of a_t, the mean, or the last token."""
    if pooling == "last":
        return hidden[span[-1]]
    weights = [1.0 if pooling == "mean" else float(attention[token]) for token in span]
    mass = sum(weights)
    if mass == 0:
        weights, mass = [1.0] * len(span), float(len(span))
    total = torch.zeros_like(hidden[0])
    for weight, token in zip(weights, span, strict=True):
        total = total + weight * hidden[token]
    return total / mass


def span_weights(attention: Tensor | None, spans: list[list[int]], power: float) -> list[float]:
    """w_k = mass_k^p / sum mass_j^p of the teacher."""
    if power == 0:
        return [1 / len(spans)] * len(spans)
    masses = [sum(float(attention[token]) for token in span) for span in spans]
    if sum(masses) == 0:
        return [1 / len(spans)] * len(spans)
    powered = [mass**power for mass in masses]
    return [one / sum(powered) for one in powered]


def cos_loss(student: list[Tensor], teacher: list[Tensor], projector: Tensor, weights: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c_student, c_teacher, weight in zip(student, teacher, weights, strict=True):
        projected = torch.stack([dot(c_student, projector[:, column]) for column in range(projector.shape[1])])
        total = total + weight * (1 - cosine(projected, c_teacher))
    return total


def geo_loss(student: list[Tensor], teacher: list[Tensor], weights: list[float]) -> Tensor:
    pairs = [(i, j) for i in range(len(weights)) for j in range(len(weights)) if i != j]
    off_diagonal = sum(weights[i] * weights[j] for i, j in pairs)
    total = torch.zeros((), dtype=torch.float64)
    if off_diagonal < 1e-12:
        return total
    for i, j in pairs:
        difference = cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])
        total = total + weights[i] * weights[j] / off_diagonal * difference**2
    return total


def head_logits(hidden: Tensor, head: dict) -> list[Tensor]:
    """softcap x tanh(scale (W h + b) / softcap), one id at a time."""
    logits = []
    for row in range(head["weight"].shape[0]):
        logit = dot(head["weight"][row], hidden)
        if head.get("bias") is not None:
            logit = logit + head["bias"][row]
        logit = logit * head.get("scale", 1.0)
        if head.get("softcap") is not None:
            logit = head["softcap"] * torch.tanh(logit / head["softcap"])
        logits.append(logit)
    return logits


def divergence(teacher: list[Tensor], student: list[Tensor], kind: str) -> Tensor:
    """Of two lists of log-probabilities; an outcome of probability 0 contributes 0 (reverse: if the TEACHER's is)."""
    total = torch.zeros((), dtype=torch.float64)
    for log_p, log_q in zip(teacher, student, strict=True):
        p, q = log_p.exp(), log_q.exp()
        if kind == "forward":
            if float(log_p.detach()) > -math.inf:
                total = total + p * (log_p - log_q)
        elif kind == "reverse":
            if float(log_p.detach()) > -math.inf and float(log_q.detach()) > -math.inf:
                total = total + q * (log_q - log_p)
        else:
            log_m = torch.log((p + q) / 2)
            if float(log_p.detach()) > -math.inf:
                total = total + 0.5 * p * (log_p - log_m)
            if float(log_q.detach()) > -math.inf:
                total = total + 0.5 * q * (log_q - log_m)
    return total


def kd_renormalised(student: list[Tensor], teacher: list[Tensor], pairs: list, temperature: float, kind: str) -> Tensor:
    """Both softmaxes over the shared pairs (student id, teacher id) only."""
    log_q = log_softmax([student[s] / temperature for s, _ in pairs])
    log_p = log_softmax([teacher[t] / temperature for _, t in pairs])
    return divergence(log_p, log_q, kind)


def kd_rest(student: list[Tensor], teacher: list[Tensor], mapping: dict, temperature: float, kind: str) -> Tensor:
    """Over the strings both have and one rest; `mapping` takes teacher ids to the student's id of the same bytes."""
    log_q = log_softmax([logit / temperature for logit in student])
    log_p = log_softmax([logit / temperature for logit in teacher])
    shared = sorted(set(mapping.values()))
    student_outcomes = [log_q[s] for s in shared]
    teacher_outcomes = [log_sum_exp([log_p[t] for t in mapping if mapping[t] == s]) for s in shared]
    student_outcomes.append(log_sum_exp([log_q[s] for s in range(len(log_q)) if s not in shared]))
    teacher_outcomes.append(log_sum_exp([log_p[t] for t in range(len(log_p)) if t not in mapping]))
    return divergence(teacher_outcomes, student_outcomes, kind)


def kd_top_k(
    student: list[Tensor], ids: list[int], values: Tensor, log_tail: float, mapping: dict, temperature: float, kind: str
) -> Tensor:
    """Over the top-k ids that have a counterpart, ids of one string added up, and one rest."""
    tail = torch.tensor(log_tail, dtype=torch.float64)
    log_p = log_softmax([value / temperature for value in values] + [tail])
    matched = sorted({mapping[t] for t in ids if t in mapping})
    teacher_outcomes = [
        log_sum_exp([log_p[place] for place, t in enumerate(ids) if mapping.get(t) == s]) for s in matched
    ]
    teacher_outcomes.append(
        log_sum_exp([log_p[place] for place, t in enumerate(ids) if t not in mapping] + [log_p[-1]])
    )
    log_q = log_softmax([logit / temperature for logit in student])
    student_outcomes = [log_q[s] for s in matched]
    student_outcomes.append(log_sum_exp([log_q[s] for s in range(len(log_q)) if s not in matched]))
    return divergence(teacher_outcomes, student_outcomes, kind)


def cross_entropy_sum(hidden: Tensor, head: dict, labels: list[tuple[int, int]]) -> Tensor:
    """Sum of -log p over the labels; each is (position that predicts, id)."""
    total = torch.zeros((), dtype=torch.float64)
    for position, target in labels:
        total = total - log_softmax(head_logits(hidden[position], head))[target]
    return total


def reduced(values: list[Tensor], weights: list[float], reduction: str) -> Tensor:
    """Spans of one example: their sum, their mean, or weighted by salience."""
    total = torch.zeros((), dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        factor = {"sum": 1.0, "mean": 1 / len(values), "salience": weight}[reduction]
        total = total + factor * value
    return total
