"""The options of `sra-train compare`, declared once. Nothing heavy is imported: `--help` reads this."""

from __future__ import annotations

from dataclasses import dataclass

from sra_data.options import option


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, on what, and where it is written."""

    shards: str | None = option(None, "The folder of shards (default: shards).", is_argument=True)
    output_dir: str = option("comparisons/first", "Folder of the comparison; an existing one is gone on with.")
    methods: str | None = option(
        None, "Methods and presets with commas, name:3 for three seeds of one (default: sft,sra)."
    )
    ablation: str | None = option(None, "Tables of presets in place of --methods; the one there is: paper.")
    seeds: int = option(5, "Seeds of each method, counted up from training.seed.")
    rates: tuple[float, ...] = option((3e-4, 1e-3, 3e-3), "Learning rates tried for every method, with commas.")
    clips: tuple[float, ...] = option((), "Gradient norms to clip at, tried with every rate (default: the setting's).")
    tune_steps: int | None = option(None, "Steps of the runs that choose the rate (default: whole runs, used again).")
    config: str | None = option(None, "YAML of a run; its method, rate and folder are not read. Flags win over it.")
    settings: list[str] | None = option(
        None, "Any key of a run, dotted, for all methods: --set training.epochs=3.", name="set"
    )
    teacher: list[str] | None = option(None, "A teacher of the shards, or name:weight; once for each.")
    student: str | None = option(None, "Hub id or folder (default: the one the shards were aligned for).")
    test: str | None = option(None, "Held-out text, in the forms of `sra-data align --data` (default: development).")
    columns: str | None = option(None, "Columns of --test by hand: prompt=question,response=answer.")
    split: str | None = option(None, "Only the rows of --test with this split.")
    max_examples: int | None = option(None, "The first so many of --test.")
    max_length: int | None = option(None, "Tokens of an example of --test (default: the models' positions).")
    rouge: bool = option(False, "Generate too: sampled Rouge-L on the test data.")
    rouge_seeds: tuple[int, ...] = option((10, 20, 30, 40, 50), "Seeds of the generation.")
    max_new_tokens: int = option(512, "Tokens to generate.")
    teacher_model: str | None = option(None, "The teacher itself, Hub id or folder: measured beside its students.")
    workers: int | None = option(None, "Runs at once (default: one a GPU, or one a core with one thread each).")
