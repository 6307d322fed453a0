"""The `sra-data` command line: thin functions that build options, call a stage and print what it returns.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sra_data import terminal
from sra_data.errors import ConfigError

app = typer.Typer(
    help="Write down what a teacher said about a corpus, once: align, estimate, cache, verify, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def defaults_from(context: typer.Context, file: str | None) -> str | None:
    """Take the command's section of a YAML file as defaults; flags win over it.

    Raises:
        ConfigError: If the file cannot be read or names an option the command does not have.
    """
    if file is None:
        return None
    import yaml

    command = str(context.info_name)
    try:
        with open(file, encoding="utf-8") as stream:
            sections = yaml.safe_load(stream) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    section = sections.get(command, {}) if isinstance(sections, dict) else {}
    known = {parameter.name for parameter in context.command.params}
    unknown = sorted(set(section) - known)
    if unknown:
        raise ConfigError(f"{file}: {command} has no option {unknown[0]}; it has {', '.join(sorted(map(str, known)))}")
    context.default_map = {**(context.default_map or {}), **section}
    return file


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]
Shards = Annotated[str, typer.Argument(help="The folder that `sra-data align` wrote.")]
Config = Annotated[
    str | None,
    typer.Option(callback=defaults_from, is_eager=True, help="YAML with a section per command; flags win over it."),
]

# Flags that cache-teacher and estimate share.
Teacher = Annotated[str | None, typer.Option(help="Hub id or folder [the one the shards were aligned for].")]
Adapter = Annotated[str | None, typer.Option(help="LoRA adapter to put on the teacher (peft).")]
Layers = Annotated[str, typer.Option(help="Layers to keep: last, or numbers 1..L with commas.")]
HiddenDtype = Annotated[str, typer.Option(help="bf16, fp16, fp32, int8 or none.")]
Attention = Annotated[bool, typer.Option("--attention/--no-attention", help="Keep the last query's row.")]
TopK = Annotated[int, typer.Option(help="Log-probabilities kept a position; 0 for none.")]
Temperatures = Annotated[str, typer.Option(help="One exact log tail each, with commas.")]
Logits = Annotated[str, typer.Option(help="top_k, or sampled (unbiased random samples).")]
NumSamples = Annotated[int, typer.Option(help="Ids sampled a position.")]
BatchTokens = Annotated[int | None, typer.Option(help="Padded tokens of a batch [found by trying].")]
Dtype = Annotated[str | None, typer.Option(help="The teacher's: bf16, fp16, fp32 [bf16 on GPUs, else fp32].")]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu [a GPU where there is one].")]
Quantization = Annotated[str | None, typer.Option(help="4bit or 8bit (bitsandbytes).")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the teacher.")]
Granularity = Annotated[Literal["token", "span"], typer.Option(help="span: pool one alignment's spans before storing.")]
Student = Annotated[str | None, typer.Option(help="Whose spans, for --granularity span [the only one].")]
AllowPickle = Annotated[bool, typer.Option(help="Read weights that are not safetensors.")]

Overlong = Literal["truncate", "truncate-prompt", "skip"]
Boundaries = Literal["token", "word"]
Match = Literal["bytes", "exact"]
OnInvalid = Literal["fail", "skip"]


def version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        from sra_data import __version__

        print(f"sra-distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Write down what a teacher said about a corpus, once: align, cache, verify."""


