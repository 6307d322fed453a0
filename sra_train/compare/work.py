"""The process of one job: it trains, then measures, and writes down both.

It ends with whoever started it: the end of the comparison's process counts as a SIGTERM, upon which a run keeps a
checkpoint. So a comparison that is killed leaves nobody behind who would still be writing into a folder when the
comparison is started again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from sra_data import terminal
from sra_data.errors import DivergedError, one_line
from sra_data.shards.store import ShardSet
from sra_train.choosing import choose_student
from sra_train.compare.jobs import Job
from sra_train.compare.measure import Measured, development_rows, reported_rows
from sra_train.compare.records import LOG, RUN, Trained, read_tested, read_trained, write_tested, write_trained
from sra_train.data.sources import open_shards
from sra_train.measure.evaluation import EvaluateOptions, load_model, load_side
from sra_train.record.run_folder import RUN_FILE
from sra_train.run import run
from sra_train.student import load_student


def do(job: Job, reporter: terminal.Reporter) -> None:
    """What of the job is not done yet.

    Raises:
        SRAError: One line for everything a user can mend.
    """
    trained = read_trained(job.folder)
    measured: Measured | None = None
    data = job.config.data
    with open_shards(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib) as shards:
        if trained is None:
            model, step = trained_model(job, reporter)
            if model is None:
                return
            measured = open_model(job, model, shards)
            bits_per_byte, temperature, count = measured.development(development_rows(shards))
            finite = bits_per_byte if math.isfinite(bits_per_byte) else None
            trained = Trained("done", "", model, step, finite, temperature, count)
            write_trained(job.folder, trained)
            shutil.rmtree(job.folder / RUN / "checkpoints", ignore_errors=True)  # larger than the model, and used up
        if trained.status == "diverged" or job.test is None or read_tested(job.folder, job.test.asked) is not None:
            return
        measured = measured or open_model(job, trained.model, shards)
        write_tested(job.folder, measured.test(reported_rows(shards, job.test), job.test, trained.temperature))


def trained_model(job: Job, reporter: terminal.Reporter) -> tuple[str | None, int]:
    """(folder or name of the model, the step of its weights); (None, 0) where training diverged, which is kept."""
    if job.kind != "run":
        return job.model or "", 0
    folder = job.folder / RUN
    if not (folder / RUN_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # stopped before it knew whose it was
    try:
        summary = run(job.config, reporter)
    except DivergedError as error:
        write_trained(job.folder, Trained("diverged", one_line(error)))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return None, 0
    assert summary.model_folder is not None
    return summary.model_folder, summary.exported_step


def open_model(job: Job, name: str, shards: ShardSet) -> Measured:
    """The model of a job; the student before the first step for one that is `untrained`."""
    options = job.config.student
    if job.kind == "untrained":
        chosen = choose_student(shards, options)
        side = load_side(chosen.name, revision=chosen.options.revision, trust_remote_code=options.trust_remote_code)
        return Measured(chosen.name, load_student(chosen.name, chosen.options, seed=job.config.training.seed), side)
    name = str(job.folder / RUN / "model") if job.kind == "run" else name  # the folder may have been moved
    own = EvaluateOptions(models=(name,), data="", trust_remote_code=options.trust_remote_code)
    return Measured(name, load_model(name, own), load_side(name, trust_remote_code=options.trust_remote_code))


def end_with_the_parent() -> None:
    """Take the end of the comparison's process for a SIGTERM."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a job is never a program of its own"

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def work_in(folder: Path, environment: Mapping[str, str]) -> None:
    """What the process does.

    Args:
        folder: of the job; what it says goes to a log there.
        environment: its share of the machine.
    """
    os.setsid()  # a Ctrl-C reaches it once, through the comparison
    os.environ.update(environment)
    torch.set_num_threads(
        int(environment["OMP_NUM_THREADS"].split(",")[0])
    )  # read when torch was imported, before this was known
    with (folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    end_with_the_parent()
    terminal.run(
        lambda: do(Job.read(folder), terminal.PlainReporter()),
        how_to_go_on="run the comparison again: it goes on from the last checkpoint",
    )
