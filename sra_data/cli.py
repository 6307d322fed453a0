"""The `sra-data` command line: thin functions that build options, call a stage and print what it returns.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sra_data import terminal
from sra_data.choices import Boundaries, Engine, Gated, OnInvalid, Overlong, VocabularyMatch
from sra_data.command_line import Program
from sra_data.errors import ConfigError
from sra_data.options import expand
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.estimate.options import NOT_OF_ESTIMATE, EstimateOptions
from sra_data.stages.imports.options import NOT_OF_IMPORT, Format, ImportOptions
from sra_data.teacher.spec import KNOWN_BY_PAGES, TeacherSpec

app = Program("Write down what a teacher said about a corpus, once: align, estimate, cache, verify, repair, report.")


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
            sections = yaml.safe_load(stream)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    section = _section(sections, command, file, commands=_commands(context))
    if not isinstance(section, dict):
        raise ConfigError(
            f"{file}: {command} is a {type(section).__name__}, not its options by name; write name: value"
        )
    known = {parameter.name for parameter in context.command.params}
    unknown = sorted(map(str, set(section) - known))
    if unknown:
        raise ConfigError(f"{file}: {command} has no option {unknown[0]}; it has {', '.join(sorted(map(str, known)))}")
    repeated = {parameter.name for parameter in context.command.params if getattr(parameter, "multiple", False)}
    for name in repeated & set(section):  # one teacher may be written without a list
        section[name] = section[name] if isinstance(section[name], list) else [section[name]]
    context.default_map = {**(context.default_map or {}), **section}
    return file


def _commands(context: typer.Context) -> list[str]:
    """The program's commands."""
    group = None if context.parent is None else context.parent.command
    return sorted(getattr(group, "commands", {}))


def _section(sections: object, command: str, file: str, *, commands: list[str]) -> object:
    """What a file says for a command; nothing where it has no section for it.

    Raises:
        ConfigError: If the file is none of sections, or has one for a command that there is not.
    """
    if sections is None:
        return {}
    if not isinstance(sections, dict):
        kind = type(sections).__name__
        raise ConfigError(f"{file}: a mapping from commands to their options is wanted, this is a {kind}; see --help")
    unknown = next((str(name) for name in sections if commands and name not in commands), None)
    if unknown is not None:
        raise ConfigError(f"{file}: {unknown} is no command; sections are called {', '.join(commands)}")
    return sections.get(command) or {}


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]
Shards = Annotated[str, typer.Argument(help="What `sra-data align` wrote: a folder, or s3://....")]
Config = Annotated[
    str | None,
    typer.Option(callback=defaults_from, is_eager=True, help="YAML with a section per command; flags win over it."),
]


Version = Annotated[bool, typer.Option("--version", callback=terminal.print_version, is_eager=True, help="Print it.")]


@app.callback()
def options(show_version: Version = False) -> None:
    """Write down what a teacher said about a corpus, once: align, cache, verify."""


