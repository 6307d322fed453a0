"""`sra-train evaluate`: numbers, models and texts that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.bad_inputs.case import EVALUATE, Case, copied, usage, written
from tests.crash.world import World

HERE = f"{EVALUATE} TEACHER --data DATA"
ROUGE = f"{HERE} --rouge --max-examples 1 --max-new-tokens 2"
DIGITS = "9" * 5000
LINE = json.dumps({"prompt": "p", "response": "r"}) + "\n"


def _no_tokenizer(place: Path, world: World) -> None:
    shutil.copytree(world.root / "teacher", place / "model")
    for path in (place / "model").glob("tokenizer*"):
        path.unlink()


def _no_beginning(place: Path, world: World) -> None:
    """A tokenizer that gives ids beyond the model's."""
    shutil.copytree(world.root / "teacher", place / "model")
    for path in (place / "model").glob("tokenizer*"):
        shutil.copy(world.root / "student" / path.name, path)
    from tests.model_zoo import tiny_model

    tiny_model("llama", vocab_size=8).save_pretrained(place / "model")


CASES: list[Case] = [
    *usage(
        "evaluate",
        {
            "no model": (f"{EVALUATE} --data DATA", ("Missing argument", "models")),
            "no text": (f"{EVALUATE} TEACHER", ("Missing option", "--data")),
            "a batch in words": (f"{HERE} --batch-size many", ("--batch-size", "valid integer")),
            "examples in thousands": (f"{HERE} --max-examples 1k", ("--max-examples", "valid integer")),
            "weights in float64": (f"{HERE} --dtype float64", ("--dtype", "float64", "bfloat16")),
            "half a token": (f"{HERE} --max-new-tokens 0.5", ("--max-new-tokens", "valid integer")),
            "a metric": (f"{HERE} --metric bleu", ("has no such option", "--metric")),
            "a score that is not measured": (f"{HERE} --bleu", ("has no such option", "--bleu")),
        },
        code=2,
    ),
    *usage(
        "evaluate",
        {
            "batches below none": (f"{HERE} --batch-size -3", ("--batch-size -3",)),
            "batches of none": (f"{HERE} --batch-size 0", ("--batch-size 0",)),
            "examples below none": (f"{HERE} --max-examples -1", ("--max-examples -1",)),
            "no examples": (f"{HERE} --max-examples 0", ("--max-examples 0",)),
            "no tokens": (f"{HERE} --max-length 0", ("--max-length 0",)),
            "tokens below none": (f"{HERE} --max-length -9", ("--max-length -9",)),
            "a length that no example has": (f"{HERE} --max-length 2", ("no example fits", "overlong")),
            "a split that there is not": (f"{HERE} --split holdout", ("split holdout",)),
            "a split that is empty": (f"{HERE} --split test", ("split test",)),
            "a split without a name": (f"{HERE} --split ''", ("--split",)),
            "seeds in words": (f"{HERE} --seeds a,b", ("--seeds a,b",)),
            "no seeds": (f"{HERE} --seeds ''", ("--seeds",)),
            "a seed too many commas": (f"{ROUGE} --seeds 1,,2", ("--seeds 1,,2",)),
            "half a seed": (f"{ROUGE} --seeds 1.5", ("--seeds 1.5",)),
            "a seed below none": (f"{ROUGE} --seeds -1", ("--seeds -1",)),
            "a seed beyond every generator": (f"{ROUGE} --seeds {'9' * 40}", ("--seeds",)),
            "a seed of thousands of digits": (f"{ROUGE} --seeds {DIGITS}", ("--seeds",)),
            "no new tokens": (f"{ROUGE} --max-new-tokens 0", ("--max-new-tokens 0",)),
            "new tokens below none": (f"{HERE} --max-new-tokens -5", ("--max-new-tokens -5",)),
            "a device that there is not": (f"{HERE} --device tpu", ("--device tpu",)),
            "a device that this machine lacks": (f"{HERE} --device cuda:3", ("--device cuda:3",)),
            "a device without memory": (f"{HERE} --device meta", ("--device meta",)),
            "a model that is not there": (f"{EVALUATE} ./nowhere --data DATA", ("./nowhere",)),
            "a model out of reach": (f"{EVALUATE} someone/nothing --data DATA", ("someone/nothing",)),
            "a model without a name": (f"{EVALUATE} '' --data DATA", ("a model without a name",)),
            "a model with a name too long": (f"{EVALUATE} {'n' * 300} --data DATA", ("nnn",)),
            "a model that is a file": (f"{EVALUATE} DATA --data DATA", ("data.jsonl",)),
            "one bad model of two": (f"{EVALUATE} TEACHER ./nowhere --data DATA", ("./nowhere",)),
            "the folder of the run in place of its model": (f"{EVALUATE} SHARDS --data DATA", ("cache-teacher",)),
            "text that is not there": (f"{EVALUATE} TEACHER --data nowhere.jsonl", ("nowhere.jsonl",)),
            "text without a name": (f"{EVALUATE} TEACHER --data ''", ("--data",)),
            "shards as the text": (f"{EVALUATE} TEACHER --data SHARDS", ("cache-teacher",)),
            "columns that are not there": (f"{HERE} --columns prompt=q", ("'q'",)),
            "columns without a sign": (f"{HERE} --columns q", ("--columns q",)),
            "a role that is none": (f"{HERE} --columns query=prompt", ("query", "no such role")),
        },
    ),
    Case(
        "evaluate: a bad row",
        f"{EVALUATE} TEACHER --data bad.jsonl",
        ("bad.jsonl:2", "response"),
        written("bad.jsonl", LINE + '{"prompt": "a", "response": 3}\n'),
    ),
    Case("evaluate: an empty text", f"{EVALUATE} TEACHER --data bad.jsonl", ("bad.jsonl",), written("bad.jsonl", "")),
    Case(
        "evaluate: a chat without an answer",
        f"{EVALUATE} TEACHER --data bad.jsonl",
        ("bad.jsonl:1", "assistant"),
        written("bad.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n'),
    ),
    Case(
        "evaluate: other columns",
        f"{EVALUATE} TEACHER --data bad.csv",
        ("bad.csv:2", "frage"),
        written("bad.csv", "frage,antwort\na,b\n"),
    ),
    Case(
        "evaluate: a model without a tokenizer", f"{EVALUATE} model --data DATA", ("model", "tokenizer"), _no_tokenizer
    ),
    Case(
        "evaluate: a tokenizer of more ids than the model", f"{EVALUATE} model --data DATA", ("model",), _no_beginning
    ),
    Case(
        "evaluate: a model without weights",
        f"{EVALUATE} model --data DATA",
        ("model", "safetensors"),
        copied("TEACHER", "model", lambda folder: (folder / "model.safetensors").unlink()),
    ),
    Case(
        "evaluate: texts longer than the model reads",
        f"{EVALUATE} TEACHER --data long.jsonl",
        ("no example fits", "overlong"),
        written("long.jsonl", json.dumps({"prompt": "p", "response": "word " * 600}) + "\n"),
    ),
]
