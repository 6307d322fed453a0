"""The command: check everything, tune, run the seeds, measure, and say what came of it.

Two rounds of jobs: all methods' points of the grid, then all seeds at the best points, each round as many at once as
the machine bears. Every job leaves what it found in its own folder, and a comparison that is asked for again does what
is missing there. The reports are written anew every time, from what the jobs left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sra_data.errors import ConfigError, TrainingError
from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train.compare.checks import Checked, check_all, claim_folder
from sra_train.compare.jobs import HeldOut, Job
from sra_train.compare.listing import registered_methods
from sra_train.compare.measure import development_rows, digest_of, reported_rows
from sra_train.compare.options import CompareOptions
from sra_train.compare.page import page
from sra_train.compare.pictures import draw
from sra_train.compare.plan import Entry, Point, RunKey, entries_of, grid_of, seed_runs, tuning_runs
from sra_train.compare.pool import Pool, cores_of_machine, devices_of_machine, make_slots
from sra_train.compare.records import RUN, Scored, Trained, read_tested, read_trained
from sra_train.compare.results import (
    Comparison,
    Ended,
    MethodResult,
    Reference,
    Ruler,
    RunResult,
    Tried,
    is_usable,
    mean_or_none,
    method_result,
    notes_of,
    run_result,
)
from sra_train.compare.settings import common_settings, config_of, config_of_run, exact_config
from sra_train.compare.tables import write_tables
from sra_train.config import PRESETS, YARDSTICK, TrainConfig
from sra_train.data.sources import open_shards
from sra_train.record.run_folder import write_text


def compare(options: CompareOptions, reporter: Reporter | None = None) -> Comparison:
    """Do what is missing of a comparison and report all of it.

    Raises:
        SRAError: One line for everything a user can mend.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; every run keeps a checkpoint.
    """
    work = prepare(options, reporter or Reporter())
    work.tune()
    work.run_seeds()
    return work.report()


def prepare(options: CompareOptions, reporter: Reporter) -> Work:
    """Everything that can be refused is refused here; then the folder is this comparison's."""
    methods = registered_methods()
    entries, tables = entries_of(options.methods, options.ablation, seeds=options.seeds, known=methods)
    grid = grid_of(options.rates, options.clips)
    if options.tune_steps is not None and options.tune_steps < 1:
        raise ConfigError(f"--tune-steps {options.tune_steps}: not a positive number of steps")
    configs = {entry.name: config_of(options, entry) for entry in entries}
    common = config_of(options, Entry("", {"method.name": YARDSTICK}, 1))
    slots = make_slots(options.workers, devices=devices_of_machine(), cores=cores_of_machine())
    data = common.data
    with open_shards(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib) as shards:
        development_rows(shards)
        checked = check_all(shards, configs)
        test = held_out(options, shards)
    folder = Path(options.output_dir)
    claim_folder(folder, roots=checked.roots, settings=common_settings(common), test=test.identity)
    abouts = {
        entry.name: PRESETS[entry.name].about if entry.name in PRESETS else methods[entry.name] for entry in entries
    }
    return Work(options, reporter, folder, entries, tables, grid, configs, abouts, common, checked, test, Pool(slots))


def held_out(options: CompareOptions, shards: ShardSet) -> HeldOut:
    """What is reported on, with a digest of its text.

    Raises:
        SourceError: If it cannot be read or is empty.
    """
    if options.test is None and (options.columns or options.split or options.max_examples):
        raise ConfigError("--columns, --split and --max-examples are of --test; give --test, or leave them out")
    found = HeldOut(
        data=options.test,
        digest="",
        columns=options.columns,
        split=options.split,
        max_examples=options.max_examples,
        max_length=options.max_length,
        rouge=options.rouge_seeds if options.rouge else (),
        max_new_tokens=options.max_new_tokens,
    )
    return replace(found, digest=digest_of(reported_rows(shards, found)))


