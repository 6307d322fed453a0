"""What `cache-teacher` may be asked, and what is refused before anything is loaded.

Nothing heavy is imported: the command line makes its options from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sra_data.choices import Engine
from sra_data.errors import ConfigError
from sra_data.options import option, refuse_unknown
from sra_data.stages.units import unit_range
from sra_data.teacher.spec import CaptureOptions, TeacherSpec, check_capture, check_teacher


@dataclass(frozen=True)
class CacheOptions:
    """What `cache-teacher` is asked to do.

    Attributes:
        shards: folder that `align` wrote.
        teacher: which model; the only one the shards were aligned for where it has no name.
        side: the side it reads, by its name or the start of it; found by the teacher's tokenizer where None.
        capture: what to keep of what it says.
        student: by span: whose spans, by its side (or the start of it) or its model's name; the only one where None.
        alignment: by span: which alignment of the two sides, where they were aligned in several ways.
        batch_tokens: padded tokens of a batch; found by trying where None.
        num_workers: processes; what is written does not depend on it. None leaves their number to the engine.
        engine: who runs the units, see `sra_data/engines`; what is written does not depend on it either.
        units: "a:b", only these units of the plan; "i/n", those of task i of an array of n.
        max_failed: examples with NaN or infinite activations that are let through.
        workspace: of shards in a store: the folder of this machine under which parts are made before they are put.
    """

    shards: str = option("shards", "What `sra-data align` wrote: a folder, or s3://....", is_argument=True)
    teacher: TeacherSpec = field(default_factory=TeacherSpec)
    side: str | None = option(None, "The side it reads (default: the one of its tokenizer).")
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    student: str | None = option(None, "Whose spans, for --granularity span (default: the only one).")
    alignment: str | None = option(None, "Which alignment of the two, for --granularity span (default: the only one).")
    batch_tokens: int | None = option(None, "Padded tokens of a batch (default: found by trying).")
    num_workers: int | None = option(
        None,
        "Processes, each with a GPU of its own (default: 1, of a cluster all there is). The bytes do not change.",
        name="workers",
    )
    engine: Engine = option("local", "Who runs the units: processes of this machine, or actors of a Ray cluster.")
    units: str | None = option(None, "Only the units a:b of the plan, or i/n: those of task i of n.")
    max_failed: int = option(0, "Examples with NaN or infinite activations to let through.")
    workspace: str | None = option(None, "Where parts are made that go into a store (default: ~/.cache/sra-distill).")


def check_options(options: CacheOptions) -> None:
    """Refuse options that cannot be carried out, before anything is loaded.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    refuse_unknown(options)
    check_capture(options.capture)
    check_teacher(options.teacher)
    if options.max_failed < 0:
        raise ConfigError(f"--max-failed {options.max_failed}: must be at least 0")
    if options.num_workers is not None and options.num_workers < 1:
        raise ConfigError(f"--workers {options.num_workers}: must be at least 1")
    _refuse_shared_devices(options)
    if options.units is not None:
        unit_range(options.units)
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise ConfigError(f"--batch-tokens {options.batch_tokens}: must be at least 1")
    for name in ("student", "alignment"):
        value = getattr(options, name)
        if value is not None and not options.capture.by_span:
            raise ConfigError(
                f"--{name} {value}: pages by token serve every student; leave it out, or use --granularity span"
            )


def _refuse_shared_devices(options: CacheOptions) -> None:
    """Several workers beside a teacher that takes several devices by itself.

    Raises:
        ConfigError: Naming both.
    """
    place, is_cut = options.teacher.device_map, options.teacher.tensor_parallel
    spread = "--tensor-parallel" if is_cut else "" if place is None else f"--device-map {place}"
    if spread and (options.num_workers or 1) > 1:
        raise ConfigError(
            f"--workers {options.num_workers} with {spread}: each worker would load a teacher over the same devices; "
            "leave one of them out"
        )
    if is_cut and options.engine != "local":
        raise ConfigError(
            f"--engine {options.engine} with {spread}: torchrun starts its processes; leave one of them out"
        )
