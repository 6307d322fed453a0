"""What `import` may be asked, and what is refused before anything is opened.

Nothing heavy is imported: the command line makes its options from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sra_data.errors import ConfigError
from sra_data.options import option, refuse_unknown
from sra_data.stages.units import unit_range
from sra_data.teacher.spec import TeacherSpec

Format = Literal["distillkit", "speculators"]
StoredDtype = Literal["bf16", "fp16", "fp32"]
# What a capture has settled, or what is no matter of it: options of a teacher that import does not have.
NOT_OF_IMPORT = ("adapter", "dtype", "tensor_parallel", "quantization")
OF_STATES = ("layers", "captured_layers", "hidden_dtype", "top_k", "temperatures")


@dataclass(frozen=True)
class ImportOptions:
    """What `import` is asked to do.

    Attributes:
        shards: folder that `align` wrote.
        teacher: whose capture it is; the only one the shards were aligned for where it has no name.
        side: the side it reads, by its name or the start of it; found by the teacher's tokenizer where None.
        layers: of the captured hidden states, those to keep: numbers 1..L, or "last".
        captured_layers: which layers the capture holds; those that speculators takes by itself where empty.
        hidden_dtype: how hidden states are stored.
        top_k: log-probabilities to compute from the last layer and the head, 0 for none.
        temperatures: one exact log tail each, where top_k > 0.
        units: "a:b", only these units of the plan; "i/n", those of task i of an array of n.
        max_missing: examples of the side that the capture does not hold which are let through.
        workspace: of shards in a store: the folder of this machine under which parts are made before they are put.
    """

    shards: str = option("shards", "What `sra-data align` wrote: a folder, or s3://....", is_argument=True)
    teacher: TeacherSpec = field(default_factory=TeacherSpec)
    side: str | None = option(None, "The side it reads (default: the one of its tokenizer).")
    layers: tuple[int | str, ...] = option(("last",), "speculators: layers to keep: last, or numbers 1..L with commas.")
    captured_layers: tuple[int, ...] = option(
        (), "speculators: the layers that were captured, with commas (default: 2, half, all but three, the last)."
    )
    hidden_dtype: StoredDtype = option("bf16", "speculators: how hidden states are stored.")
    top_k: int = option(0, "speculators: log-probabilities to compute a position; 0 for none, the head has them all.")
    temperatures: tuple[float, ...] = option((1.0, 2.0), "speculators: with --top-k, one exact log tail each.")
    units: str | None = option(None, "Only the units a:b of the plan, or i/n: those of task i of n.")
    max_missing: int = option(0, "Examples that the capture does not hold, to let through as failed.")
    workspace: str | None = option(None, "Where parts are made that go into a store (default: ~/.cache/sra-distill).")


def check_options(format: str, options: ImportOptions) -> None:
    """Refuse options that cannot be carried out, before anything is opened.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    if format not in ("distillkit", "speculators"):
        raise ConfigError(f"{format}: no format that is known; choose one of distillkit, speculators")
    refuse_unknown(options)
    if options.max_missing < 0:
        raise ConfigError(f"--max-missing {options.max_missing}: must be at least 0")
    if options.top_k < 0:
        raise ConfigError(f"--top-k {options.top_k}: must be at least 0")
    if options.units is not None:
        unit_range(options.units)
    if format == "distillkit":
        usual = ImportOptions()
        for name in OF_STATES:
            if getattr(options, name) != getattr(usual, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')}: of speculators' hidden states alone; DistillKit's captures hold "
                    "their own top k at temperature 1, leave it out"
                )
