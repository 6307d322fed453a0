"""`docs/scale.md`: its table of hours, terabytes and money is what `sra-data estimate` prints, row by row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks.cache_shards import SIDE, side_row, write_side
from sra_data.stages.estimate.accelerators import ACCELERATORS
from sra_data.stages.estimate.fleet import BATCH_TOKENS, ROOM_FOR_WEIGHTS
from sra_data.stages.estimate.options import UTILISATION, WRITE_RATE
from tests.conftest import REPOSITORY
from tests.integration.command_lines import sra_data

PAGE = REPOSITORY / "docs" / "scale.md"
EXAMPLES, TOKENS, RESPONSE = 10_000_000, 512, 384
SAMPLED = 128
GPUS = (8, 32, 128, 256)
PRICE, STORE = 2.5, 5
KEPT = {
    "bf16 states, top 64": (),
    "int8 states, top 64": ("--hidden-dtype", "int8"),
    "top 64 alone": ("--hidden-dtype", "none"),
}
# Llama 3.1's own sizes.
TEACHERS = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def write_teacher(folder: Path, sizes: dict[str, int]) -> Path:
    """A teacher that is its configuration alone."""
    AutoConfig.for_model("llama", vocab_size=128_256, num_key_value_heads=8, **sizes).save_pretrained(folder)
    return folder


def write_sample(folder: Path) -> Path:
    """A corpus of the assumed lengths, of which ten million are meant."""
    ids = np.arange(TOKENS, dtype=np.int32)
    write_side(folder, [side_row(f"e{number}", ids, TOKENS - RESPONSE) for number in range(SAMPLED)])
    return folder


def estimated(shards: Path, teacher: Path, *words: object) -> dict:
    """What the command says, as JSON."""
    known = ("--teacher", teacher, "--side", SIDE, "--no-time", "--dtype", "bf16", "--examples", EXAMPLES)
    answer = sra_data("estimate", shards, *known, "--gpu", "h100", "--price", PRICE, *words, "--json")
    assert answer.exit_code == 0, answer.error
    return json.loads(answer.output)


def hours(said: dict) -> str:
    return f"{said['fleet']['hours']:.{2 if said['fleet']['hours'] < 10 else 1}f}"


def row(name: str, kept: str, shards: Path, teacher: Path) -> str:
    """A line of the table."""
    said = {gpus: estimated(shards, teacher, *KEPT[kept], "--gpus", gpus) for gpus in GPUS}
    slow = estimated(shards, teacher, *KEPT[kept], "--gpus", GPUS[-1], "--store-rate", STORE)
    few, many = said[GPUS[0]]["fleet"], said[GPUS[-1]]["fleet"]
    cells = [
        name,
        kept,
        f"{said[GPUS[0]]['num_bytes'] / 1e12:.1f}",
        *(hours(said[gpus]) for gpus in GPUS),
        f"{few['cost']:,.0f}",
        f"{few['store_needed']:.2f}",
        f"{many['store_needed']:.1f}",
        hours(slow),
    ]
    return f"| {' | '.join(cells)} |"


def rows(folder: Path) -> list[str]:
    """The table, as the command would have it."""
    shards = write_sample(folder / "shards")
    teachers = {name: write_teacher(folder / name, sizes) for name, sizes in TEACHERS.items()}
    return [row(name, kept, shards, teacher) for name, teacher in teachers.items() for kept in KEPT]


def test_the_table_of_the_page_is_what_the_command_prints(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\| (?:8B|70B) \|.*\|$", page, re.MULTILINE)
    assert found == rows(tmp_path)


def test_the_assumptions_of_the_page_are_those_of_the_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for words in (
        f"{EXAMPLES:,} examples of {TOKENS} tokens, {RESPONSE} of them the response's",
        f"{UTILISATION:.0%} of its dense bf16 peak",
        f"{WRITE_RATE:g} GB/s",
        f"{ROOM_FOR_WEIGHTS:.0%} of an accelerator's memory",
        f"{BATCH_TOKENS:,} tokens",
        f"{PRICE} an hour",
        f"{STORE} GB/s",
    ):
        assert words in page, words


@pytest.mark.parametrize("name", list(ACCELERATORS))
def test_every_accelerator_is_on_the_page_with_its_numbers_and_their_source(name: str) -> None:
    one = ACCELERATORS[name]
    cells = (f"`{name}`", one.model, f"{one.teraflops:,g}", f"{one.gigabytes:g}", f"{one.bandwidth:,g}", one.source)
    assert f"| {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8")
