"""Law: int8 pages of a trained teacher with outlier channels teach what the teacher says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cache_shards import SIDE, side_row, write_side
from benchmarks.trained_teacher import OUTLIERS, VOCABULARY, give_outliers, text_ids, train_teacher
from sra_data.shards.store import ShardSet
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.stage import cache_teacher
from sra_data.teacher.spec import CaptureOptions, TeacherSpec
from sra_data.terminal import Reporter

NUM_EXAMPLES, LENGTH = 24, 80


def write_text(shards: Path) -> None:
    """Stretches of the text the teacher was trained on; the second half of each is its response."""
    ids = text_ids().astype(np.int32)
    starts = np.linspace(0, len(ids) - LENGTH, NUM_EXAMPLES, dtype=int)
    rows = [side_row(f"e{place}", ids[start : start + LENGTH], LENGTH // 2) for place, start in enumerate(starts)]
    write_side(shards, rows)


@pytest.mark.slow
def test_int8_pages_of_a_trained_teacher_with_outlier_channels_say_what_it_says(tmp_path: Path) -> None:
    model = train_teacher(steps=150)
    starts = np.linspace(0, len(text_ids()) - LENGTH, NUM_EXAMPLES, dtype=int)
    ids = torch.from_numpy(np.stack([text_ids()[start : start + LENGTH] for start in starts]))
    with torch.no_grad():
        plain = model(ids).logits
        give_outliers(model)
        torch.testing.assert_close(model(ids).logits, plain, atol=1e-4, rtol=1e-4)
        assert float(model(ids, labels=ids).loss) < 0.6 * np.log(VOCABULARY)  # it has learnt something
    model.save_pretrained(tmp_path / "teacher")
    write_text(tmp_path / "shards")
    spec = TeacherSpec(str(tmp_path / "teacher"), device="cpu")
    options = CacheOptions(str(tmp_path / "shards"), spec, SIDE, CaptureOptions(hidden_dtype="int8", top_k=8))
    summary = cache_teacher(options, Reporter())

    divergences, live, cached = [], [], []
    with ShardSet.open(tmp_path / "shards") as shards:
        name = shards.choose_teacher()
        weight = torch.from_numpy(np.array(shards.head(name)[0]["weight"].float32()))
        sources, rows = (reader.read(range(NUM_EXAMPLES)) for reader in (shards.side(SIDE), shards.teacher(name)))
        for source, row in zip(sources, rows, strict=True):
            with torch.no_grad():
                said = model(torch.from_numpy(source.ids)[None].long(), output_hidden_states=True)
            positions = torch.from_numpy(row.positions).long()
            ours = said.logits[0, positions].double().log_softmax(-1)
            theirs = (torch.from_numpy(row.hidden[2].float32()) @ weight.T).double().log_softmax(-1)
            divergences.append((ours.exp() * (ours - theirs)).sum(-1))
            live.append(said.hidden_states[-1][0, positions].numpy())
            cached.append(row.hidden[2].float32())
    exact, normal = np.concatenate(live), np.setdiff1d(np.arange(model.config.hidden_size), OUTLIERS)
    power = np.sqrt((exact**2).mean(axis=0))
    assert power[list(OUTLIERS)].min() > 10 * np.median(power[normal])
    assert float(torch.cat(divergences).mean()) <= 1e-3
    error = relative_error(np.concatenate(cached), exact, normal)
    assert error <= 0.01
    assert summary.faithfulness["cache"]["relative_error_non_outlier"] == pytest.approx(error, rel=0.2)
    # What the construction is for: one scale a vector leaves the normal channels no levels.
    scales = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert relative_error(np.rint(exact / scales) * scales, exact, normal) > 0.1


def relative_error(states: np.ndarray, exact: np.ndarray, channels: np.ndarray) -> float:
    """Of some channels."""
    return float(np.linalg.norm((states - exact)[:, channels]) / np.linalg.norm(exact[:, channels]))
