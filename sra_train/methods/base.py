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
    StepTotals,
    StudentNeeds,
    StudentOutput,
)


class Method(nn.Module, ABC):
    """A training objective. Its parameters (projectors) are trained beside the student's."""

    name: ClassVar[str]
    options_type: ClassVar[type[BaseModel]]

    @classmethod
    @abstractmethod
    def knowledge_needs(cls, options: Any) -> KnowledgeNeeds | None:
        """What the method wants to know of each teacher when it is built; None: it has no teacher."""

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
