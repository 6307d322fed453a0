"""Small random worlds for the methods: examples without padding, the batch made of them, and the reference's losses.

Vocabulary: student ids 0..12, teacher ids 0..16; some share bytes, two teacher ids spell one string, the last id of
each is its end-of-sequence. An example has one teacher; `another_teacher` gives the same example with another one's
spans and states, and a batch may have several such lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sra_data.models.output_head import OutputHead
from sra_train.contract import (
    Images,
    LossTerms,
    MethodSetting,
    ModelShape,
    StepTotals,
    StudentOutput,
    TeacherKnowledge,
    TeacherSetting,
)
from sra_train.methods import SRA
from sra_train.methods.sra import SRAOptions
from tests.reference import losses as slow
from tests.unit.methods.batches import make_batch
from tests.unit.methods.examples import END, Example

STUDENT_VOCABULARY, TEACHER_VOCABULARY = 13, 17
SHARED = [(0, 2), (2, 1), (5, 3), (6, 11), (7, 7), (9, 0), (11, 15)]
DOUBLES = {9: 5, 12: 5, 13: 0}  # teacher ids that spell a shared string too
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
    teacher_width: int = TEACHER_WIDTH,
    teacher_layers: int = TEACHER_LAYERS,
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
        teacher_hidden={layer: normal(teacher_rows, teacher_width) for layer in range(1, teacher_layers + 1)},
        student_attention={layer: attention(student_tokens) for layer in range(1, STUDENT_LAYERS + 1)},
        teacher_attention={layer: attention(teacher_rows) for layer in range(1, teacher_layers + 1)},
        student_spans=spans_of([s for s, _ in sizes], prompt),
        teacher_spans=spans_of([t for _, t in sizes], 1),
        ids=ids,
        label_start=prompt,
        label_stop=student_tokens,
        closes=closes,
    )


def another_teacher(example: Example, seed: int, *, sizes: list[tuple[int, int]], **form: Any) -> Example:
    """The same example with another teacher's spans, states and attention."""
    closes = example.ids[-1] == END[0] and example.label_stop == len(example.ids)
    other = make_example(seed, sizes=sizes, prompt=example.label_start, closes=closes, **form)
    assert len(other.ids) == len(example.ids)
    return replace(
        other,
        name=example.name,
        student_hidden=example.student_hidden,
        student_attention=example.student_attention,
        ids=example.ids,
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
        logits = head.live().logits(example.teacher_hidden[max(example.teacher_hidden)])
        log_probs = torch.log_softmax(logits, 1)
        example.top_k_values, example.top_k_ids = log_probs.topk(k, dim=1)
        left = log_probs.scatter(1, example.top_k_ids, -torch.inf)
        example.log_tails = {one: torch.logsumexp(left / one, 1) for one in temperatures}


def totals_of(examples: list[Example | None]) -> StepTotals:
    real = [example for example in examples if example is not None]
    return StepTotals(labels=sum(len(example.labels) for example in real), examples=len(real))


@dataclass(frozen=True)
class Tokenizer:
    """A teacher's vocabulary, as the student's sees it."""

    size: int = TEACHER_VOCABULARY
    shared: tuple[tuple[int, int], ...] = tuple(SHARED)
    doubles: dict[int, int] = field(default_factory=lambda: DOUBLES)
    end: tuple[int, int] = END


def knowledge(teacher_head: Head | None, tokenizer: Tokenizer | None = None) -> TeacherKnowledge:
    tokenizer = tokenizer or Tokenizer()
    mapping = torch.full((tokenizer.size,), -1)
    for student_id, teacher_id in tokenizer.shared:
        mapping[teacher_id] = student_id
    for teacher_id, student_id in tokenizer.doubles.items():
        mapping[teacher_id] = student_id
    return TeacherKnowledge(
        shared_student_ids=torch.tensor([s for s, _ in tokenizer.shared], dtype=torch.int32),
        shared_teacher_ids=torch.tensor([t for _, t in tokenizer.shared], dtype=torch.int32),
        head=None if teacher_head is None else teacher_head.live(),
        teacher_to_student=mapping,
        end_of_sequence=tokenizer.end,
        images=Images(
            byte_prefix=mapping,
            first_piece=mapping,
            teacher_first_byte=first_bytes(tokenizer.size),
            student_first_byte=first_bytes(STUDENT_VOCABULARY),
        ),
    )


def first_bytes(size: int) -> Tensor:
    """Three bytes in turn; the last id, end-of-sequence, stands for none."""
    first = torch.arange(size) % 3 + 97
    first[-1] = -1
    return first


def teacher_setting(
    teacher_head: Head | None,
    *,
    name: str = "teacher-0",
    weight: float = 1.0,
    layers: int = TEACHER_LAYERS,
    tokenizer: Tokenizer | None = None,
) -> TeacherSetting:
    width = TEACHER_WIDTH if teacher_head is None else teacher_head.weight.shape[1]
    shape = ModelShape(layers, width, (tokenizer or Tokenizer()).size)
    return TeacherSetting(name, weight, shape, knowledge(teacher_head, tokenizer))


def make_method(
    options: SRAOptions,
    teacher_head: Head | None,
    dtype: torch.dtype = torch.float64,
    *,
    teachers: Sequence[TeacherSetting] | None = None,
) -> SRA:
    """SRA with the usual teacher, or with `teachers`."""
    setting = MethodSetting(
        student=ModelShape(STUDENT_LAYERS, STUDENT_WIDTH, STUDENT_VOCABULARY),
        teachers=tuple(teachers or [teacher_setting(teacher_head)]),
        seed=3,
    )
    return SRA(options, setting).to(dtype)


def run(
    method: Any, examples: list[Example | None], head: Head, totals: StepTotals | None = None, **padding: Any
) -> LossTerms:
    rows = {"aligned": method.needs[0].aligned, "chunks": method.needs[0].chunks} if method.needs else {}
    batch, hidden, attention = make_batch(examples, **(rows | padding))
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

    teacher = method.teachers[0]
    for pair, projector in zip(teacher.pairs, teacher.projectors, strict=False):
        loss = slow.cos_loss(
            states("student", pair.student), states("teacher", pair.teacher), projector, weights(pair.teacher)
        )
        found["cos"] = found["cos"] + pair.weight * loss
    pair = max(teacher.pairs, key=lambda one: (one.student, one.teacher))
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
