"""`python -m tests.bad_inputs.suites FOLDER ...`: public suites of bad files, each read to rows or to one line.

Suites of files that readers of JSON, Parquet and Arrow have stumbled over are published; none is kept here. Unpacked
somewhere, this reads every file below the folders that has a known suffix, as it is and with bytes changed at random
(`--damage N` copies of each). JSON is read twice, as an array and as lines. Every reading has a process of its own with
bounded memory and time, for what a damaged file does to a library in C is not an exception but a dead process.

JSON: github.com/nst/JSONTestSuite (`test_parsing`), json.org's JSON_checker. Parquet and Arrow: apache/parquet-testing
(`data`, `bad_data`), apache/arrow-testing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

MOST_MEMORY = 4 << 30  # bytes that one reading may ask for
MOST_SECONDS = 60
ALIKE = {".json": (".json", ".jsonl")}  # suffixes under which a file is read; its own alone where it is not here
MOST_CHANGES = 8  # places changed in one damaged copy

Answer = tuple[str, str]  # "rows", "refused" or "violation", and what there is to say


def main(arguments: list[str] | None = None) -> int:
    """Read them all; 0 if every one gave rows or one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--damage", type=int, default=0, help="damaged copies of each file")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="suites-") as name:
        for title, path in readings(wanted.folders, Path(name), wanted.damage, wanted.seed):
            kind, words = read_apart(path)
            counts[kind] += 1
            if kind == "violation":
                print(f"VIOLATION {title}: {words}", flush=True)
    print(f"files {counts.total()}, rows {counts['rows']}, one line {counts['refused']}, other {counts['violation']}")
    return 0 if counts.total() and not counts["violation"] else 1


def readings(folders: list[Path], scratch: Path, damage: int, seed: int) -> Iterator[tuple[str, Path]]:
    """What to read, each with its title; one copy at a time lies in `scratch`."""
    from sra_data.corpus.compressed import CODECS
    from sra_data.corpus.sources import can_be_read

    for file in sorted(path for folder in folders for path in folder.rglob("*")):
        if not file.is_file() or not can_be_read(file):
            continue
        content = file.read_bytes()
        own = "".join(file.suffixes[-2:] if file.suffix in CODECS else file.suffixes[-1:])
        for suffix in ALIKE.get(own, (own,)):
            for copy in range(damage + 1):
                path = scratch / f"read{suffix}"
                path.write_bytes(damaged(content, random.Random(f"{seed} {file} {copy}")) if copy else content)
                yield f"{file} as {suffix}" + (f", damaged copy {copy} of seed {seed}" if copy else ""), path


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The same with a few bytes changed, and sometimes cut."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, MOST_CHANGES) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.2 else changed)


def read_apart(path: Path) -> Answer:
    """Read a file in a process of its own; one that dies, hangs or raises anything but the house's errors is wrong."""
    context = multiprocessing.get_context("fork")  # a reading is milliseconds: what is imported stays so
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(path, there))
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(MOST_SECONDS) else ("violation", f"no end within {MOST_SECONDS} s")
    except EOFError:
        process.join()
        answer = ("violation", f"the process died (exit code {process.exitcode})")
    process.kill()
    process.join()
    return answer


def _read(path: Path, there: Connection) -> None:
    """In the child: every record, then every row as `align` reads them."""
    from sra_data.corpus.compressed import data_suffix
    from sra_data.corpus.readers import RECORD_READERS
    from sra_data.corpus.sources import open_source
    from sra_data.errors import SourceError
    from sra_data.terminal import printable

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    refusals = []
    for read in (
        lambda: RECORD_READERS[data_suffix(path)](path, 0, 1),
        lambda: open_source(str(path)).scan(on_invalid="skip"),
    ):
        try:
            for _ in read():
                pass
        except SourceError as error:
            refusals.append(str(error))
        except BaseException as error:
            there.send(("violation", f"{type(error).__name__}: {error}"))
            return
    broken = [line for line in refusals if len(printable(line).splitlines()) != 1]
    if broken:
        there.send(("violation", f"not one line: {broken[0]!r}"))
    else:
        there.send(("refused", refusals[0]) if refusals else ("rows", ""))


if __name__ == "__main__":
    sys.exit(main())