class Work:
    """One comparison, its rounds in order."""

    def __init__(
        self,
        options: CompareOptions,
        reporter: Reporter,
        folder: Path,
        entries: Sequence[Entry],
        tables: dict[str, tuple[str, ...]],
        grid: Sequence[Point],
        configs: dict[str, TrainConfig],
        abouts: dict[str, str],
        common: TrainConfig,
        checked: Checked,
        test: HeldOut,
        pool: Pool,
    ) -> None:
        self.options, self.reporter, self.folder = options, reporter, folder
        self.entries, self.tables, self.grid = entries, tables, grid
        self.configs, self.abouts, self.common = configs, abouts, common
        self.checked, self.test, self.pool = checked, test, pool
        self.best: dict[str, Point] = {}
        self.tried: dict[str, list[Tried]] = {}

    # ------------------------------------------------------------------ rounds

    def tune(self) -> None:
        """Choose every method's point of the grid.

        Raises:
            TrainingError: If a method diverges at every point.
        """
        seed, steps = self.common.training.seed, self.options.tune_steps
        keys = {entry.name: tuning_runs(entry.name, self.grid, seed=seed, steps=steps) for entry in self.entries}
        jobs = [self.reference("untrained", self.test)]
        if self.options.teacher_model is not None:
            jobs.append(self.reference("teacher", self.test))
        jobs += [self.job(key, None) for own in keys.values() for key in own]
        self.pool.do(jobs, what="choosing rates", reporter=self.reporter, done=words_of)
        for name, own in keys.items():
            self.tried[name] = [self.tried_at(key) for key in own]
            self.best[name] = best_point(name, own, self.tried[name])
            self.reporter.line(f"{name}: {self.best[name].words}")

    def run_seeds(self) -> None:
        """Run every method's seeds at its best point, and measure them."""
        jobs = [self.job(key, self.test) for entry in self.entries for key in self.keys_of(entry)]
        self.pool.do(jobs, what="seeds", reporter=self.reporter, done=words_of)

    def report(self) -> Comparison:
        """Gather what the jobs left and write it down."""
        ended = {
            key: Ended(self.trained(self.folder / key.folder), read_tested(self.folder / key.folder, self.test.asked))
            for entry in self.entries
            for key in self.keys_of(entry)
        }
        ended = {key: one if is_usable(one.trained) else Ended(one.trained, None) for key, one in ended.items()}
        names = ["untrained", *(["teacher"] if self.options.teacher_model is not None else [])]
        references = {name: self.tested(self.folder_of(name)) for name in names}
        ruler = Ruler.of([*references.values(), *(one.tested for one in ended.values() if one.tested is not None)])
        runs = {key: run_result(key, self.folder / key.folder, one, ruler) for key, one in ended.items()}
        by_seed = {
            entry.name: {key.seed: one.tested for key in self.keys_of(entry) if (one := ended[key]).tested is not None}
            for entry in self.entries
        }
        methods = [self.method(entry, runs, by_seed, ruler) for entry in self.entries]
        found = self.comparison(
            methods, [self.measured(name, one, ruler) for name, one in references.items()], runs, ruler
        )
        return write_reports(found, self.folder)

    # ------------------------------------------------------------------ jobs

    def keys_of(self, entry: Entry) -> list[RunKey]:
        """The runs that are reported of a method."""
        return seed_runs(entry, self.best[entry.name], first_seed=self.common.training.seed)

    def job(self, key: RunKey, test: HeldOut | None) -> Job:
        """The job of a run."""
        folder = self.folder / key.folder
        return Job(folder, key.words, "run", config_of_run(self.configs[key.method], key, folder / RUN), test)

    def reference(self, kind: Any, test: HeldOut) -> Job:
        """The job of a model that is not trained here."""
        return Job(self.folder_of(kind), kind, kind, self.common, test, model=self.options.teacher_model)

    def folder_of(self, kind: str) -> Path:
        """Of a reference; a teacher's is named after it, so that another one does not find the first one's numbers."""
        named = re.sub(r"[^A-Za-z0-9._-]+", "-", str(self.options.teacher_model)).strip("-")
        return self.folder / kind if kind == "untrained" else self.folder / kind / named

    def trained(self, folder: Path) -> Trained:
        """What a job that is done left."""
        found = read_trained(folder)
        assert found is not None, f"{folder}: its job is done and has left nothing"
        return found

    def tested(self, folder: Path) -> Scored:
        """Likewise of the test data."""
        found = read_tested(folder, self.test.asked)
        assert found is not None, f"{folder}: its job is done and has left nothing"
        return found

    def tried_at(self, key: RunKey) -> Tried:
        """What came of a point."""
        trained = self.trained(self.folder / key.folder)
        return Tried(key.point.rate, key.point.clip, trained.bits_per_byte if is_usable(trained) else None)

    # ------------------------------------------------------------------ results

    def method(
        self, entry: Entry, runs: dict[RunKey, RunResult], by_seed: dict[str, Any], ruler: Ruler
    ) -> MethodResult:
        """One row of the table."""
        own = [runs[key] for key in self.keys_of(entry)]
        if not by_seed[entry.name]:
            raise TrainingError(
                f"{entry.name}: all {len(own)} seeds diverged at {self.best[entry.name].words}, though choosing it did"
                " not; give lower --rates"
            )
        return method_result(
            entry.name,
            self.best[entry.name],
            own,
            by_seed[entry.name],
            None if entry.name == YARDSTICK else by_seed.get(YARDSTICK),
            ruler,
            about=self.abouts[entry.name],
            covered=self.checked.covered[entry.name],
            grid=self.tried[entry.name],
        )

    def measured(self, name: str, tested: Scored, ruler: Ruler) -> Reference:
        """One reference."""
        model = self.checked.student if name == "untrained" else str(self.options.teacher_model)
        return Reference(
            name=name,
            model=model,
            bits_per_byte=ruler.per_byte(tested.bits),
            tempered=ruler.per_byte(tested.tempered_bits),
            temperature=self.trained(self.folder_of(name)).temperature,
            rouge_l=mean_or_none(tested.rouge or ()),
        )

    def comparison(
        self, methods: list[MethodResult], references: list[Reference], runs: dict[RunKey, RunResult], ruler: Ruler
    ) -> Comparison:
        """All of it."""
        is_development = self.test.data is None
        return Comparison(
            output_dir=str(self.folder),
            student=Path(self.checked.student).name,
            test=self.test.data or "development split",
            is_development=is_development,
            num_examples=int(ruler.kept.sum()),
            num_bytes=int(ruler.num_bytes[ruler.kept].sum()),
            num_left_out=int((~ruler.kept).sum()),
            steps=self.checked.total_steps,
            seeds=self.options.seeds,
            methods=methods,
            references=references,
            runs=list(runs.values()),
            notes=notes_of(methods=methods, references=references, is_development=is_development),
            tables=self.tables,
            configs={name: exact_config(config, self.best[name]) for name, config in self.configs.items()},
        )


