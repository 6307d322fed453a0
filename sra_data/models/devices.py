"""Where a model may run: a device that this machine has, and that holds numbers; how one says that it is full; and with
which of its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sra_data.errors import ConfigError, one_line

# Of torch's allocator on a CPU; of cuBLAS, which asks for its workspace itself, where torch's own error is another.
SAID_WHERE_MEMORY_RAN_OUT = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def usable_device(wanted: str | None) -> torch.device:
    """The device of a name; a GPU where there is one, else the CPU, where none is named.

    Raises:
        ConfigError: If this machine has no such device.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise ValueError("it holds no numbers")
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = one_line(error, 120)
        raise ConfigError(f"--device {name}: cannot be used ({reason}); write cpu, or leave it out") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on an accelerator or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID_WHERE_MEMORY_RAN_OUT)


def free_memory() -> None:
    """Give cached accelerator memory back after an out-of-memory error."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def without_numbers() -> Iterator[None]:
    """The meta device: what is made in the block has names and shapes, and takes no memory."""
    import transformers.modeling_utils  # noqa: F401 - of torch 2.7 it imports what cannot be imported in the block

    with torch.device("meta"):
        yield


@contextmanager
def kernels_for_any_shape() -> Iterator[None]:
    """Attention without cuDNN, which torch takes first on some GPUs; for the whole process, until the block ends.

    cuDNN makes a plan for every shape that it has not met, a tenth of a second for each, while nearly every batch of
    texts is as long as none before. FlashAttention and its like, which come next, take any shape at once.
    """
    was_taken = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_taken)
