"""The stream over real shards: the same global batches whatever the world, from any step on."""

import numpy as np
import pytest

from sra_data.errors import ShardError
from sra_data.shards.manifest import Manifest, record
from sra_data.shards.store import ShardSet
from sra_train.contract import CacheNeeds
from sra_train.data.micro_batches import TokenBudget
from sra_train.data.order import OrderPlan
from sra_train.data.reader import RowReader
from sra_train.data.sources import Sources, open_sources
from sra_train.data.staging import StagingPool
from sra_train.data.stream import BatchMaker, Share, development_stream, training_stream
from sra_train.data.table import RowTable
from tests.synthetic_shards import STUDENT, TEACHER_LAYERS, TEACHERS, make_shards

NEEDS = CacheNeeds(hidden=(3,), attention=(3,))
ALL_AT_ONCE = TokenBudget(most_tokens=10_000, overhead_tokens=10_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Shards of two teachers, the second of which lacks some rows."""
    return make_shards(tmp_path_factory.mktemp("two"), num_teachers=2, num_skipped_by_second=3)


def sources_of(shards: ShardSet, *names: str) -> Sources:
    weights = [1 / max(len(names), 1)] * len(names)
    return open_sources(shards, side=STUDENT, teachers=list(zip(names, weights, strict=True)))


def maker_and_plan(sources: Sources, *needs: CacheNeeds) -> tuple[BatchMaker, OrderPlan]:
    table = RowTable.read(sources)
    maker = BatchMaker(read=RowReader(sources, needs), table=table, pool=StagingPool(pinned=False))
    plan = OrderPlan(
        row_groups=table.row_groups,
        trainable=table.is_train,
        seed=1,
        corpus_root=sources.shards.corpus.root,
        window=2,
        batch_size=4,
    )
    return maker, plan


@pytest.fixture(scope="module")
def opened(made):
    with ShardSet.open(made.shards) as shards:
        yield maker_and_plan(sources_of(shards, TEACHERS[0]), NEEDS)


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
                    (teacher,) = batch.teachers
                    bits = teacher.hidden[3][slot][teacher.position_mask[slot]].float().numpy().tobytes()
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
    for micro in training_stream(maker, plan, Share(0, 1, ALL_AT_ONCE), start=0, stop=plan.steps_per_epoch):
        predicted = micro.batch.labels[:, 1:] != -100
        assert micro.totals.labels == int(predicted.sum())
        assert micro.totals.examples == float(micro.batch.weight.sum())
        assert micro.num_tokens == int((micro.batch.lengths * micro.batch.weight).sum())
        assert micro.num_spans == int(micro.batch.teachers[0].span_mask.sum())


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
    assert sum(micro.text.num_bytes for micros in ranks for micro in micros) > 0


def test_the_order_is_the_same_for_every_teacher_and_for_none(two) -> None:
    found = []
    with ShardSet.open(two.shards) as shards:
        for names in ((), TEACHERS[:1], TEACHERS[1:2], TEACHERS[:2]):
            sources = sources_of(shards, *names)
            _, plan = maker_and_plan(sources, *[CacheNeeds()] * len(names))
            found.append([plan.global_batch(step).tolist() for step in range(2 * plan.steps_per_epoch)])
    assert all(one == found[0] for one in found)


def test_a_row_that_a_teacher_lacks_is_trained_on_without_it(two) -> None:
    needs = [CacheNeeds(hidden=(TEACHER_LAYERS,)), CacheNeeds(hidden=(TEACHER_LAYERS + 1,))]
    with ShardSet.open(two.shards) as shards:
        sources = sources_of(shards, *TEACHERS[:2])
        maker, plan = maker_and_plan(sources, *needs)
        assert maker.table.lacking == {TEACHERS[1]: 2}
        seen = []
        for micro in training_stream(maker, plan, Share(0, 1, ALL_AT_ONCE), start=0, stop=plan.steps_per_epoch):
            first, second = micro.batch.teachers
            real = micro.batch.weight > 0
            assert first.has_teacher.tolist() == real.tolist()
            assert micro.num_spans == int(first.span_mask.sum() + second.span_mask.sum())
            lacking = real & ~second.has_teacher
            seen += [micro.batch.example_ids[slot] for slot in lacking.nonzero()[:, 0].tolist()]
            assert not second.span_mask[lacking].any()
            assert not second.position_mask[lacking].any()
            assert set(lacking.nonzero()[:, 0].tolist()) <= set(micro.batch.label_rows.example.tolist())
    assert sorted(seen) == ["example-002", "example-005"]  # row 8 is of the development split


def test_an_example_a_teacher_failed_on_is_one_it_lacks(tmp_path) -> None:
    path = make_shards(tmp_path).shards
    with ShardSet.open(path) as shards:
        before = RowTable.read(sources_of(shards, TEACHERS[0]))
        failed = shards.corpus.index.id_of(int(np.flatnonzero(before.is_train)[0]))
    facts = Manifest.load(path).sealed(f"teachers/{TEACHERS[0]}")
    record(path, f"teachers/{TEACHERS[0]}", **{**facts, "failed_examples": [failed]})
    with ShardSet.open(path) as shards:
        after = RowTable.read(sources_of(shards, TEACHERS[0]))
    assert after.is_train.tolist() == before.is_train.tolist()
    assert (before.lacking, after.lacking) == ({}, {TEACHERS[0]: 1})
    assert after.num_spans.sum() < before.num_spans.sum()


def test_a_row_that_is_not_aligned_is_one_the_teacher_lacks_whoever_skipped_it(two) -> None:
    with ShardSet.open(two.shards) as shards:
        sources = sources_of(shards, *TEACHERS[:2])
        learns = sources.side.index.is_ok
        for teacher in sources.teachers:
            assert teacher.has_row.tolist() == (learns & teacher.side.index.is_ok).tolist()
            assert teacher.num_spans[~teacher.has_row].sum() == 0
    assert not learns.all()


@pytest.mark.parametrize("beside", ["spans", "pages", "text"])
def test_what_stands_beside_another_example_is_refused_by_name(made, beside, monkeypatch) -> None:
    with ShardSet.open(made.shards) as shards:
        sources = sources_of(shards, TEACHERS[0])
        read, rows = RowReader(sources, [NEEDS]), np.flatnonzero(RowTable.read(sources).is_train)[:2].tolist()
        names = [row.side.id for row in read(rows, with_text=True)]
        (teacher,) = sources.teachers
        swapped = {"spans": teacher.pair, "pages": teacher.pages, "text": shards.corpus}[beside]
        original = swapped.read
        monkeypatch.setattr(swapped, "read", lambda numbers, *columns: original(numbers, *columns)[::-1])
        with pytest.raises(ShardError, match=rf"example {names[0]} stands beside another; run `sra-data verify`"):
            read(rows, with_text=True)


def test_everything_a_method_may_ask_for_is_read(two) -> None:
    needs = CacheNeeds(hidden=(2, 3), attention=(3,), temperatures=(2.0,), next_log_prob=True, ids=True)
    with ShardSet.open(two.shards) as shards:
        sources = sources_of(shards, TEACHERS[0])
        maker, plan = maker_and_plan(sources, needs)
        rows = plan.global_batch(0)
        micro = maker.make(rows, step=0, index=0, is_last=True, totals=maker.table.totals(rows))
        (teacher,) = micro.batch.teachers
        sides, pages = sources.teachers[0].side.read(rows), sources.teachers[0].pages.read(rows)
    assert sorted(teacher.hidden) == [2, 3]
    assert list(teacher.log_tails) == [2.0]
    for slot, (side, page) in enumerate(zip(sides, pages, strict=True)):
        count = len(page.positions)
        assert teacher.ids[slot, :count].tolist() == side.ids[page.positions].tolist()
        followed = [int(side.ids[p + 1]) if p + 1 < len(side.ids) else -1 for p in page.positions]
        assert teacher.next_ids[slot, :count].tolist() == followed
        assert np.array_equal(teacher.next_log_prob[slot, :count].numpy(), page.next_log_prob, equal_nan=True)
        assert np.array_equal(teacher.log_tails[2.0][slot, :count].numpy(), page.log_tails[1])


def test_a_temperature_that_was_not_cached_is_refused_with_the_command(made) -> None:
    with ShardSet.open(made.shards) as shards:
        sources = sources_of(shards, TEACHERS[0])
        with pytest.raises(ShardError, match=r"log_tails at temperature 3, .*--top-k 64 --temperatures 3`"):
            RowReader(sources, [CacheNeeds(temperatures=(3.0,))])


def test_a_teacher_named_twice_and_an_alignment_of_others_are_refused(two) -> None:
    with ShardSet.open(two.shards) as shards:
        with pytest.raises(ShardError, match=r"teacher-00000000 is named twice \(as teacher-00000000 and teacher-0\)"):
            sources_of(shards, TEACHERS[0], "teacher-0")
        with pytest.raises(ShardError, match=r"no alignment elsewhere of student-00000000 with the chosen teachers"):
            open_sources(shards, side=STUDENT, teachers=[(TEACHERS[0], 1.0)], alignment="elsewhere")
        with pytest.raises(ShardError, match=r"are not aligned; run `sra-data align --teacher"):
            open_sources(shards, side=TEACHERS[1], teachers=[(TEACHERS[0], 1.0)])


def test_the_roots_of_a_run_are_those_of_every_folder_it_reads(two) -> None:
    with ShardSet.open(two.shards) as shards:
        assert set(sources_of(shards).roots()) == {"corpus", f"sides/{STUDENT}"}
        assert set(sources_of(shards, *TEACHERS[:2]).roots()) == set(shards)
