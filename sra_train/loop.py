"""The training loop: one global step after another, the same whatever the number of processes.

A step runs this rank's micro-batches, adds gradients up over micro-batches and ranks, looks at the loss BEFORE the
weights change (a NaN stops the run and names the examples), clips, and updates. What a step reads, its learning rate
and its random numbers are pure functions of (seed, step), so the loop has no state but `Progress`.

Between steps: evaluate, write a checkpoint, or answer a Ctrl-C or SIGTERM, on all ranks alike.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sra_data.errors import DivergedError
from sra_data.terminal import Reporter
from sra_train.config import TrainConfig
from sra_train.contract import Batch, LabelRows, map_tensors
from sra_train.data.order import OrderPlan
from sra_train.data.prefetch import Prefetcher
from sra_train.data.staging import StagingPool
from sra_train.data.stream import BatchMaker, MicroBatch, Share, training_stream
from sra_train.memory import less_at_once, memory_refused
from sra_train.parallel import (
    StopRequest,
    gather_objects,
    gradient_exchange,
    loss_factor,
    student_inside,
    sum_over_ranks,
)
from sra_train.record.checkpoint import Checkpoints, Progress, full_state
from sra_train.schedule import learning_rate

MOST_EXAMPLES_NAMED = 8
SHORTEST_STEP = 1e-9  # seconds, of a clock that stands still or goes back
Evaluate = Callable[["Trainer"], dict[str, float] | None]
Log = Callable[[str, int, Mapping[str, Any]], None]


@dataclass
class StepSums:
    """What one rank adds up over the micro-batches of a step; summed over ranks before it is looked at."""

    values: dict[str, Tensor | float] = field(default_factory=dict)
    suspects: list[tuple[list[str], Tensor]] = field(default_factory=list)  # ids and per-example sums, for a NaN

    def add(self, name: str, value: Tensor | float) -> None:
        self.values[name] = self.values.get(name, 0.0) + value

    def over_ranks(self, accelerator: Accelerator, *, norm: Tensor | None = None) -> dict[str, float]:
        """All sums over all ranks, in one exchange and one wait for the device.

        Args:
            accelerator: Of this process.
            norm: Of the gradients, equal on all ranks; comes along as ``grad_norm``.
        """
        ordered = sorted(self.values.items())  # alike on all ranks
        on_device = {name: value for name, value in ordered if isinstance(value, Tensor)}
        plain = {name: value for name, value in ordered if name not in on_device}
        pieces = [torch.tensor(list(plain.values()), dtype=torch.float64).to(accelerator.device, non_blocking=True)]
        if on_device:
            pieces.append(torch.stack([value.double() for value in on_device.values()]))
        vector = sum_over_ranks(accelerator, torch.cat(pieces))
        names = [*plain, *on_device]
        if norm is not None:
            names, vector = [*names, "grad_norm"], torch.cat([vector, norm.double().reshape(1)])
        return dict(zip(names, vector.tolist(), strict=True))


class Trainer:
    """Everything the loop works on.

    Args:
        config: Of the run.
        accelerator: Of this process.
        model: What `parallel.distribute` returned.
        optimizer: Likewise.
        plan: The order.
        maker: Makes this rank's micro-batches.
        pool: The maker's staging buffers.
        share: Which part of a global batch this rank runs.
        checkpoints: Where state is written.
        progress: Where the run stands.
        total_steps: Of the whole run.
        reporter: Shows progress; silent on all ranks but the first.
        log: (kind, steps done, values) -> metrics and trackers; called on the first rank only.
        evaluate: Measures the development split; None for never.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        plan: OrderPlan,
        maker: BatchMaker,
        pool: StagingPool,
        share: Share,
        checkpoints: Checkpoints,
        progress: Progress,
        total_steps: int,
        reporter: Reporter,
        log: Log,
        evaluate: Evaluate | None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.plan = plan
        self.maker = maker
        self.pool = pool
        self.share = share
        self.checkpoints = checkpoints
        self.progress = progress
        self.total_steps = total_steps
        self.reporter = reporter
        self.log = log
        self.evaluate = evaluate
        self.stop = StopRequest()
        self.stopping = False
        self.resumed_at = progress.step
        self.at_once = (0, 0)  # examples, and tokens of the longest, of the micro-batch that is run

    def run(self) -> Progress:
        """Train to the end, to an early stop, or to an interruption.

        Raises:
            DivergedError: If the loss or the gradients are not finite.
            TrainingError: If the device's memory runs out.
            KeyboardInterrupt: After a checkpoint, if asked to stop.
        """
        start = self.progress.step
        if self.progress.stopped_early or (start >= self.total_steps and not self.owes_evaluation()):
            return self.progress
        stream = training_stream(self.maker, self.plan, self.share, start=start, stop=self.total_steps)
        with (
            self.stop,
            Prefetcher(stream, depth=self.config.data.prefetch, begin=self.take_device) as batches,
            self.reporter.task("train", total=self.total_steps, unit="steps") as task,
            memory_refused(self.accelerator.device, self.doing, self.needing_less),
        ):
            task.go_on_from(start)
            if self.owes_evaluation() and self.between_steps():
                return self.progress
            for step in range(start, self.total_steps):
                record = self.train_step(step, batches)
                self.progress.step = step + 1
                if self.accelerator.is_main_process:
                    self.log("step", step + 1, record)
                task.advance(1, loss=f"{record['loss']:.4f}", tokens_per_second=f"{record['tokens_per_second']:,.0f}")
                if self.between_steps():
                    break
        return self.progress

    def take_device(self) -> None:
        """Have this thread work for the run's GPU: page-locked memory would open a context on the first one instead."""
        device = self.accelerator.device
        if device.type == "cuda" and device.index is not None:  # without a number it is the first one
            torch.cuda.set_device(device)

    def doing(self) -> str:
        """Where the run stands."""
        rows, tokens = self.at_once
        return f"step {self.progress.step + 1} of {self.total_steps}, {rows} examples of up to {tokens} tokens"

    def needing_less(self) -> str:
        """What to set where memory runs out."""
        others = "training.gradient_checkpointing=true or student.lora=true"
        if self.evaluate is not None:
            others = f"evaluation.batch_size={max(self.config.evaluation.batch_size // 4, 1)}, {others}"
        return less_at_once(*self.at_once, others)

    # ------------------------------------------------------------------ one step

    def train_step(self, step: int, batches: Prefetcher[MicroBatch]) -> dict[str, float]:
        """One global step; its record for the log."""
        started, waited = time.perf_counter(), batches.seconds_waited
        rates = self.set_learning_rates(step)
        sums = StepSums()
        for micro in batches:
            assert micro.step == step
            self.run_micro_batch(micro, sums)
            if micro.is_last:
                break
        totals = sums.over_ranks(self.accelerator, norm=self.clip())
        norm = totals.pop("grad_norm")
        self.stopping = totals.pop("stop") > 0  # any rank's request, known to all without another exchange
        if not all(math.isfinite(value) for value in totals.values()):
            self.stop_for_what_is_not_finite(step, totals, sums)
        self.update(step, norm, sums)
        seconds = max(time.perf_counter() - started, SHORTEST_STEP)
        self.progress.tokens += int(totals["tokens"])
        self.progress.seconds += seconds
        return {
            "epoch": step // self.plan.steps_per_epoch + 1,
            **{name: totals[name] for name in ("loss", *sorted(totals)) if name not in ("tokens", "spans")},
            **rates,
            "grad_norm": norm,
            "tokens": totals["tokens"],
            "spans": totals["spans"],
            "tokens_per_second": totals["tokens"] / seconds,
            "seconds": seconds,
            "data_wait": (batches.seconds_waited - waited) / seconds,
            "peak_memory_bytes": peak_memory(self.accelerator.device),
        }

    def run_micro_batch(self, micro: MicroBatch, sums: StepSums) -> None:
        """Forward and backward of one micro-batch; gradients stay, sums grow."""
        seed_random(self.config.training.seed, micro.step, micro.index, self.share.rank)
        self.at_once = micro.shape
        batch, _ = to_device(micro, self.accelerator.device, self.pool)
        with gradient_exchange(self.model, now=micro.is_last):
            losses = self.model(batch, micro.totals)
            self.accelerator.backward(losses["total"] * loss_factor(self.model, self.accelerator))
        give_back_after_use(micro, self.accelerator.device, self.pool)
        sums.add("loss", losses["total"].detach().double())
        for name, value in losses["terms"].items():
            sums.add(name, value.double())
        for name, value in losses["counts"].items():
            if name != "spans":  # counted below, from the index
                sums.add(f"count_{name}", value.double())
        sums.add("stop", float(self.stop.requested))
        sums.add("tokens", float(micro.num_tokens))
        sums.add("spans", float(micro.num_spans))
        if losses["per_example"]:
            sums.suspects.append((micro.batch.example_ids, torch.stack(list(losses["per_example"].values()))))
        else:
            sums.suspects.append((micro.batch.example_ids, losses["total"].detach().reshape(1, 1)))

    def clip(self) -> Tensor:
        """Clip the gradients; their norm before, not yet looked at."""
        limit = self.config.training.max_grad_norm
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm: Any = self.accelerator.clip_grad_norm_(trained, math.inf if limit is None else limit)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)

    def update(self, step: int, norm: float, sums: StepSums) -> None:
        """Take the optimizer's step; `norm` is the gradients' before clipping."""
        scaled = self.accelerator.scaler is not None
        if not math.isfinite(norm) and not scaled:
            raise DivergedError(
                f"step {step + 1}: the gradients are {norm} though the loss is finite, in a batch with the examples"
                f" {named(self.ids_of(sums))}; lower training.learning_rate or set training.precision=no;"
                " the last checkpoint is untouched"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if scaled and self.accelerator.optimizer_step_was_skipped:
            self.progress.skipped_steps += 1

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Give every group its rate for this step; the rates by name, for the log."""
        training = self.config.training
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                total_steps=self.total_steps,
                warmup=training.warmup,
                peak=group["peak"],
                minimum=training.min_learning_rate,
                schedule=training.schedule,
            )
            rates["projector_lr" if group["name"] == "projectors" else "lr"] = group["lr"]
        return rates

    def stop_for_what_is_not_finite(self, step: int, totals: Mapping[str, float], sums: StepSums) -> None:
        """End the run on every rank, naming what is not finite and the examples it comes from."""
        local = [
            example
            for ids, values in sums.suspects
            for example, broken in zip(ids, (~torch.isfinite(values)).any(dim=0).expand(len(ids)).tolist(), strict=True)
            if broken and example
        ]
        found = [example for ids in gather_objects(self.accelerator, local) for example in ids]
        if not found:  # the sum is broken though each example's own numbers are not
            found = [e for ids in gather_objects(self.accelerator, self.ids_of(sums)) for e in ids]
        wrong = ", ".join(f"{name}={value}" for name, value in totals.items() if not math.isfinite(value))
        raise DivergedError(
            f"step {step + 1}: {wrong} with the examples {named(found)}; look at them with `sra-data inspect`, or lower"
            " training.learning_rate or set training.precision=no; the last checkpoint is untouched"
        )

    @staticmethod
    def ids_of(sums: StepSums) -> list[str]:
        """All examples of this rank's step."""
        return [example for ids, _ in sums.suspects for example in ids if example]

    # ------------------------------------------------------------------ between steps

    def between_steps(self) -> bool:
        """Evaluate and save where it is time; whether training is over before its last step.

        Raises:
            KeyboardInterrupt: If a stop was asked for; a checkpoint has been written.
        """
        step = self.progress.step
        is_over = step == self.total_steps
        # several processes know only of requests that went into the step's sums; one alone need not wait for the next
        stopping = self.stopping or (self.accelerator.num_processes == 1 and self.stop.requested)
        is_better, is_made_good = False, step == self.resumed_at
        if self.owes_evaluation() and not stopping:
            is_better = self.measure()
            stopping = self.stop.agreed(self.accelerator)
        is_time_to_save = self.is_time(self.config.checkpoints.every_steps)
        if is_better or is_over or stopping or self.progress.stopped_early or is_time_to_save or is_made_good:
            self.save()
        if stopping and (not is_over or self.owes_evaluation()):
            raise KeyboardInterrupt
        return self.progress.stopped_early

    def owes_evaluation(self) -> bool:
        """Whether one is due after the steps done and has not been; a run that was stopped before it makes it good."""
        step = self.progress.step
        if self.evaluate is None or step == 0 or step == self.progress.evaluated_step:
            return False
        return self.is_time(self.config.evaluation.every_steps)

    def is_time(self, every_steps: int | None) -> bool:
        """Whether something that happens every so often (by default every epoch) is due after this step."""
        step = self.progress.step
        return step == self.total_steps or step % (every_steps or self.plan.steps_per_epoch) == 0

    def measure(self) -> bool:
        """Evaluate, remember the best and count the evaluations without a better one; whether this one is the best."""
        assert self.evaluate is not None
        found = self.evaluate(self)
        if found is None:  # interrupted
            return False
        metric = self.config.evaluation.metric
        if self.accelerator.is_main_process:
            self.log("evaluation", self.progress.step, found)
        self.progress.evaluated_step = self.progress.step
        words = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        is_better = metric in found and self.judge(found[metric])  # answers are not generated every time
        self.reporter.line(f"step {self.progress.step}: development {words}{' (best so far)' if is_better else ''}")
        return is_better

    def judge(self, value: float) -> bool:
        """Whether the metric's value is the best so far; remembers it, or counts one more without a better one."""
        best = self.progress.best_metric
        metric = self.config.evaluation.metric
        higher_is_better = metric.startswith("rouge")
        is_number = not math.isnan(value)  # none is better than what is none, and it would stay the best
        is_better = is_number and (best is None or (value > best if higher_is_better else value < best))
        if is_better:
            self.progress.best_metric, self.progress.best_step = value, self.progress.step
            self.progress.evaluations_without_better = 0
        else:
            self.progress.evaluations_without_better += 1
        patience = self.config.evaluation.patience
        self.progress.stopped_early = patience is not None and self.progress.evaluations_without_better >= patience
        return is_better

    def save(self) -> None:
        """Write a checkpoint; every rank takes part, the first writes."""
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        weights, moments = full_state(self.model, getattr(self.optimizer, "optimizer", self.optimizer))
        if self.accelerator.is_main_process:
            self.checkpoints.write(model=weights, optimizer=moments, progress=self.progress)
        self.accelerator.wait_for_everyone()

    def forward_only(self, micros: Iterable[MicroBatch]) -> Iterable[tuple[MicroBatch, Any]]:
        """Losses of micro-batches without gradient and in evaluation mode, for measuring."""
        # FSDP2 works on the module itself; under DDP its wrapper would only wait for gradients.
        student = student_inside(self.model)
        student.eval()
        try:
            for micro in micros:
                self.at_once = micro.shape
                with torch.no_grad():
                    batch, text = to_device(micro, self.accelerator.device, self.pool)
                    yield micro, student(batch, micro.totals, text)
                give_back_after_use(micro, self.accelerator.device, self.pool)
        finally:
            student.train()


def to_device(micro: MicroBatch, device: torch.device, pool: StagingPool) -> tuple[Batch, LabelRows | None]:
    """The batch and its text where the model is. On a GPU copies are queued, and the staging buffer is free behind."""
    moved = micro.batch, None if micro.text is None else micro.text.rows
    if device.type == "cpu":
        return moved
    moved = map_tensors(moved, lambda tensor: tensor.to(device, non_blocking=pool.pinned))
    pool.give_back(micro.staging)
    return moved


def give_back_after_use(micro: MicroBatch, device: torch.device, pool: StagingPool) -> None:
    """On a CPU the tensors were used in place, so only now is their memory free."""
    if device.type == "cpu":
        pool.give_back(micro.staging)


def seed_random(seed: int, step: int, micro: int, rank: int) -> None:
    """Seed every generator for one micro-batch (dropout draws from them): no generator state outlives a step."""
    digest = hashlib.sha256(f"dropout\n{seed}\n{step}\n{micro}\n{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def named(examples: list[str]) -> str:
    """Some of the examples' ids."""
    shown = ", ".join(repr(example) for example in examples[:MOST_EXAMPLES_NAMED])
    more = len(examples) - MOST_EXAMPLES_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