def words_of(job: Job) -> str:
    """What to say of a job that is done."""
    trained = read_trained(job.folder)
    if trained is None or not is_usable(trained):
        return f"{job.title}: diverged"
    return f"{job.title}: {trained.bits_per_byte:.4f} bits per byte on the development split"


def best_point(name: str, keys: Sequence[RunKey], tried: Sequence[Tried]) -> Point:
    """The point with the fewest bits on the development split; the first of equals.

    Raises:
        TrainingError: If the method diverges at all of them.
    """
    usable = [(one.development, place) for place, one in enumerate(tried) if one.development is not None]
    if not usable:
        listed = ", ".join(str(key.point) for key in keys)
        raise TrainingError(
            f"{name}: diverges at every point of the grid ({listed}); give lower --rates, or leave it out of --methods"
        )
    return keys[min(usable)[1]].point


def write_reports(found: Comparison, folder: Path) -> Comparison:
    """Every file of the results; the comparison with their paths.

    Raises:
        TrainingError: If one cannot be written.
    """
    names = {"results": "results.json", "table": "table.csv", "runs": "runs.csv", "picture": "comparison.png"}
    names |= {"page": "comparison.html", "configs": "configs"}
    found = replace(found, files={what: str(folder / name) for what, name in names.items()})
    try:
        (folder / "configs").mkdir(exist_ok=True)
        for name, text in found.configs.items():
            write_text(folder / "configs" / f"{name}.yaml", text)
        write_tables(found, folder)
        draw(found, folder / names["picture"])
        write_text(folder / names["page"], page(found, (folder / names["picture"]).read_bytes()))
        write_text(folder / names["results"], json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); make room and run again") from None
    return found
