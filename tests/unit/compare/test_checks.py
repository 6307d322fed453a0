"""What is found out of every method before a comparison trains anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_data.terminal import Reporter
from sra_train.compare.listing import registered_methods
from sra_train.compare.options import CompareOptions
from sra_train.compare.results import MethodResult, Reference, notes_of
from sra_train.compare.stage import prepare
from tests.synthetic_shards import make_shards


def test_every_method_can_be_compared_and_says_what_it_hears(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "made").shards
    methods = registered_methods()
    options = CompareOptions(
        shards=str(shards), output_dir=str(tmp_path / "out"), methods=",".join(methods), seeds=1,
        settings=["training.max_steps=3", "training.batch_size=5", "training.warmup=0"],
    )  # fmt: skip
    covered = prepare(options, Reporter()).checked.covered
    assert set(covered) == set(methods)
    assert covered.pop("sft") is None
    assert all(share is not None and 0 < share <= 1.01 for share in covered.values()), covered


@pytest.mark.parametrize(("own", "is_said"), [(3.1, True), (2.9, False)])
def test_a_method_that_ends_worse_than_the_untrained_student_is_said_to(own: float, is_said: bool) -> None:
    method = MethodResult(
        name="sra", about="", rate=1e-3, clip=None, num_seeds=5, num_diverged=0, bits_per_byte=own, deviation=0.0,
        tempered=own, tempered_deviation=0.0, temperature=1.0, development=own, rouge_l=None, seconds_per_step=None,
        peak_memory_bytes=None, losses={}, covered=None, difference=None, tempered_difference=None, grid=[],
    )  # fmt: skip
    untrained = Reference("untrained", "m", bits_per_byte=3.0, tempered=3.0, temperature=1.0, rouge_l=None)
    notes = notes_of(methods=[method], references=[untrained], is_development=False)
    assert any("than the untrained student (3.0000)" in note for note in notes) == is_said