@app.command()
def align(
    teacher: Annotated[
        list[str], typer.Option(help="Teacher: a Hub id (with @revision) or a folder; may be repeated.")
    ],
    student: Annotated[list[str], typer.Option(help="Student: likewise. Every teacher is aligned with every student.")],
    data: Annotated[
        str,
        typer.Option(
            help="jsonl, json, csv, tsv, parquet, arrow, a folder, a glob, a Hub data set (name:split), builtin."
        ),
    ] = "builtin",
    columns: Annotated[
        str | None, typer.Option(help="Columns by hand: prompt=question,response=answer; id=.. and split=.. too.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder to write, or a place in a store (s3://bucket/shards).")] = "shards",
    dev_data: Annotated[str | None, typer.Option(help="Development examples, in the forms of --data.")] = None,
    dev_share: Annotated[float, typer.Option(help="Else this share of the prompts, by their hash.")] = 0.02,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an example, all sides (default: each model's positions).")
    ] = None,
    teacher_max_length: Annotated[int | None, typer.Option(help="The same for the teacher alone.")] = None,
    student_max_length: Annotated[int | None, typer.Option(help="The same for the student alone.")] = None,
    overlong: Annotated[
        Overlong, typer.Option(help="What to do beyond it; window: cut texts into rows that fit all sides.")
    ] = "truncate",
    window_overlap: Annotated[
        int | None, typer.Option(help="Tokens of context a window begins with (default: 64, less for short ones).")
    ] = None,
    boundaries: Annotated[Boundaries, typer.Option(help="Shared boundaries to keep.")] = "token",
    max_spans: Annotated[int, typer.Option(help="Spans of an example; beyond it neighbours are merged.")] = 1024,
    vocabulary_match: Annotated[
        VocabularyMatch, typer.Option(help="Shared vocabulary by bytes or exact raw strings.")
    ] = "bytes",
    edit_distance: Annotated[
        bool, typer.Option("--edit-distance", help="Map the ids by edit distance too, for method=mined.")
    ] = False,
    on_invalid: Annotated[
        OnInvalid, typer.Option(help="A bad row, or a text whose tokens cannot be located: fail, or skip and count it.")
    ] = "fail",
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: the cores). The bytes written do not depend on it.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Who runs the units: processes of this machine, or actors of a Ray cluster.")
    ] = "local",
    units: Annotated[
        str | None, typer.Option(help="Only the units a:b of the plan, or i/n: those of task i of n.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a tokenizer.")] = False,
    workspace: Annotated[
        str | None, typer.Option(help="Where parts are made that go into a store (default: ~/.cache/sra-distill).")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Tokenize a corpus for every teacher and student, align the sides, write sharded Parquet."""
    names = f"{', '.join(teacher)} with {', '.join(student)}"
    reporter = terminal.start(f"align: {names}, on {data}, into {out}", quiet=json)
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
            workspace=workspace,
        ),
        reporter,
    )
    terminal.finish(summary, as_json=json)


@app.command()
@expand(leave_out=NOT_OF_ESTIMATE)
def estimate(options: EstimateOptions, config: Config = None, json: Json = False) -> None:
    """Say what cache-teacher would take: bytes, hours, and whether it pays."""
    reporter = terminal.start(f"estimate: {options.cache.shards}", quiet=json)
    from sra_data.stages.estimate import stage

    terminal.finish(stage.estimate(options, reporter), as_json=json)


@app.command("cache-teacher")
@expand()
def cache_teacher(options: CacheOptions, config: Config = None, json: Json = False) -> None:
    """Run a teacher once; keep hidden states, attention and top-k log-probabilities."""
    reporter = terminal.start(f"cache-teacher: {options.shards}", quiet=json)
    from sra_data.stages.cache import stage

    summary = stage.cache_teacher(options, reporter)
    if not options.teacher.tensor_parallel or terminal.is_first():
        terminal.finish(summary, as_json=json)


@app.command("import")
@expand(leave_out=NOT_OF_IMPORT)
def import_capture(
    format: Annotated[Format, typer.Argument(help="Which tool captured: distillkit or speculators.")],
    capture: Annotated[str, typer.Argument(help="The folder of its capture.")],
    options: ImportOptions,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a teacher's pages from another tool's capture, row by row with the same token ids."""
    reporter = terminal.start(f"import: {capture} of {format}, into {options.shards}", quiet=json)
    from sra_data.stages.imports import stage

    terminal.finish(stage.import_capture(format, capture, options, reporter), as_json=json)


@app.command()
@expand(leave_out=(*KNOWN_BY_PAGES, "tensor_parallel"))
def verify(
    shards: Shards = "shards",
    deep: Annotated[bool, typer.Option("--deep", help="Run a teacher again on a sample.")] = False,
    pages: Annotated[
        str | None, typer.Option("--teacher", help="Which one, for --deep (default: the only one that is cached).")
    ] = None,
    sample: Annotated[int, typer.Option(help="Examples of that sample.")] = 16,
    how: TeacherSpec = TeacherSpec(),
    json: Json = False,
) -> None:
    """Check every checksum, every row's example, every receipt and every seal against the manifest."""
    reporter = terminal.start(f"verify: {shards}", quiet=json)
    from sra_data.stages import verify as stage

    again: stage.Recapture | None = None
    if deep:
        from sra_data.stages.cache.recapture import recapture

        again = partial(recapture, how=how)
    options = stage.VerifyOptions(shards, deep=deep, teacher=pages, sample=sample)
    summary = stage.verify(options, reporter, recapture=again)
    terminal.finish(summary, as_json=json)
    summary.refuse_if_damaged()


@app.command()
def repair(shards: Shards = "shards", json: Json = False) -> None:
    """Throw away exactly what verify finds broken, and say which command makes it again."""
    from sra_data.stages import repair as stage

    summary = stage.repair(shards, terminal.make_reporter(quiet=json))
    terminal.finish(summary, as_json=json)
    summary.refuse_if_left()


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


@app.command()
def card(
    shards: Shards = "shards",
    licence: Annotated[
        str | None, typer.Option(help="Of the corpus: cc-by-sa-3.0 (default: what its Hub data set says).")
    ] = None,
    json: Json = False,
) -> None:
    """Write the folder's README.md: what it holds, how to open it, what the Hub reads of a data set."""
    from sra_data.stages import card as stage

    terminal.finish(stage.write_card(shards, licence=licence), as_json=json)


Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the data set (or name@revision).")]


@app.command()
def push(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[SHARDS] OWNER/NAME",
            help="The folder (default: shards), and a data set, or hf://buckets/owner/name for what is unfinished.",
        ),
    ],
    revision: Revision = None,
    private: Annotated[bool, typer.Option("--private", help="Make it for your eyes alone.")] = False,
    gated: Annotated[Gated | None, typer.Option(help="Access is asked for: given at once, or by hand.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the corpus, for the card (default: what its data set or its card says).")
    ] = None,
    json: Json = False,
) -> None:
    """Check the shards and push them to the Hub: a data set with its card, or a bucket."""
    shards, name = ("shards", *what) if len(what) == 1 else (what[0], what[1])
    if len(what) > 2:
        raise ConfigError(f"push: {len(what)} names are too many; write `sra-data push SHARDS owner/name`")
    reporter = terminal.start(f"push: {shards}, to {name}", quiet=json)
    from sra_data.stages.hub import push as stage
    from sra_data.stages.hub.place import place_of

    options = stage.PushOptions(shards, place_of(name, revision), private=private, gated=gated, licence=licence)
    terminal.finish(stage.push(options, reporter), as_json=json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A data set of shards, or hf://buckets/...")],
    shards: Annotated[str, typer.Argument(help="The folder to make; new or empty.")] = "shards",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Fetch shards from the Hub and check every byte; run again, it goes on where it was."""
    reporter = terminal.start(f"pull: {name}, into {shards}", quiet=json)
    from sra_data.stages.hub import pull as stage
    from sra_data.stages.hub.place import place_of

    options = stage.PullOptions(place_of(name, revision), shards)
    terminal.finish(stage.pull(options, reporter), as_json=json)


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
    around: Annotated[int, typer.Option(help="Neighbours on each side that the page has too.")] = 5,
    json: Json = False,
) -> None:
    """Show one example: the response as both tokenizers cut it, spans lined up."""
    from rich.console import Console

    from sra_data.stages.inspect import stage

    options = stage.InspectOptions(example, shards, teacher, student, alignment, html=html, around=around)
    inspection = stage.inspect(options, terminal.make_reporter(quiet=json))
    terminal.print_json(inspection.as_dict()) if json else stage.show(inspection, Console())


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
    reporter = terminal.start(f"report: {shards}, into {out}", quiet=json)
    from sra_data.stages.report import stage

    options = stage.ReportOptions(shards=shards, out=out, teacher=teacher, student=student, sample=sample)
    terminal.finish(stage.report(options, reporter), as_json=json)


def main() -> None:
    """Entry point of `sra-data`."""
    terminal.run(app, how_to_go_on="run the same command again: finished units are kept")


if __name__ == "__main__":
    main()
