"""What every method is: tensors in, loss terms out; and the one place where methods are registered.

A method reads the student's hidden states and the cached words of the teacher and returns the step's loss. It opens no
file, knows no device and draws no random number outside its constructor. To add a method, write one file with a class
under ``@register("name")`` and import it in ``sra_train/methods/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from sra_data.errors import ConfigError

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead
    from sra_train.data.batch import Batch, StepTotals, StudentOutput


@dataclass(frozen=True)
class CacheNeeds:
    """The columns of the teacher's pages that a method reads; the reader loads these and nothing else."""

    layers: tuple[int, ...] = ()  # teacher layers whose hidden states or attention are read
    hidden: bool = False
    attention: bool = False
    top_k: bool = False
    log_tail_temperatures: tuple[float, ...] = ()  # temperatures whose log tail goes with the top k
    teacher_ids: bool = False
    embeddings: bool = False
    head: bool = False
    token_rows: str = ""  # the option that reads rows of single tokens, which pages cached by spans do not hold
    span_rows: str = ""  # the option that reads distributions at centres of mass, which only those hold

    @property
    def nothing(self) -> bool:
        """Whether the teacher's pages need not be opened at all."""
        return not (self.hidden or self.attention or self.top_k or self.teacher_ids or self.embeddings or self.head)


@dataclass(frozen=True)
class StudentNeeds:
    """What the student's forward has to hand over."""

    layers: tuple[int, ...]  # hidden states of these layers
    attention_layers: tuple[int, ...] = ()  # last-query attention of these layers


@dataclass
class LossTerms:
    """The loss of one micro-batch and what it is made of.

    `per_example` holds sums of one example that depend on nothing but that example: ``ce_sum`` (nats), ``labels``,
    and for SRA ``cos``, ``geo``, ``kd`` (unweighted). `counts` are events worth showing, such as spans whose attention
    mass vanished.
    """

    total: Tensor  # scalar with gradient
    terms: dict[str, Tensor]  # detached scalars, each normalised as in `total` but before its coefficient
    per_example: dict[str, Tensor]  # [B] float32, detached
    counts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars


class Method(nn.Module, ABC):
    """A training objective. Its parameters (projectors) are trained beside the student's."""

    name: ClassVar[str]
    options_type: ClassVar[type[BaseModel]]

    @property
    @abstractmethod
    def needs(self) -> CacheNeeds:
        """What the reader must load."""

    @property
    @abstractmethod
    def student_needs(self) -> StudentNeeds:
        """What the student must return."""

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The student's layers whose hidden states are read."""
        return self.student_needs.layers

    @abstractmethod
    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The loss of one micro-batch, normalised by the totals of the global step."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model; layer `num_layers` is the last one, after the final norm."""

    num_layers: int
    hidden_size: int


@dataclass(frozen=True)
class TeacherKnowledge:
    """What a method knows of the teacher beside the batch: constant during training.

    `shared_student_ids` and `shared_teacher_ids` [V] are pairs of ids with equal bytes (method.md, section 6).
    `head` is the teacher's with ALL its rows; the method cuts out what it reads and keeps that as frozen buffers.
    `teacher_to_student` [teacher vocabulary] maps every teacher id to the student's id that
    stands for its bytes, -1 without one; several teacher ids may share one. `end_of_sequence` is the pair
    (student id, teacher id), a pair by role at kd_position=boundary.
    """

    shared_student_ids: Tensor
    shared_teacher_ids: Tensor
    head: OutputHead | None = None
    teacher_to_student: Tensor | None = None
    end_of_sequence: tuple[int, int] | None = None


@dataclass(frozen=True)
class MethodSetting:
    """Everything a method is built from: its options, the shapes of both models and the teacher's knowledge."""

    student: ModelShape
    teacher: ModelShape | None = None
    knowledge: TeacherKnowledge | None = None
    seed: int = 0  # of the projectors' initial values


METHODS: dict[str, type[Method]] = {}
MethodType = TypeVar("MethodType", bound=type[Method])


def register(name: str) -> Callable[[MethodType], MethodType]:
    """Make a method known under `name`."""

    def remember(method: MethodType) -> MethodType:
        assert name not in METHODS, f"two methods are called {name}"
        method.name = name
        METHODS[name] = method
        return method

    return remember


def method_type(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        ConfigError: If there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"method={name}: no such method; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]
