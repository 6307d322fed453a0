"""`sra-data import`: options that cannot be, and folders that are no capture, or not of this side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from tests.bad_inputs.case import Case, Prepare, usage, written
from tests.crash.world import World

WORDS = "sra-data import --json --device cpu"
LOGITS, STATES = f"{WORDS} distillkit captured ALIGNED", f"{WORDS} speculators captured ALIGNED"
ONE_VALUE = "d: 64\nk: 1\nexact_k: 1\nresidual_bins: []\n"


def _logits(config: str = ONE_VALUE, **columns: Any) -> Prepare:
    """A capture of two positions, of one id each; `columns` in the place of its own."""

    def write(place: Path, world: World) -> None:
        (place / "captured").mkdir()
        (place / "captured" / "compression_config.yaml").write_text(config)
        own = {"input_ids": [[1, 2, 3]], "compressed_logprobs": [[[0] * 4] * 2], "bytepacked_indices": [[[4]] * 2]}
        kinds = {
            "input_ids": pa.list_(pa.uint64()),
            "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
            "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
        }
        made = {name: pa.array(values, kinds[name]) for name, values in own.items()} | columns
        pq.write_table(pa.table({name: values for name, values in made.items() if values is not None}), _file(place))

    return write


def _file(place: Path) -> Path:
    return place / "captured" / "data_0.parquet"


def _states(**tensors: Any) -> Prepare:
    """A capture of one text with two layers."""

    def write(place: Path, world: World) -> None:
        (place / "captured").mkdir()
        own = {"token_ids": torch.tensor([1, 2, 3]), "hidden_states": torch.ones(3, 2, 8)} | tensors
        save_file(own, place / "captured" / "hs_0.safetensors")

    return write


def _case(wrong: str, line: str, says: tuple[str, ...], prepare: Callable[[Path, World], object]) -> Case:
    return Case(f"captures: {wrong}", line, says, prepare)


CASES: list[Case] = [
    *usage(
        "import's options",
        {
            "a tool that is none": (f"{WORDS} eagle captured", ("eagle", "distillkit", "speculators")),
            "no capture": (f"{WORDS} distillkit", ("capture",)),
            "a dtype of the teacher": (f"{LOGITS} --dtype bf16", ("has no such option", "--dtype")),
            "states in eight bits": (f"{STATES} --hidden-dtype int8", ("--hidden-dtype", "int8", "bf16")),
            "missing ones in words": (f"{LOGITS} --max-missing some", ("--max-missing", "valid integer")),
        },
        code=2,
    ),
    *usage(
        "import's options",
        {
            "a capture that is not there": (f"{WORDS} distillkit nowhere ALIGNED", ("nowhere: no such folder",)),
            "a capture without a name": (f"{WORDS} distillkit '' ALIGNED", ("a capture without a name",)),
            "a file as the capture": (f"{WORDS} speculators DATA ALIGNED", ("data.jsonl: no such folder",)),
            "a model as DistillKit's capture": (f"{WORDS} distillkit TEACHER ALIGNED", ("no .parquet file",)),
            "a model as speculators' capture": (f"{WORDS} speculators TEACHER ALIGNED", ("no token_ids",)),
            "missing ones below none": (f"{LOGITS} --max-missing -1", ("--max-missing -1",)),
            "layers of logits": (f"{LOGITS} --layers 1", ("--layers", "leave it out")),
            "layers in words": (f"{STATES} --captured-layers all", ("--captured-layers all",)),
            "ids below none": (f"{STATES} --top-k -1", ("--top-k -1",)),
            "units of no form": (f"{LOGITS} --units all", ("--units all",)),
        },
    ),
    _case(
        "more exact values than k",
        LOGITS,
        ("k=1 with exact_k=3",),
        _logits(ONE_VALUE.replace("exact_k: 1", "exact_k: 3")),
    ),
    _case("a configuration that is code", LOGITS, ("cannot be read as YAML",), _logits("!!python/name:os.system\n")),
    _case(
        "a configuration of a later release",
        LOGITS,
        ("zstd: a setting that is not known here",),
        _logits(ONE_VALUE + "zstd: true\n"),
    ),
    _case("values that are text", LOGITS, ("lists of lists of uint8",), _logits(compressed_logprobs=pa.array(["x"]))),
    _case("no indices", LOGITS, ("no column bytepacked_indices",), _logits(bytepacked_indices=None)),
    _case("no configuration", LOGITS, ("no compression_config.yaml",), written("captured/data_0.parquet", "x")),
    _case("texts of another side", LOGITS, ("not one of the", "its rows with 1 2 3"), _logits()),
    _case("pickles", STATES, ("pickles and never opened",), written("captured/data_0.pt", b"\x80\x04")),
    _case(
        "a header that lies", STATES, ("hs_0.safetensors", "header"), written("captured/hs_0.safetensors", b"\xff" * 40)
    ),
    _case("states of two dimensions", STATES, ("are wanted",), _states(hidden_states=torch.ones(3, 8))),
    _case("layers nobody named", STATES, ("--captured-layers", "holds 2 layers"), _states()),
    _case(
        "states of another side",
        f"{STATES} --captured-layers 1,3",
        ("not one of the", "its rows with 1 2 3"),
        _states(),
    ),
    _case("without the last layer", f"{STATES} --captured-layers 1,2", ("without the last, 3",), _states()),
]
