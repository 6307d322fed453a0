"""What a step of SRA costs, beside plain fine-tuning of the same student on the same batches.

    python -m benchmarks.train [--batches 3] [--runs 3] [--threads 2]

Real Dolly batches of 16 through the real stages, reader and loop parts (see train_shards.py); CPU, float32. Every kind
of step has its own copy of the student and AdamW; kinds take turns on each batch, and the median over the runs of each
batch counts. Prints one JSON object; a ratio of throughputs is the time of the other over ours:

    sra_over_sft             CE step / SRA step, head and centres of mass           (target: at least 0.65)
    boundary_head_over_sft   CE step / SRA step, kd_position=boundary, head         (at least 0.60)
    boundary_topk_over_sft   CE step / SRA step, kd_position=boundary, top-k        (at least 0.85)
    labelled_over_sft        CE step / a plain CE step that computes labelled logits only
    own_sft_over_sft         CE step / this package's method=sft
    sra_over_labelled_ce     labelled-only CE step / SRA step, same body, in the micro-batches that training cuts by
                             default; the two in a process of their own             (at least 0.85)
    real_token_share         tokens of an epoch's examples / tokens that steps so cut compute (at least 0.85)
    offline_over_online      SRA step with a live teacher / SRA step                (at least 3)
    teacher_over_student_forward   the live teacher's forward / the student's with logits (9 to 11)
    data_wait                seconds waited for data / seconds of steps             (at most 0.02)
    memory_over_sft          peak of an SRA step / peak of the labelled-only CE step (at most 1.25); each in a process
                             of its own, peak resident memory minus the resident memory with the model loaded
    memory_over_own_sft      the same over this package's method=sft

"CE step" is ``model(input_ids, labels=labels).loss`` with backward and optimizer; where nothing else is said a step is
one micro-batch of 16. All of it takes a quarter of an hour
on two cores: 50,000 columns of logits for every padded token are what a plain CE step computes.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script too

from benchmarks.train_shards import MAX_TOKENS, WIDTH, make_shards, shared_material, student_model
from sra_data.models.attention import LastQueryAttention
from sra_data.shards.schema import response_positions
from sra_data.shards.store import ShardSet
from sra_train.body import Body
from sra_train.contract import IGNORED_LABEL, Batch, CacheNeeds, MethodSetting, StepTotals
from sra_train.data.knowledge import teacher_settings
from sra_train.data.micro_batches import BUDGETS, TokenBudget
from sra_train.data.order import OrderPlan
from sra_train.data.prefetch import Prefetcher
from sra_train.data.reader import RowReader
from sra_train.data.sources import Sources, open_sources
from sra_train.data.staging import StagingPool
from sra_train.data.stream import BatchMaker, MicroBatch, Share, training_stream
from sra_train.data.table import RowTable
from sra_train.methods import method_type
from sra_train.student import StudentModel, model_shape

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH_SIZE = 16
WHOLE_BATCH = TokenBudget(most_tokens=10**9, overhead_tokens=10**9)  # one micro-batch, as a plain trainer has it
METHODS: dict[str, dict[str, Any]] = {
    "own_sft": {"name": "sft"},
    "sra": {"name": "sra"},
    "boundary_head": {"name": "sra", "kd_position": "boundary"},
    "boundary_topk": {"name": "sra", "kd_position": "boundary", "kd_source": "top_k"},
}
Step = Callable[[Sequence[Batch], StepTotals], None]  # over the micro-batches of one global step


@dataclass
class TeacherTokens:
    """A batch as the teacher reads it."""

    ids: Tensor  # [B, N_t]
    lengths: Tensor  # [B]
    positions: Tensor  # [B, P] token of each cached row; 0 where padded


def padded(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def padding_mask(batch: Batch) -> Tensor:
    """[B, N], as transformers' own loss needs it."""
    return (torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]).long()


