"""Cut a data set into train, dev and test by the hash of the prompt; no prompt stands in two of them.

    python pipelines/published/cut.py databricks/databricks-dolly-15k:train FOLDER

The published runs cut Dolly into 11,435 / 1,000 / 500 examples; whose cut that was is not on the Hub, so this one has
as many for development and test, but others. To compare with published numbers, name the literature's files instead.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from sra_data.corpus.examples import Row
from sra_data.corpus.sources import open_source

NUM_TEST, NUM_DEV = 500, 1000


def main() -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl; the folder appears once it is whole."""
    source, folder = sys.argv[1], Path(sys.argv[2])
    rows = [located.row for located in open_source(source).scan()]
    splits = cut(rows, num_test=NUM_TEST, num_dev=NUM_DEV)
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        with open(temporary / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row, its_split in zip(rows, splits, strict=True):
                if its_split == split:
                    values = {"id": row.id, "prompt": row.prompt, "response": row.response}
                    file.write(json.dumps(values, ensure_ascii=False) + "\n")
    os.rename(temporary, folder)
    print(f"{folder}: " + ", ".join(f"{split} {splits.count(split):,}" for split in ("train", "dev", "test")))


def cut(rows: Sequence[Row], *, num_test: int, num_dev: int) -> list[str]:
    """The split of each row: prompts in the order of their hashes fill test, then dev, as long as they fit whole.

    The order of the rows does not matter, nor do equal prompts: they go together.
    """
    num_rows = Counter(row.split_key() for row in rows)
    room = {"test": num_test, "dev": num_dev, "train": len(rows)}
    split_of = {}
    for prompt in sorted(num_rows, key=lambda prompt: sha256(prompt.encode()).digest()):
        split = next(split for split, left in room.items() if num_rows[prompt] <= left)
        room[split] -= num_rows[prompt]
        split_of[prompt] = split
    return [split_of[row.split_key()] for row in rows]


if __name__ == "__main__":
    main()
