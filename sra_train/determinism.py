"""The same run twice, the same bits: what has to be switched on for that on a GPU.

The order, the random numbers and the learning rates of a run are pure functions already; what differs between two runs
on one GPU is the order in which its threads add up. `training.deterministic` has torch take the kernels that always
add in one order, and refuse where there is none. On a CPU nothing of that is needed, and nothing is changed by it.

Two runs are equal to the last bit on the same kind of device with the same libraries and number of processes, and with
the same micro-batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sra_data.errors import TrainingError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")  # those with which cuBLAS repeats itself, by its documentation
ASKED_FOR = "use_deterministic_algorithms"  # what torch's refusals name


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have operations repeat themselves while the block runs, where `wanted`; all settings are then as before.

    It has to begin before the process first uses a GPU: cuBLAS reads its setting once.

    Raises:
        TrainingError: If an operation inside has no such implementation; names it.
    """
    if not wanted:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, workspace = torch.backends.cudnn, os.environ.get(WORKSPACE)
    before = cudnn.deterministic, cudnn.benchmark
    if workspace not in FIXED_WORKSPACES:
        os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if ASKED_FOR not in str(error):
            raise
        said = " ".join(str(error).split(". ")[0].split())[:200]
        raise TrainingError(
            f"training.deterministic: {said}; leave it out, or choose another student or method"
        ) from error
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = before
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = workspace


def settings() -> dict[str, Any]:
    """What is on in this process, for the record of a run."""
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled() and not warn_only,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        WORKSPACE: os.environ.get(WORKSPACE),
    }