@app.command()
def align(
    teacher: Annotated[
        list[str], typer.Option(help="Teacher: a Hub id (with @revision) or a folder; may be repeated.")
    ],
    student: Annotated[list[str], typer.Option(help="Student: likewise. Every teacher is aligned with every student.")],
    data: Annotated[
        str,
        typer.Option(help="jsonl, json, csv, parquet, arrow, a folder, a glob, a Hub data set (name:split), builtin."),
    ] = "builtin",
    columns: Annotated[
        str | None, typer.Option(help="Columns by hand: prompt=question,response=answer; id=.. and split=.. too.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder to write.")] = "shards",
    dev_data: Annotated[str | None, typer.Option(help="Development examples, in the forms of --data.")] = None,
    dev_share: Annotated[float, typer.Option(help="Else this share of the prompts, by their hash.")] = 0.02,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an example, all sides (default: each model's positions).")
    ] = None,
    teacher_max_length: Annotated[int | None, typer.Option(help="The same for the teacher alone.")] = None,
    student_max_length: Annotated[int | None, typer.Option(help="The same for the student alone.")] = None,
    overlong: Annotated[Overlong, typer.Option(help="What to do beyond it.")] = "truncate",
    boundaries: Annotated[Boundaries, typer.Option(help="Shared boundaries to keep.")] = "token",
    max_spans: Annotated[int, typer.Option(help="Spans of an example; beyond it neighbours are merged.")] = 1024,
    vocabulary_match: Annotated[Match, typer.Option(help="Shared vocabulary by bytes or exact raw strings.")] = "bytes",
    on_invalid: Annotated[
        OnInvalid, typer.Option(help="A bad row, or a text whose tokens cannot be located: fail, or skip and count it.")
    ] = "fail",
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: the cores). The bytes written do not depend on it.")
    ] = None,
    units: Annotated[str | None, typer.Option(help="Only the units a:b of the plan, for arrays of jobs.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a tokenizer.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Tokenize a corpus for every teacher and student, align the sides, write sharded Parquet."""
    from sra_data.stages.align import stage
    from sra_data.stages.align.options import AlignOptions

    summary = stage.align(
        AlignOptions(
            teachers=tuple(teacher),
            students=tuple(student),
            data=data,
            columns=columns,
            out=out,
            dev_data=dev_data,
            dev_share=dev_share,
            teacher_max_length=teacher_max_length or max_length,
            student_max_length=student_max_length or max_length,
            overlong=overlong,
            boundaries=boundaries,
            max_spans=max_spans,
            vocabulary_match=vocabulary_match,
            on_invalid=on_invalid,
            num_workers=workers,
            units=units,
            trust_remote_code=trust_remote_code,
        ),
        terminal.make_reporter(quiet=json),
    )
    terminal.finish(summary, as_json=json)


@app.command()
def estimate(
    shards: Shards = "shards",
    teacher: Teacher = None,
    adapter: Adapter = None,
    layers: Layers = "last",
    hidden_dtype: HiddenDtype = "bf16",
    attention: Attention = True,
    top_k: TopK = 64,
    temperatures: Temperatures = "1,2",
    logits: Logits = "top_k",
    num_samples: NumSamples = 12,
    granularity: Granularity = "token",
    student: Student = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    epochs: Annotated[int, typer.Option(help="Epochs planned for each student.")] = 10,
    students: Annotated[int, typer.Option(help="Students planned: models, settings, seeds.")] = 1,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Run the teacher on a few examples.")] = True,
    seconds: Annotated[float, typer.Option(help="How long that may take, about.")] = 20.0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Say what cache-teacher would take: bytes, hours, and whether it pays."""
    from sra_data.stages.cache.options import CacheOptions
    from sra_data.stages.estimate import stage

    summary = stage.estimate(
        stage.EstimateOptions(
            cache=CacheOptions(
                shards=shards,
                teacher=teacher,
                adapter=adapter,
                layers=words(layers),
                hidden_dtype=hidden_dtype,
                attention=attention,
                top_k=top_k,
                temperatures=numbers(temperatures, option="--temperatures"),
                logits=logits,
                num_samples=num_samples,
                granularity=granularity,
                student=student,
                batch_tokens=batch_tokens,
                dtype=dtype,
                device=device,
                quantization=quantization,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
            ),
            epochs=epochs,
            students=students,
            is_timed=time,
            seconds=seconds,
        ),
        terminal.make_reporter(quiet=json),
    )
    terminal.finish(summary, as_json=json)


@app.command("cache-teacher")
def cache_teacher(
    shards: Shards = "shards",
    teacher: Teacher = None,
    adapter: Adapter = None,
    layers: Layers = "last",
    hidden_dtype: HiddenDtype = "bf16",
    attention: Attention = True,
    top_k: TopK = 64,
    temperatures: Temperatures = "1,2",
    logits: Logits = "top_k",
    num_samples: NumSamples = 12,
    granularity: Granularity = "token",
    student: Student = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    quantization: Quantization = None,
    workers: Annotated[int, typer.Option(help="Processes. The bytes written do not depend on it.")] = 1,
    units: Annotated[str | None, typer.Option(help="Only the units a:b of the plan, for arrays of jobs.")] = None,
    max_failed: Annotated[int, typer.Option(help="Examples with NaN or infinite activations to let through.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Run the teacher once; keep hidden states, attention and top-k log-probabilities."""
    from sra_data.stages.cache import stage
    from sra_data.stages.cache.options import CacheOptions

    summary = stage.cache_teacher(
        CacheOptions(
            shards=shards,
            teacher=teacher,
            adapter=adapter,
            layers=words(layers),
            hidden_dtype=hidden_dtype,
            attention=attention,
            top_k=top_k,
            temperatures=numbers(temperatures, option="--temperatures"),
            logits=logits,
            num_samples=num_samples,
            granularity=granularity,
            student=student,
            batch_tokens=batch_tokens,
            dtype=dtype,
            device=device,
            quantization=quantization,
            num_workers=workers,
            units=units,
            max_failed=max_failed,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        ),
        terminal.make_reporter(quiet=json),
    )
    terminal.finish(summary, as_json=json)


@app.command()
def verify(
    shards: Shards = "shards",
    deep: Annotated[bool, typer.Option(help="Run the teacher again on a sample.")] = False,
    sample: Annotated[int, typer.Option(help="Examples of that sample.")] = 16,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Check every checksum, every row's example and every receipt against the manifest."""
    from sra_data.stages import verify as stage

    again: stage.Recapture | None = None
    if deep:
        from sra_data.stages.cache.recapture import recapture

        again = partial(recapture, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    options = stage.VerifyOptions(Path(shards), deep=deep, sample=sample)
    summary = stage.verify(options, terminal.make_reporter(quiet=json), recapture=again)
    terminal.finish(summary, as_json=json)
    summary.refuse_if_damaged()


@app.command("list")
def list_shards(shards: Shards = "shards", json: Json = False) -> None:
    """Show what a folder holds: corpus, sides, alignments, teachers, their sizes, and what is unfinished."""
    from rich.console import Console

    from sra_data.stages.list import list_shards as look

    listing, console = look(shards), Console()
    if json or not console.is_terminal:
        terminal.finish(listing, as_json=json)
    else:
        listing.show(console)


# Which side inspect shows.
ShownTeacher = Annotated[
    str | None,
    typer.Option("--teacher", help="The teacher's side: its name or start, or a model (default: the only one)."),
]
ShownStudent = Annotated[
    str | None, typer.Option("--student", help="The student's side, likewise (default: the only one).")
]


@app.command()
def inspect(
    example: Annotated[str, typer.Argument(help="Row number, or the example's id.")],
    shards: Annotated[str, typer.Option(help="The folder that `sra-data align` wrote.")] = "shards",
    teacher: ShownTeacher = None,
    student: ShownStudent = None,
    alignment: Annotated[str | None, typer.Option(help="Which alignment of the two (default: the only one).")] = None,
    html: Annotated[str | None, typer.Option(help="Write a self-contained page here too.")] = None,
    json: Json = False,
) -> None:
    """Show one example: the response as both tokenizers cut it, spans lined up."""
    from rich.console import Console

    from sra_data.stages.inspect import stage

    options = stage.InspectOptions(example, shards, teacher=teacher, student=student, alignment=alignment, html=html)
    inspection = stage.inspect(options, terminal.make_reporter(quiet=json))
    terminal.finish(inspection, as_json=True) if json else stage.show(inspection, Console())


@app.command()
def report(
    shards: Shards = "shards",
    out: Annotated[str, typer.Option(help="The page; its pictures go into a folder beside it.")] = "report.html",
    teacher: Annotated[str | None, typer.Option(help="Show only this teacher, or side (default: all).")] = None,
    student: Annotated[str | None, typer.Option(help="Show only this student's alignments (default: all).")] = None,
    sample: Annotated[int, typer.Option(help="Examples whose teacher's pages are read.")] = 2000,
    json: Json = False,
) -> None:
    """Draw corpus, sides, alignments and the teachers' pages on one self-contained page."""
    from sra_data.stages.report import stage

    options = stage.ReportOptions(shards=shards, out=out, teacher=teacher, student=student, sample=sample)
    terminal.finish(stage.report(options, terminal.make_reporter(quiet=json)), as_json=json)


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word.strip() for word in text.split(","))


def numbers(text: str, *, option: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        ConfigError: If one is no number.
    """
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ConfigError(f"{option} {text}: not numbers with commas between them; write 1,2") from None


def main() -> None:
    """Entry point of `sra-data`."""
    terminal.run(app, how_to_go_on="run the same command again: finished units are kept")