@dataclass
class Data:
    """The shards, opened for all methods at once."""

    sources: Sources
    plan: OrderPlan
    maker: BatchMaker
    pool: StagingPool

    @classmethod
    def open(cls, folder: Path) -> Data:
        shards = ShardSet.open(folder)
        sources = open_sources(shards, side=shards.choose_student(), teachers=[(None, 1.0)])
        table = RowTable.read(sources)
        last = int(sources.teachers[0].pages.facts["num_layers"])
        needs = CacheNeeds(hidden=(last,), attention=(last,), temperatures=(2.0,))
        pool = StagingPool(pinned=False)
        maker = BatchMaker(read=RowReader(sources, [needs]), table=table, pool=pool)
        plan = OrderPlan(
            row_groups=table.row_groups,
            trainable=table.is_train,
            seed=0,
            corpus_root=shards.corpus.root,
            window=64,
            batch_size=BATCH_SIZE,
        )
        return cls(sources, plan, maker, pool)

    def stream(self, steps: int, budget: TokenBudget = WHOLE_BATCH) -> Any:
        share = Share(rank=0, world_size=1, budget=budget)
        return training_stream(self.maker, self.plan, share, start=0, stop=steps)

    def teacher_tokens(self, step: int, batch: Batch) -> TeacherTokens:
        """The teacher's own tokens, rows in the batch's order."""
        side = self.sources.teachers[0].side
        rows = side.read([int(row) for row in self.plan.global_batch(step)], ["ids", "response_spans"])
        by_id = {row.id: row for row in rows}
        chosen = [by_id[name] for name in batch.example_ids]
        ids = [torch.from_numpy(row.ids.astype("int64")) for row in chosen]
        places = [torch.from_numpy(response_positions(row.response_spans).astype("int64")) for row in chosen]
        return TeacherTokens(padded(ids), torch.tensor([len(one) for one in ids]), padded(places))


