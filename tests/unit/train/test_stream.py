"""The stream over real shards: the same global batches whatever the world, from any step on."""

import numpy as np
import pytest

from sra_data.shards.store import ShardSet
from sra_train.contract import CacheNeeds
from sra_train.data.micro_batches import TokenBudget
from sra_train.data.order import OrderPlan
from sra_train.data.reader import RowReader, row_table
from sra_train.data.staging import StagingPool
from sra_train.data.stream import BatchMaker, Share, development_stream, training_stream
from tests.synthetic_shards import make_shards

NEEDS = CacheNeeds(layers=(3,), hidden=True, attention=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def opened(made):
    with ShardSet.open(made.shards) as shards:
        alignment = shards.alignment()
        table = row_table(shards, alignment)
        maker = BatchMaker(
            read=RowReader(shards, alignment, NEEDS, with_text=True),
            needs=NEEDS,
            temperatures=(),
            table=table,
            pool=StagingPool(pinned=False),
        )
        plan = OrderPlan(
            row_groups=table.row_groups,
            trainable=table.is_train,
            seed=1,
            corpus_root=shards.corpus.root,
            window=2,
            batch_size=4,
        )
        yield maker, plan


def global_batches(maker, plan, *, world_size, micro_batch_size, start=0, stop=8):
    """Step -> sorted ids with their labels, over all ranks."""
    found: dict[int, list] = {}
    totals: dict[int, set] = {}
    for rank in range(world_size):
        for micro in training_stream(
            maker, plan, Share(rank, world_size, TokenBudget(10_000, 20, micro_batch_size)), start=start, stop=stop
        ):
            batch = micro.batch
            for slot, name in enumerate(batch.example_ids):
                if batch.weight[slot]:
                    length = int(batch.lengths[slot])
                    bits = batch.teacher_hidden[3][slot][batch.teacher_position_mask[slot]].float().numpy().tobytes()
                    found.setdefault(micro.step, []).append((name, batch.input_ids[slot, :length].tolist(), bits))
            totals.setdefault(micro.step, set()).add((micro.totals.labels, micro.totals.examples))
    assert all(len(one) == 1 for one in totals.values())
    return {step: sorted(rows) for step, rows in found.items()}


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 2), (4, 1), (1, 3), (3, 1), (2, 1)])
def test_global_batches_are_bit_identical_for_every_world(opened, world_size, micro_batch_size) -> None:
    alone = global_batches(*opened, world_size=1, micro_batch_size=4)
    assert global_batches(*opened, world_size=world_size, micro_batch_size=micro_batch_size) == alone


def test_a_stream_may_start_at_any_step(opened) -> None:
    whole = global_batches(*opened, world_size=1, micro_batch_size=4)
    for start in (1, 5, 6, 7):
        part = global_batches(*opened, world_size=1, micro_batch_size=4, start=start)
        assert part == {step: rows for step, rows in whole.items() if step >= start}


def test_an_epoch_reads_every_trainable_row_once(opened, made) -> None:
    batches = global_batches(*opened, world_size=1, micro_batch_size=4, stop=opened[1].steps_per_epoch)
    names = [name for rows in batches.values() for name, _, _ in rows]
    assert len(names) == len(set(names)) == made.num_train


def test_totals_known_from_the_index_are_what_the_batch_holds(opened) -> None:
    maker, plan = opened
    for micro in training_stream(maker, plan, Share(0, 1, TokenBudget(10_000, 20)), start=0, stop=plan.steps_per_epoch):
        predicted = micro.batch.labels[:, 1:] != -100
        assert micro.totals.labels == int(predicted.sum())
        assert micro.totals.examples == float(micro.batch.weight.sum())
        assert micro.num_tokens == int((micro.batch.lengths * micro.batch.weight).sum())
        assert micro.num_spans == int(micro.batch.num_spans.sum())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_development_rows_come_once_over_all_ranks_in_equally_many_batches(opened, made, world_size) -> None:
    maker, _ = opened
    ranks = [
        list(development_stream(maker, Share(rank, world_size, TokenBudget(10_000, 20, 2))))
        for rank in range(world_size)
    ]
    names = [name for micros in ranks for micro in micros for name in micro.batch.example_ids if name]
    assert len({len(micros) for micros in ranks}) == 1
    assert len(names) == len(set(names)) == made.num_dev
    assert sum(int(micro.text.bytes.sum()) for micros in ranks for micro in micros) > 0


def test_failed_examples_of_the_teacher_are_left_out(made) -> None:
    with ShardSet.open(made.shards) as shards:
        alignment = shards.alignment()
        before = row_table(shards, alignment)
        name = shards.corpus.index.id_of(int(np.flatnonzero(before.is_train)[0]))
        after = row_table(shards, alignment, without=[name])
    assert after.is_train.sum() == before.is_train.sum() - 1
    assert after.skipped["skipped:teacher_failed"] == 1
