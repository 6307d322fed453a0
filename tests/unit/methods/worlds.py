"""Small random worlds for the methods: examples without padding, the batch made of them, and the reference's losses.

Vocabulary: student ids 0..12, teacher ids 0..16; some share bytes, two teacher ids spell one string, the last id of
each is its end-of-sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sra_data.models.output_head import OutputHead
from sra_train.contract import Batch, LossTerms, MethodSetting, ModelShape, StepTotals, StudentOutput, TeacherKnowledge
from sra_train.methods import SRA
from sra_train.methods.sra import SRAOptions
from tests.reference import losses as slow

STUDENT_VOCABULARY, TEACHER_VOCABULARY = 13, 17
SHARED = [(0, 2), (2, 1), (5, 3), (6, 11), (7, 7), (9, 0), (11, 15)]
DOUBLES = {9: 5, 12: 5, 13: 0}  # teacher ids that spell a shared string too
END = (12, 16)
STUDENT_WIDTH, TEACHER_WIDTH = 6, 8
STUDENT_LAYERS, TEACHER_LAYERS = 3, 4


@dataclass
class Head:
    """A head's numbers, and the package's object of them."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def live(self) -> OutputHead:
        return OutputHead(self.weight, self.bias, self.scale, self.softcap)

    def for_reference(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias, "scale": self.scale, "softcap": self.softcap}


@dataclass
class Example:
    """One example without padding."""

    name: str
    student_hidden: dict[int, Tensor]
    teacher_hidden: dict[int, Tensor]
    student_attention: dict[int, Tensor]
    teacher_attention: dict[int, Tensor]
    student_spans: list[list[int]]
    teacher_spans: list[list[int]]
    ids: list[int]
    label_start: int  # tokens [label_start, label_stop) are labelled
    label_stop: int
    top_k_ids: Tensor | None = None
    top_k_values: Tensor | None = None
    log_tails: dict[float, Tensor] = field(default_factory=dict)

    @property
    def labels(self) -> list[tuple[int, int]]:
        return [(token - 1, self.ids[token]) for token in range(max(self.label_start, 1), self.label_stop)]


def spans_of(sizes: list[int], start: int) -> list[list[int]]:
    spans = []
    for size in sizes:
        spans.append(list(range(start, start + size)))
        start += size
    return spans


