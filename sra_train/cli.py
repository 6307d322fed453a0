"""The `sra-train` command line: thin functions that build a config, call the library and print what it returns.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sra_data import terminal
from sra_data.command_line import Program
from sra_data.options import expand
from sra_train.choices import METHODS, Precision, WeightDtype
from sra_train.compare.options import CompareOptions

app = Program("Teach any student from the shards `sra-data` wrote; the teacher is never loaded.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


Version = Annotated[bool, typer.Option("--version", callback=terminal.print_version, is_eager=True, help="Print it.")]


@app.callback()
def options(show_version: Version = False) -> None:
    """Teach any student from the shards `sra-data` wrote; the teacher is never loaded."""


def methods_beginning_with(incomplete: str) -> list[str]:
    """What the shell completes --method with."""
    return [name for name in METHODS if name.startswith(incomplete)]


def presets_beginning_with(incomplete: str) -> list[str]:
    """What the shell completes --preset with."""
    from sra_train.config import PRESETS

    return [name for name in sorted(PRESETS) if name.startswith(incomplete)]


@app.command()
def run(
    shards: Annotated[str | None, typer.Argument(help="The folder of shards, or s3://... (default: shards).")] = None,
    config: Annotated[str | None, typer.Option(help="YAML; flags win over it.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Named settings under --config and the flags; `sra-train compare --list-methods` lists them.",
            autocompletion=presets_beginning_with,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="sra, sft (cross-entropy alone), boundary, strict, uld, alm, multilevel-ot, dskd, dskdv2, mined "
            "(default: sra).",
            autocompletion=methods_beginning_with,
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="A teacher of the shards, or name:weight; once for each (default: the only one)."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Hub id or folder (default: the one the shards were aligned for).")
    ] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder of the run; what is there is resumed.")] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Where blocks of shards in a store are kept (default: ~/.cache/sra-distill).")
    ] = None,
    cache_gib: Annotated[float | None, typer.Option(help="What they may weigh, in GiB (default: 16).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split (default: 10).")] = None,
    max_steps: Annotated[int | None, typer.Option(help="End after so many steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step over all processes (default: 16).")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Most examples a process runs at once.")] = None,
    micro_batch_tokens: Annotated[int | None, typer.Option(help="Most tokens, padding included, at once.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of the student (default: 5e-4).")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the computation (default: auto).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and the projectors (default: 42).")] = None,
    lora: Annotated[bool | None, typer.Option("--lora/--no-lora", help="Train low-rank adapters (peft).")] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic/--no-deterministic", help="The same bits every time, on a GPU too; slower."),
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="owner/name to push the finished model to.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key, dotted: --set method.temperature=1.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole config as YAML and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Stream the shards and train the student. Running the same command again resumes."""
    from sra_train.config import load_config, pairs

    flags = {
        "data.shards": shards,
        "data.teachers": teacher or None,
        "data.cache_dir": cache_dir,
        "data.cache_gib": cache_gib,
        "method.name": method,
        "student.name": student,
        "output_dir": output_dir,
        "training.epochs": epochs,
        "training.max_steps": max_steps,
        "training.batch_size": batch_size,
        "training.micro_batch_size": micro_batch_size,
        "training.micro_batch_tokens": micro_batch_tokens,
        "training.learning_rate": learning_rate,
        "training.precision": precision,
        "training.seed": seed,
        "student.lora": lora,
        "training.deterministic": deterministic,
        "hub.push_to": push_to_hub,
    }
    given = {name: value for name, value in flags.items() if value is not None} | pairs(settings)
    reporter = terminal.start(f"run: {shards or 'shards'}", quiet=json or print_config)
    chosen = load_config(config, given, preset=preset)
    if print_config:
        print(chosen.to_yaml(), end="")
        return
    from sra_train import run as training

    summary = training.run(chosen, reporter)
    if summary.model_folder is not None:  # the other processes of a distributed run say nothing
        terminal.finish(summary, as_json=json)


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Hub ids (with @revision) or folders, compared on the same text.")
    ],
    data: Annotated[str, typer.Option(help="Held-out text, in the forms of `sra-data align --data`.")],
    columns: Annotated[str | None, typer.Option(help="Columns by hand: prompt=question,response=answer.")] = None,
    split: Annotated[str | None, typer.Option(help="Only the rows of this split.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="The first so many.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an example (default: the models' positions).")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples of one forward.")] = 8,
    rouge: Annotated[bool, typer.Option("--rouge", help="Generate too: Rouge-L by five seeds.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds of the generation.")] = "10,20,30,40,50",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 512,
    device: Annotated[str | None, typer.Option(help="Where to run (default: a GPU where there is one).")] = None,
    dtype: Annotated[WeightDtype, typer.Option(help="Of the weights in memory.")] = "float32",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a model.")] = False,
    json: Json = False,
) -> None:
    """Bits per byte (and Rouge-L) of any models on any text."""
    reporter = terminal.start(f"evaluate: {', '.join(models)}, on {data}", quiet=json)
    from sra_train.config import generation_of
    from sra_train.measure import evaluation

    protocol = generation_of(seeds=whole_numbers(seeds), max_new_tokens=max_new_tokens)
    summary = evaluation.evaluate(
        evaluation.EvaluateOptions(
            models=tuple(models),
            data=data,
            columns=columns,
            split=split,
            max_examples=max_examples,
            max_length=max_length,
            batch_size=batch_size,
            generation=protocol if rouge else None,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        ),
        reporter,
    )
    terminal.finish(summary, as_json=json)


@app.command()
@expand()
def compare(
    options: CompareOptions,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="List methods and presets, a line each, and stop; needs no shards.")
    ] = False,
    json: Json = False,
) -> None:
    """Train the same student by several methods and seeds and say which is better. Run again, it goes on."""
    if list_methods:
        from sra_train.compare import listing

        terminal.finish(listing.list_methods(), as_json=json)
        return
    reporter = terminal.start(f"compare: {options.shards or 'shards'}, into {options.output_dir}", quiet=json)
    from sra_train.compare import stage, tables

    found = stage.compare(options, reporter)
    terminal.finish(tables.Shown(found), as_json=json)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Folders that `sra-train run` wrote; several stand side by side.")],
    out: Annotated[str, typer.Option(help="The page.")] = "run-report.html",
    samples: Annotated[int, typer.Option(help="Prompts that every finished student answers; 0 loads no model.")] = 3,
    device: Annotated[str | None, typer.Option(help="Where they answer (default: a GPU where there is one).")] = None,
    json: Json = False,
) -> None:
    """Draw runs on one self-contained page: curves, samples, configuration, provenance."""
    reporter = terminal.start(f"report: {', '.join(runs)}, into {out}", quiet=json)
    from sra_train.report import stage

    options = stage.RunReportOptions(tuple(runs), out, samples, device)
    terminal.finish(stage.report(options, reporter), as_json=json)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Seeds with commas between them.

    Raises:
        ConfigError: If one is no whole number.
    """
    from sra_data.errors import ConfigError

    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: not whole numbers with commas between them; write 10,20") from None


def main() -> None:
    """Entry point of `sra-train`."""
    terminal.run(app, how_to_go_on="run the same command again: it goes on from the last checkpoint")


if __name__ == "__main__":
    main()
