"""Which names `evaluation.metric` may have: what the run will measure, known before it starts.

All but two kinds are known from the configuration alone: a teacher's folder has its name in the shards, and only the
student's own configuration says whether it has a router.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sra_data.errors import ConfigError

if TYPE_CHECKING:
    from sra_train.config.sections import TrainConfig

ROUTER = "router"  # of a mixture of experts


def metric_names(config: TrainConfig, teachers: Sequence[str] = (), *, has_router: bool = True) -> list[str]:
    """What every evaluation of a run measures.

    Args:
        config: of the run.
        teachers: names of its folders of pages, where there are several: each has its own terms.
        has_router: whether the student is a mixture of experts.
    """
    from sra_train.methods.base import method_type

    terms = method_type(config.method.name).term_names(config.method.options)
    several = teachers if len(teachers) > 1 else ()
    names = ["loss", "bits_per_byte", "ce", *terms, *(f"{term}[{name}]" for term in terms for name in several)]
    generation = config.evaluation.generation
    sets = list(generation.sets) if generation is not None else []
    rouge = ["rouge_l", *(f"rouge_l.{name}" for name in sets)] if sets else []
    return [*names, *([ROUTER] if has_router else []), *rouge]


def refuse_metric(config: TrainConfig, teachers: Sequence[str] | None = None, *, has_router: bool = True) -> None:
    """Refuse to choose the best weights by what is not measured.

    Args:
        config: of the run.
        teachers: as above; None where they are not known yet, when a term may be of any of several.
        has_router: as above.

    Raises:
        ConfigError: With the nearest name that is measured.
    """
    metric = config.evaluation.metric
    names = metric_names(config, teachers or (), has_router=has_router)
    term, bracket, _ = metric.partition("[")
    is_of_a_teacher = bool(bracket) and metric.endswith("]") and len(config.data.teachers) > 1
    if metric in names or (teachers is None and is_of_a_teacher and term in names):
        return
    if metric.startswith("rouge") and "rouge_l" not in names:
        raise ConfigError(f"evaluation.metric={metric}: nothing is generated; name sets in evaluation.generation.sets")
    near = difflib.get_close_matches(metric, names, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
    raise ConfigError(f"evaluation.metric={metric}: not measured in this run; {remedy}")
