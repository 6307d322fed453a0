"""`run(config)`: one training run from shards to a model folder, resumed by itself; what `sra-train run` calls.

The same run in ten lines of Python::

    from sra_train.config import load_config
    from sra_train.run import run

    config = load_config(overrides={
        "data.shards": "shards",
        "output_dir": "runs/first",
        "training.epochs": 3,
    })
    summary = run(config)
    print(summary.model_folder, summary.metrics)

Everything that can be refused is refused before the first step: the folder of another run, a cache without the columns
the method needs, a student with another tokenizer. No code path here can load a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from sra_data.cards import licence_of
from sra_data.errors import ConfigError, DamagedError, TrainingError
from sra_data.model_files import commit_of
from sra_data.models.devices import kernels_for_any_shape
from sra_data.models.output_head import OutputHead
from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train.admission import refuse_other_vocabulary, refuse_short_positions
from sra_train.choosing import choose_sources, choose_student
from sra_train.config import TrainConfig
from sra_train.config.metric import refuse_metric
from sra_train.contract import MethodSetting, ModelShape
from sra_train.data.knowledge import teacher_settings
from sra_train.data.micro_batches import budget_of_device
from sra_train.data.order import OrderPlan
from sra_train.data.reader import RowReader
from sra_train.data.sources import open_shards
from sra_train.data.staging import StagingPool
from sra_train.data.stream import BatchMaker, Share
from sra_train.data.table import RowTable
from sra_train.determinism import deterministic, settings
from sra_train.hub import refuse_unpushable
from sra_train.loop import Trainer
from sra_train.measure.development import measure_development, wants_development
from sra_train.measure.evaluation import generation_prompts
from sra_train.measure.generation import Prompt, measure_generation
from sra_train.measure.reach import lines_of_reach
from sra_train.methods.base import Method, method_type
from sra_train.parallel import (
    COMPUTE_DTYPES,
    distribute,
    is_to_be_sharded,
    make_accelerator,
    resolve_precision,
    student_inside,
)
from sra_train.record.card import Told, model_card, teachers_in_words
from sra_train.record.checkpoint import Checkpoints, Progress, load_full_state
from sra_train.record.export import export_model, push
from sra_train.record.fingerprint import starting_weights
from sra_train.record.identity import TOTAL, WEIGHTS
from sra_train.record.plots import draw_run
from sra_train.record.provenance import ShardFacts, recorded_versions
from sra_train.record.resuming import Resume, where_to_resume
from sra_train.record.run_folder import claimed, default_output_dir, record_run, refuse_foreign_folder
from sra_train.record.summary import RunSummary, last_numbers
from sra_train.record.tracking import Metrics, finish, log_to, read_metrics, refuse_missing_trackers, start_trackers
from sra_train.router import router_loss_of
from sra_train.sharding import Parts, is_sharded, load_in_parts, of_first
from sra_train.student import (
    StudentModel,
    load_student,
    model_shape,
    num_parameters,
    parameter_groups,
    prepare_for_training,
)


def run(config: TrainConfig, reporter: Reporter | None = None) -> RunSummary:
    """Train a student from shards, or go on where the output folder stands.

    Raises:
        SRAError: One line for everything a user can mend.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    config = resolve(config)
    with kernels_for_any_shape(), deterministic(config.training.deterministic):
        accelerator = make_accelerator(config.training)
        shown = (reporter or Reporter()) if accelerator.is_main_process else Reporter()
        data = config.data
        with open_shards(data.shards, cache_dir=data.cache_dir, cache_gib=data.cache_gib) as shards:
            return Run(config, accelerator, shown, shards).carry_out()


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with everything left to the machine made definite, so that it can be compared and repeated."""
    precision = resolve_precision(config.training.precision)
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


class Run:
    """The parts of one run, put together."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, reporter: Reporter, shards: ShardSet) -> None:
        self.config = config
        self.accelerator = accelerator
        self.reporter = reporter
        self.shards = shards
        method = config.method
        self.method_type: type[Method] = method_type(method.name)
        self.knowledge_needs = self.method_type.knowledge_needs(method.options)
        chosen = choose_student(shards, config.student)
        self.student_name, self.student, self.tokenizer = chosen.name, chosen.options, chosen.tokenizer
        self.sources = choose_sources(shards, config, side=chosen.side, needs=self.knowledge_needs)
        self.facts = ShardFacts.read(self.sources)
        self.folder = Path(config.output_dir or default_output_dir(config, self.student_name))
        self.table = RowTable.read(self.sources)
        self.plan = OrderPlan(
            row_groups=self.table.row_groups,
            trainable=self.table.is_train,
            seed=config.training.seed,
            corpus_root=shards.corpus.root,
            window=config.data.window,
            batch_size=config.training.batch_size,
        )
        steps = config.training.epochs * self.plan.steps_per_epoch
        self.total_steps = min(steps, config.training.max_steps or steps)
        self.evaluates = wants_development(config.evaluation, self.table, shards=str(shards.path))
        self.refuse_what_does_not_fit()
        self.prompts = self.generation_prompts()
        self.parts: Parts | None = None  # of a student that only the first process has loaded

    def refuse_what_does_not_fit(self) -> None:
        """Combinations of options that cannot be carried out.

        Raises:
            ConfigError: With the remedy.
        """
        config = self.config
        generation = config.evaluation.generation
        if generation is not None and generation.sets and config.training.strategy == "fsdp2":
            raise ConfigError(
                "evaluation.generation with training.strategy=fsdp2: a sharded model cannot generate; evaluate the"
                " finished model with `sra-train evaluate`"
            )
        refuse_missing_trackers(config.tracking)

    def carry_out(self) -> RunSummary:
        """Prepare, train, export."""
        if self.config.hub.push_to is not None and self.accelerator.is_main_process:
            refuse_unpushable(self.config.hub.push_to)
        student = self.build_student()
        self.groups_of(student)  # refused, if nothing is left to train, before a folder is made
        # Refused, if the pages lack a column, before a folder is made.
        reader = RowReader(self.sources, student.method.needs)
        identity = self.identity(self.sources.roots())
        if not self.accelerator.is_main_process:  # the first one claims it for all
            known = refuse_foreign_folder(self.folder, identity)
            return self.carry_out_there(student, reader, identity, known)
        with claimed(self.folder, identity) as known:
            return self.carry_out_there(student, reader, identity, known)

    def carry_out_there(
        self,
        student: StudentModel,
        reader: RowReader,
        identity: Mapping[str, Any],
        known: Mapping[str, Any] | None,
    ) -> RunSummary:
        """`carry_out`, once the folder is this run's alone; `known` is the identity it has on record."""
        checkpoints = Checkpoints(
            self.folder / "checkpoints",
            keep_last=self.config.checkpoints.keep_last,
            identity=identity,
        )
        if self.accelerator.is_main_process:
            checkpoints.tidy()
        self.accelerator.wait_for_everyone()
        # Refused, if it is another run's, before anything is written or moved to a device.
        resume = where_to_resume(checkpoints, known)
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        self.begin(checkpoints, identity, resume)
        self.describe(student)
        training = self.config.training
        model, optimizer = distribute(self.accelerator, student, training, self.groups_of, self.parts)
        self.parts = None
        progress = Progress()
        if resume is not None:
            progress = self.go_on(checkpoints, resume, model, optimizer)
        elif self.accelerator.is_main_process and training.strategy != "fsdp2" and not training.compile:
            # A part of a student says nothing, and a compiled one would be compiled for the length of every example.
            for line in lines_of_reach(student_inside(model), self.sources, self.accelerator.device):
                self.reporter.line(line)
        progress = self.train(model, optimizer, reader, checkpoints, progress)
        return self.finish(checkpoints, progress)

    def begin(self, checkpoints: Checkpoints, identity: Mapping[str, Any], resume: Resume | None) -> None:
        """Write down what the run is made of, and say where it goes on; the first process works."""
        if not self.accelerator.is_main_process:
            return
        for line in [] if resume is None else resume.lines(self.total_steps):
            self.reporter.line(line)
        for step in {} if resume is None else resume.damaged:
            self.reporter.line(f"what is left of step {step} is kept as {checkpoints.set_aside(step)}")
        record_run(
            self.folder,
            self.config,
            identity=identity,
            roots=self.sources.roots(),
            facts=self.facts,
            student={
                "name": self.student_name,
                "commit": commit_of(self.student_name, self.student.revision),
                "weights": self.began_with,
            },
            extended_at=[] if resume is None else resume.extended_at,
            determinism=settings(),
        )

    def go_on(self, checkpoints: Checkpoints, resume: Resume, model: nn.Module, optimizer: Any) -> Progress:
        """Put a checkpoint's state into model and optimizer; where the run stands then."""
        reads = self.accelerator.is_main_process or not is_sharded(model)  # else the first one's are handed round
        weights, moments, kept = checkpoints.load(resume.step, resume.state, with_tensors=reads)
        if self.accelerator.is_main_process:
            checkpoints.prune(kept.best_step)  # a kill may have come between writing and that
        load_full_state(model, getattr(optimizer, "optimizer", optimizer), weights, moments)
        if self.accelerator.scaler is not None and kept.scaler:
            self.accelerator.scaler.load_state_dict(kept.scaler)
        self.reporter.line(f"resumed from step {kept.step} of {self.total_steps} in {self.folder}")
        return resume.progress(kept)

    # ------------------------------------------------------------------ before

    def build_student(self) -> StudentModel:
        """The student and its method on the CPU.

        Raises:
            SRAError: If it cannot be loaded, or not be trained on these rows, so, or measured so.
        """
        training = self.config.training
        model: Any = self.load_student()
        if self.student.init == "random":
            self.reporter.line(f"student {self.student_name}: new random weights from its config.json")
        shape = model_shape(model)
        refuse_other_vocabulary(model, self.tokenizer, name=self.student_name)
        refuse_short_positions(model, self.table, name=self.student_name, with_development=self.evaluates)
        router = router_loss_of(model, training.router_loss, who=f"student {self.student_name}")
        refuse_metric(self.config, [one.name for one in self.sources.teachers], has_router=router is not None)
        self.began_with = self.starting_weights(model)
        method = self.build_method(shape, OutputHead.from_model(model))
        prepare_for_training(
            model, gradient_checkpointing=training.gradient_checkpointing, compile_body=training.compile
        )
        return StudentModel(model, method, COMPUTE_DTYPES[training.precision], router)

    def load_student(self) -> nn.Module:
        """The student: on this process, or, where it is to be sharded, on the first alone if that can be."""
        training, device = self.config.training, self.accelerator.device
        if not is_to_be_sharded(self.accelerator, training):
            return load_student(self.student_name, self.student, seed=training.seed)
        model, self.parts = load_in_parts(self.student_name, self.student, seed=training.seed, device=device)
        return model

    def starting_weights(self, model: nn.Module) -> str:
        """What the student begins with, hashed by whoever holds it."""
        if self.parts is None:
            return starting_weights(model, self.student)
        return of_first(lambda: starting_weights(model, self.student))

    def build_method(self, shape: ModelShape, head: OutputHead) -> Method:
        """The objective, told what it needs to know of its teachers."""
        needs = self.knowledge_needs
        teachers = () if needs is None else teacher_settings(self.sources, needs)
        setting = MethodSetting(
            student=shape, teachers=teachers, seed=self.config.training.seed, student_head=head.detach()
        )
        return self.method_type(self.config.method.options, setting)

    def identity(self, roots: Mapping[str, str]) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return {
            **{f"root.{name}": root for name, root in roots.items()},
            # in order: the first one's head carries the cross entropy, and projectors are numbered
            "data.teachers": [f"{one.name}:{one.weight:.12g}" for one in self.sources.teachers],
            TOTAL: self.total_steps,
            WEIGHTS: self.began_with,
            **self.config.identity(),
        }

    def describe(self, student: StudentModel) -> None:
        """Say what is about to happen."""
        table, share = self.table, self.share()
        every, trained = num_parameters(student)
        left_out = ", ".join(f"{count} {status}" for status, count in table.skipped.items()) or "none"
        self.reporter.line(
            f"{self.config.method.name}: student {self.student_name}, {every:,} parameters, {trained:,} trained;"
            f" {teachers_in_words(self.facts)}"
        )
        self.reporter.line(
            f"{table.is_train.sum():,} examples to train on, {table.is_dev.sum():,} for development,"
            f" left out: {left_out}"
        )
        for name, count in table.lacking.items():
            self.reporter.line(
                f"{count:,} of the examples to train on are unknown to {name}: they keep all other terms"
            )
        self.reporter.line(
            f"{self.total_steps:,} steps of {self.config.training.batch_size} examples on {share.world_size}"
            f" process(es), in micro-batches of {share.budget}, on {self.accelerator.device.type}"
        )
        if student.router is not None:
            weight = student.router.coefficient
            self.reporter.line(
                f"a mixture of experts: its router's loss is added, times {weight:g} (training.router_loss)"
            )
        if not self.evaluates:
            self.reporter.line("no development split is measured: the last weights are exported")

    def groups_of(self, student: StudentModel) -> list[dict[str, Any]]:
        """The optimizer's parameter groups."""
        training = self.config.training
        return parameter_groups(
            student,
            learning_rate=training.learning_rate,
            projector_learning_rate=training.projector_learning_rate,
            weight_decay=training.weight_decay,
        )

    def share(self) -> Share:
        """Which part of a global batch this process runs."""
        training = self.config.training
        budget = budget_of_device(self.accelerator.device.type).limited(
            most_tokens=training.micro_batch_tokens, most_rows=training.micro_batch_size
        )
        return Share(self.accelerator.process_index, self.accelerator.num_processes, budget)

    def generation_prompts(self) -> dict[str, list[Prompt]]:
        """What is asked while training, by set; empty where nothing is generated.

        Raises:
            SourceError: If a set cannot be read.
        """
        generation = self.config.evaluation.generation
        if not self.evaluates or generation is None or not generation.sets:
            return {}
        return generation_prompts(generation, self.student_name, self.student)

    # ------------------------------------------------------------------ during

    def train(
        self,
        model: nn.Module,
        optimizer: Any,
        reader: RowReader,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> Progress:
        """Run the loop with its files and trackers open."""
        pool = StagingPool(pinned=self.accelerator.device.type == "cuda")
        maker = BatchMaker(read=reader, table=self.table, pool=pool)
        is_main = self.accelerator.is_main_process
        is_evaluated = progress.evaluated_step == progress.step
        metrics = Metrics(self.folder, resume_step=progress.step, is_evaluated=is_evaluated) if is_main else None
        if metrics is not None and metrics.num_damaged:
            self.reporter.line(
                f"{metrics.jsonl}: {metrics.num_damaged} damaged line(s) dropped; those behind step {progress.step} are"
                " written again"
            )
        trackers = start_trackers(
            self.accelerator,
            self.config.tracking,
            folder=self.folder,
            config=self.config.model_dump(mode="json"),
        )

        def log(kind: str, step: int, values: Mapping[str, Any]) -> None:
            assert metrics is not None
            metrics.write(kind, step, values)
            log_to(trackers, kind, step, values)

        trainer = Trainer(
            config=self.config,
            accelerator=self.accelerator,
            model=model,
            optimizer=optimizer,
            plan=self.plan,
            maker=maker,
            pool=pool,
            share=self.share(),
            checkpoints=checkpoints,
            progress=progress,
            total_steps=self.total_steps,
            reporter=self.reporter,
            log=log,
            evaluate=self.evaluation() if self.evaluates else None,
        )
        try:
            with nullcontext() if metrics is None else metrics.closed_in_the_end():
                return trainer.run()
        finally:
            finish(trackers)

    def evaluation(self) -> Any:
        """What is measured between steps."""
        generation, prompts = self.config.evaluation.generation, self.prompts
        if generation is None or not prompts:
            return measure_development

        def evaluate(trainer: Trainer) -> dict[str, float] | None:
            found = measure_development(trainer)
            epoch, rest = divmod(trainer.progress.step, self.plan.steps_per_epoch)
            is_time = rest == 0 and epoch % generation.every_epochs == 0
            if found is None or not (is_time or trainer.progress.step == self.total_steps):
                return found
            inner = student_inside(trainer.model)
            inner.eval()
            try:
                return found | measure_generation(inner.model, self.tokenizer, prompts, generation, self.accelerator)
            finally:
                inner.train()

        return evaluate

    # ------------------------------------------------------------------ after

    def finish(self, checkpoints: Checkpoints, progress: Progress) -> RunSummary:
        """Export the model, draw the plots, write the card, push: the first process; others wait for all but that."""
        wants_best = self.config.checkpoints.export == "best" and progress.best_step is not None
        exported = progress.best_step if wants_best and progress.best_step is not None else progress.step
        folder, hub = None, None
        records = read_metrics(self.folder / "metrics.jsonl") if self.accelerator.is_main_process else []
        if self.accelerator.is_main_process:
            told = Told(
                config=self.config,
                student=self.student_name,
                facts=self.facts,
                licence=licence_of(self.student_name, self.student.revision),
                roots=self.sources.roots(),
                versions=recorded_versions(),
                records=records,
                extended_at=progress.extended_at,
                exported_step=exported,
                total_steps=self.total_steps,
            )
            folder = export_model(
                options=self.student,
                seed=self.config.training.seed,
                student_name=self.student_name,
                tokenizer=self.tokenizer,
                began_with=self.began_with,
                weights=self.weights_of(checkpoints, exported, is_last=exported == progress.step),
                card=model_card(told),
                folder=self.folder / "model",
            )
            if self.config.tracking.plots:
                draw_run(records, self.folder / "plots")
            self.reporter.line(f"the student of step {exported} is in {folder}")
        self.accelerator.wait_for_everyone()
        # Behind it: a push may take longer than processes wait for each other.
        if folder is not None and self.config.hub.push_to is not None:
            hub = push(folder, name=self.config.hub.push_to, private=self.config.hub.private)
        return RunSummary(
            output_dir=str(self.folder),
            model_folder=None if folder is None else str(folder),
            steps=progress.step,
            total_steps=self.total_steps,
            stopped_early=progress.stopped_early,
            exported_step=exported,
            metrics=last_numbers(records),
            seconds=progress.seconds,
            hub=hub,
        )

    def weights_of(self, checkpoints: Checkpoints, step: int, *, is_last: bool) -> dict[str, Tensor]:
        """The weights to be exported.

        Raises:
            TrainingError: If they are damaged.
        """
        try:
            return checkpoints.read_model(step)
        except DamagedError as error:
            if is_last:
                raise
            raise TrainingError(
                f"{error.what}: the best step cannot be exported; set checkpoints.export=last to have the last"
            ) from None