def make_example(
    seed: int,
    *,
    sizes: list[tuple[int, int]],
    prompt: int = 2,
    closes: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Example:
    """Spans of the given (student, teacher) sizes after a prompt; `closes`: an end-of-sequence label follows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def attention(tokens: int) -> Tensor:
        weights = torch.rand(tokens, generator=generator, dtype=torch.float64) + 0.01
        return (weights / weights.sum()).to(dtype)

    student_tokens = prompt + sum(s for s, _ in sizes) + int(closes)
    teacher_rows = 1 + sum(t for _, t in sizes)
    ids = torch.randint(0, STUDENT_VOCABULARY, (student_tokens,), generator=generator).tolist()
    if closes:
        ids[-1] = END[0]
    return Example(
        name=f"example-{seed}",
        student_hidden={layer: normal(student_tokens, STUDENT_WIDTH) for layer in range(1, STUDENT_LAYERS + 1)},
        teacher_hidden={layer: normal(teacher_rows, TEACHER_WIDTH) for layer in range(1, TEACHER_LAYERS + 1)},
        student_attention={layer: attention(student_tokens) for layer in range(1, STUDENT_LAYERS + 1)},
        teacher_attention={layer: attention(teacher_rows) for layer in range(1, TEACHER_LAYERS + 1)},
        student_spans=spans_of([s for s, _ in sizes], prompt),
        teacher_spans=spans_of([t for _, t in sizes], 1),
        ids=ids,
        label_start=prompt,
        label_stop=student_tokens,
    )


def make_head(seed: int, rows: int, width: int, **form: Any) -> Head:
    generator = torch.Generator().manual_seed(seed)
    dtype = form.pop("dtype", torch.float64)
    bias = form.pop("bias", False)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    values = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    return Head(weight, values, **form)


def add_top_k(examples: list[Example], head: Head, k: int, temperatures: tuple[float, ...] = (1.0, 2.0)) -> None:
    """Write down the top k of the teacher's next-token distributions, as a cache does (method.md, section 5)."""
    for example in examples:
        logits = head.live().logits(example.teacher_hidden[TEACHER_LAYERS])
        log_probs = torch.log_softmax(logits, 1)
        example.top_k_values, example.top_k_ids = log_probs.topk(k, dim=1)
        left = log_probs.scatter(1, example.top_k_ids, -torch.inf)
        example.log_tails = {one: torch.logsumexp(left / one, 1) for one in temperatures}


def make_batch(
    examples: list[Example | None],
    *,
    extra_tokens: int = 0,
    extra_positions: int = 0,
    extra_spans: int = 0,
    garbage: float = 7.0,
) -> tuple[Batch, dict[int, Tensor], dict[int, Tensor]]:
    """Pad and stack; None is a row that only fills the batch. Padding holds `garbage`, which must not matter."""
    real = [example for example in examples if example is not None]
    num_tokens = max(len(example.ids) for example in real) + extra_tokens
    num_positions = max(len(example.teacher_hidden[1]) for example in real) + extra_positions
    num_spans = max(len(example.student_spans) for example in real) + extra_spans
    dtype = real[0].student_hidden[1].dtype

    def stack(values: list[Tensor | None], size: int, fill: float) -> Tensor:
        like = next(value for value in values if value is not None)
        out = torch.full((len(values), size, *like.shape[1:]), fill, dtype=like.dtype)
        for row, value in enumerate(values):
            if value is not None:
                out[row, : len(value)] = value
        return out

    def column(read: Any, size: int, fill: float) -> Tensor:
        return stack([None if example is None else read(example) for example in examples], size, fill)

    def span_ids(spans: list[list[int]], tokens: int) -> Tensor:
        ids = torch.full((tokens,), -1)
        for place, span in enumerate(spans):
            ids[span] = place
        return ids

    def labels(example: Example) -> Tensor:
        out = torch.full((len(example.ids),), -100)
        out[example.label_start : example.label_stop] = torch.tensor(example.ids)[
            example.label_start : example.label_stop
        ]
        return out

    def per_layer(name: str, layers: int, size: int) -> dict[int, Tensor]:
        return {
            layer: column(lambda example, layer=layer: getattr(example, name)[layer], size, garbage)
            for layer in range(1, layers + 1)
        }

    def empty(size: int, fill: int, example: Example) -> Tensor:
        return torch.full((size,), fill)

    lengths = torch.tensor([num_tokens if example is None else len(example.ids) for example in examples])
    counts = torch.tensor([0 if example is None else len(example.student_spans) for example in examples])
    with_top_k = real[0].top_k_ids is not None
    batch = Batch(
        example_ids=["" if example is None else example.name for example in examples],
        weight=torch.tensor([0.0 if example is None else 1.0 for example in examples], dtype=dtype),
        input_ids=column(lambda example: torch.tensor(example.ids), num_tokens, 0),
        attention_mask=(torch.arange(num_tokens) < lengths[:, None]).long(),
        # A filling row repeats labels on purpose: its weight alone must silence it.
        labels=torch.where(
            (counts[:, None] == 0) & torch.tensor([[example is None] for example in examples]),
            1,
            column(labels, num_tokens, -100),
        ),
        lengths=lengths,
        num_spans=counts,
        span_mask=torch.arange(num_spans) < counts[:, None],
        student_span_ids=column(lambda e: span_ids(e.student_spans, len(e.ids)), num_tokens, -1),
        student_span_last=column(lambda e: torch.tensor([s[-1] for s in e.student_spans]).long(), num_spans, 0),
        teacher_span_ids=column(lambda e: span_ids(e.teacher_spans, len(e.teacher_hidden[1])), num_positions, -1),
        teacher_span_last=column(lambda e: torch.tensor([s[-1] for s in e.teacher_spans]).long(), num_spans, 0),
        teacher_position_mask=column(lambda e: torch.ones(len(e.teacher_hidden[1])), num_positions, 0).bool(),
        teacher_token_index=column(lambda e: torch.arange(len(e.teacher_hidden[1])), num_positions, 0),
        teacher_next_ids=column(lambda e: empty(len(e.teacher_hidden[1]), -1, e), num_positions, -1),
        teacher_hidden=per_layer("teacher_hidden", TEACHER_LAYERS, num_positions),
        teacher_attention={
            layer: weights.abs()
            for layer, weights in per_layer("teacher_attention", TEACHER_LAYERS, num_positions).items()
        },
        top_k_ids=column(lambda e: e.top_k_ids, num_positions, 0) if with_top_k else None,
        top_k_values=column(lambda e: e.top_k_values, num_positions, -1.0) if with_top_k else None,
        log_tails={one: column(lambda e, one=one: e.log_tails[one], num_positions, -1.0) for one in real[0].log_tails}
        if with_top_k
        else None,
    )
    hidden = per_layer("student_hidden", STUDENT_LAYERS, num_tokens)
    attention = {
        layer: weights.abs() for layer, weights in per_layer("student_attention", STUDENT_LAYERS, num_tokens).items()
    }
    return batch, hidden, attention


def totals_of(examples: list[Example | None]) -> StepTotals:
    real = [example for example in examples if example is not None]
    return StepTotals(labels=sum(len(example.labels) for example in real), examples=len(real))


def knowledge(teacher_head: Head | None) -> TeacherKnowledge:
    mapping = torch.full((TEACHER_VOCABULARY,), -1)
    for student_id, teacher_id in SHARED:
        mapping[teacher_id] = student_id
    for teacher_id, student_id in DOUBLES.items():
        mapping[teacher_id] = student_id
    return TeacherKnowledge(
        shared_student_ids=torch.tensor([s for s, _ in SHARED], dtype=torch.int32),
        shared_teacher_ids=torch.tensor([t for _, t in SHARED], dtype=torch.int32),
        head=None if teacher_head is None else teacher_head.live(),
        teacher_to_student=mapping,
        end_of_sequence=END,
    )


def make_method(options: SRAOptions, teacher_head: Head | None, dtype: torch.dtype = torch.float64) -> SRA:
    setting = MethodSetting(
        student=ModelShape(STUDENT_LAYERS, STUDENT_WIDTH),
        teacher=ModelShape(TEACHER_LAYERS, TEACHER_WIDTH),
        knowledge=knowledge(teacher_head),
        seed=3,
    )
    return SRA(options, setting).to(dtype)


def run(
    method: Any, examples: list[Example | None], head: Head, totals: StepTotals | None = None, **padding: Any
) -> LossTerms:
    batch, hidden, attention = make_batch(examples, **padding)
    return method(StudentOutput(hidden, attention, head.live()), batch, totals or totals_of(examples))


def reference(options: SRAOptions, method: SRA, example: Example, head: Head, teacher_head: Head) -> dict[str, Tensor]:
    """ce_sum, cos, geo and kd of one example, by the slow loops; 0 where it has no span."""
    zero = torch.zeros((), dtype=torch.float64)
    found = {"cos": zero, "geo": zero, "kd": zero}
    last = example.student_hidden[STUDENT_LAYERS]
    found["ce_sum"] = slow.cross_entropy_sum(last, head.for_reference(), example.labels)
    if not example.student_spans:
        return found

    def states(side: str, layer: int) -> list[Tensor]:
        hidden, attention = getattr(example, f"{side}_hidden")[layer], getattr(example, f"{side}_attention")[layer]
        return [slow.pooled(hidden, attention, span, options.pooling) for span in getattr(example, f"{side}_spans")]

    def weights(layer: int) -> list[float]:
        return slow.span_weights(example.teacher_attention[layer], example.teacher_spans, options.salience_power)

    for pair, projector in zip(method.pairs, method.projectors, strict=False):
        loss = slow.cos_loss(
            states("student", pair.student), states("teacher", pair.teacher), projector, weights(pair.teacher)
        )
        found["cos"] = found["cos"] + pair.weight * loss
    pair = max(method.pairs, key=lambda one: (one.student, one.teacher))
    if options.geo:
        found["geo"] = slow.geo_loss(
            states("student", pair.student), states("teacher", pair.teacher), weights(pair.teacher)
        )
    if options.kd:
        divergences = [
            _kd_of_span(options, example, head, teacher_head, student, teacher, place)
            for place, (student, teacher) in enumerate(
                zip(states("student", STUDENT_LAYERS), states("teacher", TEACHER_LAYERS), strict=True)
            )
        ]
        found["kd"] = slow.reduced(divergences, weights(pair.teacher), options.kd_reduction)
    return found


def _kd_of_span(
    options: SRAOptions, example: Example, head: Head, teacher_head: Head, student: Tensor, teacher: Tensor, place: int
) -> Tensor:
    pairs = list(SHARED)
    mapping = {t: s for s, t in SHARED} | DOUBLES
    row = example.teacher_spans[place][-1]
    if options.kd_position == "boundary":
        student = example.student_hidden[STUDENT_LAYERS][example.student_spans[place][-1]]
        teacher = example.teacher_hidden[TEACHER_LAYERS][row]
        pairs.append(END)
        mapping[END[1]] = END[0]
    student_logits = slow.head_logits(student, head.for_reference())
    temperature, kind = options.temperature, options.kd_divergence
    if options.kd_source == "top_k":
        ids, values = example.top_k_ids[row].tolist(), example.top_k_values[row]
        tail = float(example.log_tails[temperature][row])
        return slow.kd_top_k(student_logits, ids, values, tail, mapping, temperature, kind)
    teacher_logits = slow.head_logits(teacher, teacher_head.for_reference())
    if options.kd_vocabulary == "rest":
        return slow.kd_rest(student_logits, teacher_logits, mapping, temperature, kind)
    return slow.kd_renormalised(student_logits, teacher_logits, pairs, temperature, kind)
