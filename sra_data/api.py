"""The stages from Python: `align`, `cache_teacher`, `import_capture`, `open_shards`, as `import sra_data` offers them.

    import sra_data

    aligned = sra_data.align("Qwen/Qwen1.5-1.8B", "openai-community/gpt2", data="my.jsonl")
    cached = sra_data.cache_teacher(aligned.shards)
    with sra_data.open_shards(aligned.shards) as shards:
        print(len(shards.corpus), cached.section)

An argument is the option of the command line of the same name, with the same default (but `workers` of `align`: one
process, because a script that starts several must be guarded by ``if __name__ == "__main__"``), and what a command
refuses is refused here in the same words. Nothing is printed: hand in a reporter to see progress. Nothing heavy is
imported before a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sra_data.choices import Boundaries, Engine, OnInvalid, Overlong, VocabularyMatch
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.imports.options import Format, ImportOptions, StoredDtype
from sra_data.teacher.spec import (
    CaptureOptions,
    DeviceMap,
    Dtype,
    Granularity,
    HiddenDtype,
    Quantization,
    TeacherSpec,
)
from sra_data.terminal import Reporter

if TYPE_CHECKING:
    from sra_data.shards.store import ShardSet
    from sra_data.stages.align.summary import AlignSummary
    from sra_data.stages.cache.summary import CacheSummary
    from sra_data.stages.imports.summary import ImportSummary

Path = str | os.PathLike[str]


def align(
    teacher: Path | Sequence[Path],
    student: Path | Sequence[Path],
    *,
    data: Path = "builtin",
    columns: str | None = None,
    out: Path = "shards",
    dev_data: Path | None = None,
    dev_share: float = 0.02,
    max_length: int | None = None,
    teacher_max_length: int | None = None,
    student_max_length: int | None = None,
    overlong: Overlong = "truncate",
    window_overlap: int | None = None,
    boundaries: Boundaries = "token",
    max_spans: int = 1024,
    vocabulary_match: VocabularyMatch = "bytes",
    edit_distance: bool = False,
    on_invalid: OnInvalid = "fail",
    workers: int | None = 1,
    engine: Engine = "local",
    units: str | None = None,
    trust_remote_code: bool = False,
    workspace: Path | None = None,
    reporter: Reporter | None = None,
) -> AlignSummary:
    """Cut a corpus by the tokenizers of teachers and students, line the pieces up, and write shards.

    What is there already is used: called again it does what is missing, and with another student it adds a side and an
    alignment.

        >>> summary = sra_data.align("teacher", ["student", "another"], data="my.jsonl", out="shards")
        >>> summary.num_examples, summary.pairs[0].num_spans

    Args:
        teacher: Hub id (with @revision) or folder, or several; every teacher is aligned with every student.
        student: Likewise.
        data: A file, folder, glob, Hub data set (name:split) or "builtin", Python's own documentation.
        columns: Columns by hand: "prompt=question,response=answer".
        out: The folder of shards, or a place in a store: "s3://bucket/shards".
        dev_data: Development examples; without them `dev_share` of the prompts are, by their hash.
        dev_share: In [0, 1).
        max_length: Tokens of an example on all sides; `teacher_max_length` and `student_max_length` say it of one. None
            for each model's positions.
        teacher_max_length: Of the teachers alone.
        student_max_length: Of the students alone.
        overlong: What happens beyond it.
        window_overlap: Tokens of context a window begins with; 64, less for short ones, where None.
        boundaries: Shared boundaries to keep: at tokens, or only at the edges of words.
        max_spans: Spans of an example; beyond it neighbours are merged.
        vocabulary_match: What makes two ids one: their bytes, or their raw strings.
        edit_distance: Map the ids by edit distance too, for method=mined.
        on_invalid: A bad row: fail, or skip and count it.
        workers: Processes; None takes as many as pay, of a cluster all there is. What is written does not depend on it.
        engine: Who runs the units: processes of this machine, or actors of a Ray cluster ("ray").
        units: Only the units "a:b" of the plan.
        trust_remote_code: Run code that comes with a tokenizer.
        workspace: Where parts are made that go into a store, under ~/.cache where None.
        reporter: Told what happens; nothing is shown without one.

    Returns:
        Counts of examples, spans and what was cut or left out; `.shards` is the folder, `.lines()` the words of the
        command line.

    Raises:
        SRAError: One line for everything a user can mend.
    """
    from sra_data.stages.align import stage
    from sra_data.stages.align.options import AlignOptions

    options = AlignOptions(
        teachers=_several(teacher),
        students=_several(student),
        data=os.fspath(data),
        columns=columns,
        out=os.fspath(out),
        dev_data=None if dev_data is None else os.fspath(dev_data),
        dev_share=dev_share,
        teacher_max_length=max_length if teacher_max_length is None else teacher_max_length,
        student_max_length=max_length if student_max_length is None else student_max_length,
        overlong=overlong,
        window_overlap=window_overlap,
        boundaries=boundaries,
        max_spans=max_spans,
        vocabulary_match=vocabulary_match,
        edit_distance=edit_distance,
        on_invalid=on_invalid,
        num_workers=workers,
        engine=engine,
        units=units,
        trust_remote_code=trust_remote_code,
        workspace=None if workspace is None else os.fspath(workspace),
    )
    return stage.align(options, reporter or Reporter())


def cache_teacher(
    shards: Path = "shards",
    teacher: Path | None = None,
    *,
    adapter: Path | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    tensor_parallel: bool = False,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    side: str | None = None,
    layers: Sequence[int | str] = ("last",),
    hidden_dtype: HiddenDtype = "bf16",
    attention: bool = True,
    top_k: int = 64,
    temperatures: Sequence[float] = (1.0, 2.0),
    granularity: Granularity = "token",
    student: str | None = None,
    alignment: str | None = None,
    batch_tokens: int | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    units: str | None = None,
    max_failed: int = 0,
    workspace: Path | None = None,
    reporter: Reporter | None = None,
) -> CacheSummary:
    """Run a teacher over its side of the corpus once and keep what it says.

    Called again it does the units that are missing; when none is, the folder is sealed and measured against the live
    teacher.

        >>> summary = sra_data.cache_teacher("shards", layers=(12, "last"), top_k=128)
        >>> summary.section, summary.num_bytes, summary.faithfulness

    Args:
        shards: The folder that `align` wrote.
        teacher: Hub id (with @revision) or folder; None for the only one that the shards were aligned for.
        adapter: LoRA adapter to put on the teacher (peft).
        dtype: Of the teacher's numbers; None for bf16 on a GPU and fp32 on a CPU.
        device: "cuda", "cuda:1", "cpu"; None for a GPU where there is one.
        device_map: "auto" spreads its layers over all GPUs, then memory; None for one device.
        tensor_parallel: Cut each of its layers over the processes that torchrun started; the first of them writes.
        quantization: Through bitsandbytes.
        trust_remote_code: Run code that comes with the teacher.
        allow_pickle: Read weights that are not safetensors.
        side: The side it reads, by its name or the start of it; None for the one of its tokenizer.
        layers: Hidden states to keep: numbers 1..L, or "last".
        hidden_dtype: How they are stored; "none" keeps none.
        attention: Keep the last query's row.
        top_k: Log-probabilities kept a position, 0 for none.
        temperatures: One exact log tail each.
        granularity: "token" for every student; "span" pools one alignment's spans before storing.
        student: By span: whose.
        alignment: By span: which alignment of the two.
        batch_tokens: Padded tokens of a batch; None finds out by trying.
        workers: Processes, each with a teacher and a GPU of its own; None for one, of a cluster all there is. What is
            written does not depend on it.
        engine: Who runs the units: processes of this machine, or actors of a Ray cluster ("ray").
        units: Only the units "a:b" of the plan.
        max_failed: Examples with NaN or infinite activations to let through.
        workspace: Where parts are made that go into a store, under ~/.cache where None.
        reporter: Told what happens; nothing is shown without one.

    Returns:
        What was done, the size on disk and how faithful the pages are; `.lines()` are the words of the command line.

    Raises:
        SRAError: One line for everything a user can mend.
    """
    from sra_data.stages.cache import stage

    spec = TeacherSpec(
        name=None if teacher is None else os.fspath(teacher),
        adapter=None if adapter is None else os.fspath(adapter),
        dtype=dtype,
        device=device,
        device_map=device_map,
        tensor_parallel=tensor_parallel,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    capture = CaptureOptions(
        layers=tuple(layers),
        hidden_dtype=hidden_dtype,
        attention=attention,
        top_k=top_k,
        temperatures=tuple(temperatures),
        granularity=granularity,
    )
    options = CacheOptions(
        shards=os.fspath(shards),
        teacher=spec,
        side=side,
        capture=capture,
        student=student,
        alignment=alignment,
        batch_tokens=batch_tokens,
        num_workers=workers,
        engine=engine,
        units=units,
        max_failed=max_failed,
        workspace=None if workspace is None else os.fspath(workspace),
    )
    return stage.cache_teacher(options, reporter or Reporter())


def import_capture(
    format: Format,
    capture: Path,
    shards: Path = "shards",
    teacher: Path | None = None,
    *,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    side: str | None = None,
    layers: Sequence[int | str] = ("last",),
    captured_layers: Sequence[int] = (),
    hidden_dtype: StoredDtype = "bf16",
    top_k: int = 0,
    temperatures: Sequence[float] = (1.0, 2.0),
    units: str | None = None,
    max_missing: int = 0,
    workspace: Path | None = None,
    reporter: Reporter | None = None,
) -> ImportSummary:
    """Make a teacher's pages from what another tool captured of it, row by row with the same token ids.

    The text and the teacher's side are those of `align`. Called again it does the units that are missing.

        >>> imported = sra_data.import_capture("distillkit", "captured", "shards", max_missing=3)
        >>> imported.section, imported.num_failed

    Args:
        format: "distillkit" or "speculators".
        capture: The folder that tool wrote.
        shards: The folder that `align` wrote.
        teacher: Whose capture it is: Hub id (with @revision) or folder; None for the only one that was aligned.
        device: Of the teacher's norm and head; None for a GPU where there is one.
        device_map: "auto" spreads a teacher that fits no device; None for one device.
        trust_remote_code: Run code that comes with the teacher.
        allow_pickle: Read weights that are not safetensors.
        side: The side it reads, by its name or the start of it; None for the one of its tokenizer.
        layers: Of speculators: hidden states to keep, numbers 1..L or "last".
        captured_layers: Of speculators: the layers its server was told to capture; () for those it takes by itself.
        hidden_dtype: Of speculators: how hidden states are stored.
        top_k: Of speculators: log-probabilities to compute a position, 0 for none.
        temperatures: With `top_k`, one exact log tail each.
        units: Only the units "a:b" of the plan.
        max_missing: Examples that the capture does not hold, to let through as failed.
        workspace: Where parts are made that go into a store, under ~/.cache where None.
        reporter: Told what happens; nothing is shown without one.

    Returns:
        What was done, what was missing and what did not add up; `.lines()` are the words of the command line.

    Raises:
        SRAError: One line for everything a user can mend.
    """
    from sra_data.stages.imports import stage

    spec = TeacherSpec(
        name=None if teacher is None else os.fspath(teacher),
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    options = ImportOptions(
        shards=os.fspath(shards),
        teacher=spec,
        side=side,
        layers=tuple(layers),
        captured_layers=tuple(captured_layers),
        hidden_dtype=hidden_dtype,
        top_k=top_k,
        temperatures=tuple(temperatures),
        units=units,
        max_missing=max_missing,
        workspace=None if workspace is None else os.fspath(workspace),
    )
    return stage.import_capture(format, os.fspath(capture), options, reporter or Reporter())


def open_shards(shards: Path = "shards") -> ShardSet:
    """Open a folder of shards for reading; every value that is read is checked against its hash.

        >>> with sra_data.open_shards("shards") as shards:
        ...     example = shards.corpus.read([0])[0]
        ...     pair = shards.choose_pair()
        ...     print(example.response, pair.read([0])[0].student_spans)

    Args:
        shards: The folder, or the place in a store, that `align` wrote; teachers' pages are there once `cache_teacher`
            has sealed them.

    Raises:
        ShardError: If there are no shards, they are damaged, of another format, or `align` is not done.
    """
    from sra_data.shards.store import ShardSet

    return ShardSet.open(os.fspath(shards))


def _several(models: Path | Sequence[Path]) -> tuple[str, ...]:
    """One model or several, as names."""
    return (
        (os.fspath(models),) if isinstance(models, str | os.PathLike) else tuple(os.fspath(model) for model in models)
    )
