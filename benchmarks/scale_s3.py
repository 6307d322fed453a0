"""What training from a store costs, beside training from the folder: SRA steps on the same batches, in the same order.

    python -m benchmarks.scale_s3 [--batches 64] [--runs 1] [--threads 1]

Real Dolly batches (see train_shards.py), read in windows of one row group, some 180 rows: as in training on a large
corpus, a window is small beside the cache and the cache beside the shards. The store is an S3-compatible server
(moto's) in a process of its own on the loopback, so it takes cores from training, as no store elsewhere does; the
cache begins empty and holds half of the teacher's pages. Both read with the same order, checks, prefetch depth and
memory for decompressed row groups; they take turns, and the faster run of each counts. Prints one JSON object:

    s3_over_local         seconds of the steps from the folder / from the store        (target: at least 0.9)
    s3_read_over_local    the same of reading alone, without a model: nothing hides what a store costs
    cache_over_bound      what the cache weighed at the end / what it may weigh        (at most 1)
    data_wait             seconds waited for data / seconds of steps, from the store
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script too

from benchmarks.train import BATCH_SIZE, Data, method_step
from benchmarks.train_shards import make_shards
from sra_data.shards.store import choose_places, copy_to_store
from sra_train.data.order import OrderPlan
from sra_train.data.prefetch import Prefetcher

REPOSITORY = Path(__file__).resolve().parents[1]
BUCKET = "bench"
WINDOW = 1  # row groups: the cache must hold two windows, and the shards many
DEPTH = 2  # as in training


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server that ends with the context; fsspec is told of it."""
    import fsspec
    import s3fs

    command = [sys.executable, "-m", "benchmarks.scale_s3", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            told = {"endpoint_url": endpoint, "key": "key", "secret": "secret"}
            fsspec.config.conf["s3"] = {**told, "client_kwargs": {"region_name": "us-east-1"}}
            s3fs.S3FileSystem(skip_instance_cache=True).call_s3("create_bucket", Bucket=BUCKET)
            yield endpoint
        finally:
            fsspec.config.conf.pop("s3", None)
            process.terminate()


def serve() -> None:
    """Be the server until the end; print the address."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
    while True:
        time.sleep(3600)


def opened(place: Path | str) -> Data:
    """Shards in the windows of training."""
    data = Data.open(place)  # type: ignore[arg-type]
    table = data.maker.table
    plan = OrderPlan(
        row_groups=table.row_groups,
        trainable=table.is_train,
        seed=0,
        corpus_root=data.sources.shards.corpus.root,
        window=WINDOW,
        batch_size=BATCH_SIZE,
    )
    return replace(data, plan=plan)


def seconds_of(place: Path | str, batches: int, *, trains: bool) -> tuple[float, float]:
    """Seconds of so many batches, trained on or read alone, and those waited for data; opening is left out."""
    data = opened(place)
    step = method_step("sra", data) if trains else None
    waited = 0.0
    try:
        with Prefetcher(data.stream(batches), depth=DEPTH) as micros:
            started = time.perf_counter()
            for micro in micros:
                if step is not None:
                    step([micro.batch], micro.totals)
                data.pool.give_back(micro.staging)
            taken, waited = time.perf_counter() - started, micros.seconds_waited
    finally:
        data.sources.shards.close()
    return taken, waited


def measure(folder: Path, *, batches: int, runs: int, threads: int) -> dict[str, float]:
    """All numbers; makes shards in `folder` and puts them into a store of its own."""
    shards = make_shards(folder, num_examples=(batches + 1) * BATCH_SIZE)  # by all cores
    torch.set_num_threads(threads)
    pages = sum(path.stat().st_size for path in shards.glob("teachers/*/part-*.parquet"))
    limit = pages // 2
    taken: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
    weight = 0
    with s3_server():
        url = f"s3://{BUCKET}/shards"
        choose_places(workspace=str(folder / "workspace"), cache_dir=str(folder / "cache"), cache_gib=limit / (1 << 30))
        copy_to_store(shards, url)
        for trains in (False, True):
            seconds_of(shards, 1, trains=trains)  # warms up
            for _ in range(runs):
                shutil.rmtree(folder / "cache", ignore_errors=True)
                choose_places(cache_dir=str(folder / "cache"))
                (folder / "cache" / "locks").mkdir(parents=True)
                for is_there, place in ((True, url), (False, shards)):
                    taken.setdefault((trains, is_there), []).append(seconds_of(place, batches, trains=trains))
                weight = max(weight, sum(path.stat().st_size for path in (folder / "cache").glob("??/*")))
    best = {kind: min(found) for kind, found in taken.items()}
    return {
        "s3_over_local": best[True, False][0] / best[True, True][0],
        "s3_read_over_local": best[False, False][0] / best[False, True][0],
        "cache_over_bound": weight / limit,
        "data_wait": best[True, True][1] / best[True, True][0],
        "pages_bytes": pages,
        "cache_bytes": limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch; the server needs a core too")
    parser.add_argument("--serve", action="store_true", help="be the server (the benchmark starts it)")
    asked = parser.parse_args()
    if asked.serve:
        serve()
    with tempfile.TemporaryDirectory(prefix="sra-scale-s3-") as place:
        found: dict[str, Any] = measure(Path(place), batches=asked.batches, runs=asked.runs, threads=asked.threads)
    found |= {"cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}))


if __name__ == "__main__":
    main()