def finish(losses: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Backward of each micro-batch, and update."""
    for loss in losses:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def ce_step() -> Step:
    """Plain fine-tuning, as transformers does it."""
    model = student_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss(batch: Batch) -> Tensor:
        said: Any = model(input_ids=batch.input_ids, attention_mask=padding_mask(batch), labels=batch.labels)
        return said.loss

    def step(batches: Sequence[Batch], totals: StepTotals) -> None:
        finish(map(loss, batches), optimizer)

    return step


def labelled_step() -> Step:
    """Fine-tuning that cuts the labelled positions out before the head, by plain autograd; the body as in ours."""
    model: Any = student_model()
    body = Body(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss(batch: Batch, totals: StepTotals) -> Tensor:
        hidden = body(batch.input_ids, batch.lengths).last_hidden_state
        wanted = batch.labels[:, 1:] != IGNORED_LABEL
        logits = model.lm_head(hidden[:, :-1][wanted])
        return nn.functional.cross_entropy(logits, batch.labels[:, 1:][wanted], reduction="sum") / totals.labels

    def step(batches: Sequence[Batch], totals: StepTotals) -> None:
        finish((loss(batch, totals) for batch in batches), optimizer)

    return step


def method_step(kind: str, data: Data) -> Step:
    """A step of one of this package's methods."""
    options = dict(METHODS[kind])
    chosen: Any = method_type(options.pop("name"))
    model, chosen_options = student_model(), chosen.options_type(**options)
    needs = chosen.knowledge_needs(chosen_options)
    teachers = () if needs is None else teacher_settings(data.sources, needs)
    student = StudentModel(model, chosen(chosen_options, MethodSetting(model_shape(model), teachers)))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step(batches: Sequence[Batch], totals: StepTotals) -> None:
        finish((student(batch, totals)["total"] for batch in batches), optimizer)

    return step


class LiveTeacher:
    """The teacher the cache was made with, asked anew for every batch: body and last-query row on SDPA, no head."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.layer = int(self.model.config.num_hidden_layers)
        self.capture = LastQueryAttention.attach(self.model, [self.layer])

    @torch.no_grad()
    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B, N_t, D_t] and attention rows [B, N_t] of the last layer."""
        with self.capture.capture(lengths - 1) as rows:
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden, rows[self.layer]

    def teach(self, batch: Batch, tokens: TeacherTokens) -> Batch:
        """The batch with the teacher's columns of the last layer made anew."""
        hidden, attention = self.forward(tokens.ids, tokens.lengths)
        at = tokens.positions
        states = hidden.gather(1, at[:, :, None].expand(-1, -1, hidden.shape[2]))
        (cached,) = batch.teachers
        said = replace(cached, hidden={self.layer: states}, attention={self.layer: attention.gather(1, at)})
        return replace(batch, teachers=(said,))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_times(data: Data, micros: list[MicroBatch], teacher: LiveTeacher, runs: int) -> dict[str, float]:
    """Seconds over all batches of each kind of work: medians over the runs of each batch, kinds taking turns."""
    steps: dict[str, Step] = {"ce": ce_step(), "labelled": labelled_step()}
    steps |= {kind: method_step(kind, data) for kind in METHODS}
    plain = student_model().eval()
    taken: dict[str, list[list[float]]] = {}
    for micro in [micros[0], *micros * runs]:  # the first of all warms up
        batch, totals = micro.batch, micro.totals
        tokens = data.teacher_tokens(micro.step, batch)
        work: dict[str, Callable[[], object]] = {kind: partial(step, [batch], totals) for kind, step in steps.items()}
        work["online"] = partial(online_step, steps["sra"], teacher, batch, totals, tokens)
        work["teacher_forward"] = partial(teacher.forward, tokens.ids, tokens.lengths)
        work["student_forward"] = partial(plain_forward, plain, batch)
        for kind, one in work.items():
            per_batch = taken.setdefault(kind, [[] for _ in micros])
            per_batch[micro.step].append(timed(one))
    return medians(taken)


def medians(taken: dict[str, list[list[float]]]) -> dict[str, float]:
    """Kind -> the sum of the medians of each batch; the very first run is left out."""
    for per_batch in taken.values():
        del per_batch[0][0]
    return {kind: sum(statistics.median(times) for times in per_batch) for kind, per_batch in taken.items()}


def cut_times(shards: Path, num_batches: int, runs: int) -> dict[str, float]:
    """Seconds of the labelled-only CE step and the SRA step in training's own micro-batches: for a child process.

    A process that has run larger steps keeps their memory, and fresh memory is a good part of what a plain step costs:
    a trainer would never have had it.
    """
    data = Data.open(shards)
    cut: list[list[MicroBatch]] = [[] for _ in range(num_batches)]
    for micro in data.stream(num_batches, BUDGETS["cpu"]):
        cut[micro.step].append(micro)
    steps: dict[str, Step] = {"labelled": labelled_step(), "sra": method_step("sra", data)}
    taken: dict[str, list[list[float]]] = {kind: [[] for _ in cut] for kind in steps}
    for micros in [cut[0], *cut * runs]:  # the first of all warms up
        for kind, step in steps.items():
            work = partial(step, [micro.batch for micro in micros], micros[0].totals)
            taken[kind][micros[0].step].append(timed(work))
    return medians(taken)


def online_step(step: Step, teacher: LiveTeacher, batch: Batch, totals: StepTotals, tokens: TeacherTokens) -> None:
    """The same step with the teacher asked on the spot."""
    step([teacher.teach(batch, tokens)], totals)


@torch.no_grad()
def plain_forward(model: nn.Module, batch: Batch) -> Tensor:
    """The student's forward with all its logits."""
    return model(input_ids=batch.input_ids, attention_mask=padding_mask(batch)).logits


def data_wait(data: Data, steps: int) -> tuple[float, float]:
    """Seconds waited for data and seconds in all, over steps through the prefetch thread; the first is left out."""
    step = method_step("sra", data)
    with Prefetcher(data.stream(steps + 1), depth=2) as batches:
        started = waited_before = 0.0
        for micro in batches:
            step([micro.batch], micro.totals)
            data.pool.give_back(micro.staging)
            if micro.step == 0:
                started, waited_before = time.perf_counter(), batches.seconds_waited
        return batches.seconds_waited - waited_before, time.perf_counter() - started


def token_share(data: Data) -> tuple[float, float]:
    """Tokens of the examples of an epoch, and tokens its steps compute as training cuts them by default."""
    real = computed = 0.0
    for micro in data.stream(data.plan.steps_per_epoch, BUDGETS["cpu"]):
        real += micro.num_tokens
        computed += micro.batch.input_ids.numel()
        data.pool.give_back(micro.staging)
    return real, computed


def peak_of(kind: str, shards: Path, num_batches: int) -> int:
    """Bytes a process needs for steps of one kind beyond what it holds with the model loaded: for a child process."""
    data = Data.open(shards)
    step = labelled_step() if kind == "labelled" else method_step(kind, data)
    gc.collect()
    # What loading took at its height is not what a step takes: forget the peak so far.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    loaded = resident_bytes("VmRSS")
    for micro in data.stream(num_batches):
        step([micro.batch], micro.totals)
        data.pool.give_back(micro.staging)
    return resident_bytes("VmHWM") - loaded


def resident_bytes(field: str) -> int:
    """Resident memory of this process: now (VmRSS) or its peak (VmHWM). Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def in_a_child(task: str, shards: Path, arguments: argparse.Namespace) -> Any:
    """What a process of its own finds: "cut", or the kind of step whose peak is asked for."""
    command = [sys.executable, "-m", "benchmarks.train", "--child", task, "--shards", str(shards)]
    for name in ("batches", "runs", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return json.loads(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


def ratio(name: str, numerator: float, denominator: float) -> dict[str, float]:
    return {name: numerator / denominator, f"{name}_numerator": numerator, f"{name}_denominator": denominator}


def report(
    seconds: dict[str, float],
    cut: dict[str, float],
    tokens: tuple[float, float],
    waiting: tuple[float, float],
    peak: dict[str, int],
) -> dict[str, float]:
    """All ratios with what they are made of."""
    return {
        **ratio("sra_over_sft", seconds["ce"], seconds["sra"]),
        **ratio("boundary_head_over_sft", seconds["ce"], seconds["boundary_head"]),
        **ratio("boundary_topk_over_sft", seconds["ce"], seconds["boundary_topk"]),
        **ratio("labelled_over_sft", seconds["ce"], seconds["labelled"]),
        **ratio("own_sft_over_sft", seconds["ce"], seconds["own_sft"]),
        **ratio("sra_over_labelled_ce", cut["labelled"], cut["sra"]),
        **ratio("real_token_share", *tokens),
        **ratio("offline_over_online", seconds["online"], seconds["sra"]),
        **ratio("teacher_over_student_forward", seconds["teacher_forward"], seconds["student_forward"]),
        **ratio("data_wait", *waiting),
        **ratio("memory_over_sft", peak["sra"], peak["labelled"]),
        **ratio("memory_over_own_sft", peak["sra"], peak["own_sft"]),
        **{f"peak_bytes_{kind}": value for kind, value in peak.items()},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the shards, measure everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = make_shards(folder, num_examples=arguments.examples)
        peak = {kind: in_a_child(kind, shards, arguments) for kind in ("labelled", *METHODS)}
        cut = in_a_child("cut", shards, arguments)
        data = Data.open(shards)
        teacher = LiveTeacher(folder / "teacher")
        micros = list(data.stream(arguments.batches))
        seconds = step_times(data, micros, teacher, arguments.runs)
        tokens = token_share(data)
        waiting = data_wait(data, arguments.examples // BATCH_SIZE - 1)
        sizes = {
            "student_tokens": sum(micro.num_tokens for micro in micros),
            "padded_student_tokens": sum(micro.batch.input_ids.numel() for micro in micros),
            "labels": sum(int(micro.totals.labels) for micro in micros),
            "spans": sum(micro.num_spans for micro in micros),
            "shared_vocabulary": len(data.sources.teachers[0].pair.vocabulary().student_ids),
            "teacher_layers": teacher.layer,
        }
        data.sources.shards.close()
    return {**report(seconds, cut, tokens, waiting, peak), **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step of SRA costs.")
    parser.add_argument("--examples", type=int, default=160, help="Dolly examples in the shards")
    parser.add_argument("--batches", type=int, default=3, help="batches that are timed")
    parser.add_argument("--runs", type=int, default=3, help="times each batch is timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child == "cut":
        print(json.dumps(cut_times(arguments.shards, arguments.batches, arguments.runs)))
        return
    if arguments.child:
        print(peak_of(arguments.child, arguments.shards, arguments.batches))
        return
    shared_material()
    configuration = {
        "batch_size": BATCH_SIZE,
        "max_tokens": MAX_TOKENS,
        "width": WIDTH,
        "batches": arguments.batches,
        "runs": arguments.runs,
        "threads": arguments.threads,
        "dtype": "float32",
        "device": "cpu",
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps({**measure(arguments), "configuration": configuration}, indent=1))


if __name__ == "__main__":
    main()
