"""What `estimate` may be asked. Nothing heavy is imported: the command line makes its options from these fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sra_data.errors import ConfigError
from sra_data.options import option
from sra_data.stages.cache.options import CacheOptions, check_options
from sra_data.stages.estimate.accelerators import accelerator_of

# What only matters once the work is done.
NOT_OF_ESTIMATE = ("workers", "engine", "units", "max_failed", "tensor_parallel", "workspace")
ONLY_WITH_FLEET = ("utilisation", "write_rate", "store_rate", "price")
UTILISATION, WRITE_RATE = 0.4, 0.3  # what is assumed where nothing is said, or timed


@dataclass(frozen=True)
class EstimateOptions:
    """What to estimate.

    Attributes:
        cache: the options `cache-teacher` would be given.
        epochs, students: of the training planned.
        is_timed: run the teacher on a sample.
        seconds: how long that may take, about.
        examples: plan for so many like those of the folder; None for those.
        gpus: accelerators to plan for; gpu their kind, whose hours are arithmetic. With a number and no kind, so many
            machines like this one are meant, and this one is timed.
        utilisation: share of an accelerator's dense bf16 peak.
        write_rate: GB a second that each process encodes, checks and writes.
        store_rate: GB a second that the store takes from all of them together; None for no limit.
        price: of an accelerator for an hour.
    """

    cache: CacheOptions = field(default_factory=CacheOptions)
    epochs: int = option(10, "Epochs planned for each student.")
    students: int = option(1, "Students planned: models, settings, seeds.")
    is_timed: bool = option(True, "Run the teacher on a few examples.", name="time")
    seconds: float = option(20.0, "How long that may take, about.")
    examples: int | None = option(None, "Plan for so many examples like the folder's (default: those).")
    gpu: str | None = option(None, "Plan for accelerators of this kind: a100, h100, h200, ...; see docs/scale.md.")
    gpus: int | None = option(None, "Plan for so many (default: 1); without --gpu, for machines like this one.")
    utilisation: float | None = option(None, f"Share of their dense bf16 peak (default: {UTILISATION}).")
    write_rate: float | None = option(
        None, f"GB/s that each process encodes, checks and writes (default: as timed, else {WRITE_RATE})."
    )
    store_rate: float | None = option(None, "GB/s that the store takes from all of them (default: no limit).")
    price: float | None = option(None, "Of one for an hour, in your currency (default: no price is said).")

    @property
    def is_planned(self) -> bool:
        """Whether hours of more than this machine are asked for."""
        return self.gpu is not None or self.gpus is not None


def check_estimate(options: EstimateOptions) -> None:
    """Refuse options that cannot be carried out.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    check_options(options.cache)
    for name in ("epochs", "students", "seconds", "examples", "gpus", *ONLY_WITH_FLEET):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if options.utilisation is not None and options.utilisation > 1:
        raise ConfigError(f"--utilisation {options.utilisation}: must be at most 1: a share of the peak")
    if options.gpu is not None:
        accelerator_of(options.gpu)
    elif options.gpus is not None and not options.is_timed:
        raise ConfigError(f"--gpus {options.gpus}: hours of what? name their kind with --gpu, or leave --no-time out")
    given = next((name for name in ONLY_WITH_FLEET if getattr(options, name) is not None), None)
    if given is not None and not options.is_planned:
        flag = f"--{given.replace('_', '-')} {getattr(options, given)}"
        raise ConfigError(f"{flag}: says something of accelerators; name their kind with --gpu, or leave it out")
