"""What every method is: tensors in, loss terms out; and the one place where methods are registered.

A method reads the student's hidden states and the cached words of its teachers and returns the step's loss. It opens
no file, knows no device, draws no random number outside its constructor and makes no host wait for a device. What goes
in and out stands in `sra_train/contract.py`. To add a method, write one file with its options and a class under
``@register("name")``, and import it in ``sra_train/methods/__init__.py``; what several methods share stands in
`methods/terms`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel
from torch import nn

from sra_data.errors import ConfigError
from sra_train.contract import (
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    LossTerms,
    MethodSetting,
    StepTotals,
    StudentNeeds,
    StudentOutput,
    TeacherSetting,
)
from sra_train.methods.terms.teachers import Taught, together


class Method(nn.Module, ABC):
    """A training objective. Its parameters (projectors) are trained beside the student's."""

    name: ClassVar[str]
    options_type: ClassVar[type[BaseModel]]

    @classmethod
    @abstractmethod
    def knowledge_needs(cls, options: Any) -> KnowledgeNeeds | None:
        """What the method wants to know of each teacher when it is built; None: it has no teacher."""

    @classmethod
    @abstractmethod
    def term_names(cls, options: Any) -> tuple[str, ...]:
        """Names of the terms with these options, beside the cross entropy ``ce`` that every method has."""

    @property
    @abstractmethod
    def needs(self) -> tuple[CacheNeeds, ...]:
        """What the reader must load of each teacher, in order; empty for a method without a teacher."""

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


class TaughtMethod(Method):
    """A method whose loss is cross entropy and what each teacher adds to it, weighted; nothing lies between teachers.

    A teacher is a module with `name`, `weight`, `needs` and a forward that answers with `Taught`; the first one is
    asked for the cross entropy too, which then comes out of the same pass over the student's head.

    Attributes:
        per_label: terms that are divided by the labels of the step; the others are by its examples.
    """

    def __init__(self, options: Any, setting: MethodSetting, make: Callable[[TeacherSetting], nn.Module]) -> None:
        """`make` builds the part of one teacher. Refuses to be without one (ConfigError)."""
        super().__init__()
        if not setting.teachers:
            raise ConfigError(f"method={self.name}: the shards hold no teacher's pages; run `sra-data cache-teacher`")
        self.options, self.last_layer = options, setting.student.num_layers
        self.teachers: Any = nn.ModuleList(make(teacher) for teacher in setting.teachers)
        self.per_label: frozenset[str] = frozenset()

    @property
    def needs(self) -> tuple[CacheNeeds, ...]:
        return tuple(teacher.needs for teacher in self.teachers)

    @property
    def student_needs(self) -> StudentNeeds:
        return StudentNeeds(layers=(self.last_layer,))

    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The loss of one micro-batch.

        Raises:
            ShardError: If the batch lacks a column of the cache that the options read.
        """
        found: list[Taught] = [
            teacher(output, batch, pages, totals, with_labels=place == 0)
            for place, (teacher, pages) in enumerate(zip(self.teachers, batch.teachers, strict=True))
        ]
        shares = {teacher.name: teacher.weight for teacher in self.teachers}
        return together(found, shares, batch, totals, per_label=self.per_label)


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
