"""The world of random words that the trainer's tests stand on hangs together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sra_data.shards.store import ShardSet
from tests.synthetic_shards import STUDENT, TEACHERS, SyntheticShards, make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    """Two teachers, the second of which lacks rows."""
    folder = tmp_path_factory.mktemp("synthetic")
    return make_shards(folder, num_teachers=2, num_skipped_by_second=2, hidden_dtype="fp32")


def test_what_is_said_of_the_next_token_is_the_heads(made: SyntheticShards) -> None:
    with ShardSet.open(made.shards) as shards:
        for name in made.teachers:
            side, weight = shards.side(shards.side_of_teacher(name)), shards.head(name)[0]["weight"].float32()
            ids, embeddings, _ = shards.embeddings(name)
            last = max(shards.teacher(name).schema.layers)
            seen: set[int] = set()
            for row, read in zip(shards.teacher(name).read(range(30)), side.read(range(30)), strict=True):
                logits = row.hidden[last].float32().astype(np.float64) @ weight.T.astype(np.float64)
                expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                followed = row.positions + 1 < len(read.ids)
                next_ids = read.ids[row.positions[followed] + 1]
                found = expected[followed, next_ids]
                assert np.allclose(row.next_log_prob[followed], found, atol=1e-4)
                assert np.isnan(row.next_log_prob[~followed]).all()
                seen |= set(read.ids.tolist())
            assert ids.tolist() == sorted(seen)
            assert embeddings.shape == (len(ids), weight.shape[1])


def test_the_second_teacher_alone_lacks_its_rows(made: SyntheticShards) -> None:
    with ShardSet.open(made.shards) as shards:
        pairs = [shards.pair(student=STUDENT, teacher=name).index for name in TEACHERS[:2]]
        lacking = np.flatnonzero(pairs[0].is_ok & ~pairs[1].is_ok)
        assert lacking.tolist() == [2, 5]
        assert not (pairs[1].is_ok & ~pairs[0].is_ok).any()
        assert pairs[0].is_ok.sum() == made.num_train + made.num_dev
        assert shards.teacher(TEACHERS[1]).index.num_positions[lacking].tolist() == [0, 0]
        assert (shards.teacher(TEACHERS[0]).index.num_positions > 0).all()
        widths = [shards.teacher(name).read([0])[0].hidden for name in TEACHERS[:2]]
        assert [sorted({one.shape[1] for one in hidden.values()}) for hidden in widths] == [[12], [16]]


def test_a_second_teacher_changes_nothing_of_the_first(made: SyntheticShards, tmp_path: Path) -> None:
    alone = make_shards(tmp_path, hidden_dtype="fp32")
    with ShardSet.open(made.shards) as one, ShardSet.open(alone.shards) as other:
        name = TEACHERS[0]
        assert alone.teachers == (name,)
        assert one.corpus.root == other.corpus.root
        assert one.teacher(name).root == other.teacher(name).root
        assert one.pair(student=STUDENT, teacher=name).root == other.pair(student=STUDENT, teacher=name).root
