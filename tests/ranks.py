"""Several processes as torchrun starts them on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence

from tests.conftest import REPOSITORY

SECONDS_TO_FINISH = 300


def start_ranks(command: Sequence[str], world_size: int) -> list[tuple[int, str, str]]:
    """Run a command in so many processes on gloo, until all have ended; exit code, output and errors by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
        )
    try:
        said = [process.communicate(timeout=SECONDS_TO_FINISH) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]
