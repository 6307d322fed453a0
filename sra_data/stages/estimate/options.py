"""What `estimate` may be asked. Nothing heavy is imported: the command line makes its options from these fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from sra_data.errors import ConfigError
from sra_data.options import option
from sra_data.stages.cache.options import CacheOptions, check_options

# What only matters once the work is done.
NOT_OF_ESTIMATE = ("workers", "units", "max_failed", "workspace")


@dataclass(frozen=True)
class EstimateOptions:
    """What to estimate.

    Attributes:
        cache: the options `cache-teacher` would be given.
        epochs, students: of the training planned.
        is_timed: run the teacher on a sample.
        seconds: how long that may take, about.
    """

    cache: CacheOptions = field(default_factory=CacheOptions)
    epochs: int = option(10, "Epochs planned for each student.")
    students: int = option(1, "Students planned: models, settings, seeds.")
    is_timed: bool = option(True, "Run the teacher on a few examples.", name="time")
    seconds: float = option(20.0, "How long that may take, about.")


def check_estimate(options: EstimateOptions) -> None:
    """Refuse options that cannot be carried out.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    check_options(options.cache)
    for name in ("epochs", "students", "seconds"):
        if getattr(options, name) <= 0:
            raise ConfigError(f"--{name} {getattr(options, name)}: must be above 0")
