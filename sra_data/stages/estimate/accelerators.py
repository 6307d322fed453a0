"""What accelerators can do by their makers' data sheets, and which of them is meant by a name.

Peaks are those of dense bf16 products with float32 sums; sheets that print numbers with sparsity are halved. A peak is
never reached: `--utilisation` says which share of it is assumed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sra_data.errors import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """One kind.

    Attributes:
        name: on the command line.
        model: as its maker calls it.
        teraflops: 10^12 operations a second, dense bf16.
        gigabytes: memory, of 10^9 bytes.
        bandwidth: of that memory, GB a second.
        source: the public data sheet the numbers are from.
    """

    name: str
    model: str
    teraflops: float
    gigabytes: float
    bandwidth: float
    source: str


ACCELERATORS: dict[str, Accelerator] = {
    one.name: one
    for one in (
        Accelerator("a10", "NVIDIA A10", 125, 24, 600, "NVIDIA A10 Tensor Core GPU datasheet"),
        Accelerator("a100", "NVIDIA A100 SXM 80 GB", 312, 80, 2039, "NVIDIA A100 Tensor Core GPU datasheet"),
        Accelerator("b200", "NVIDIA B200 SXM", 2250, 180, 8000, "NVIDIA DGX B200 datasheet, an eighth of it"),
        Accelerator("h100", "NVIDIA H100 SXM 80 GB", 989, 80, 3350, "NVIDIA H100 Tensor Core GPU datasheet"),
        Accelerator("h200", "NVIDIA H200 SXM 141 GB", 989, 141, 4800, "NVIDIA H200 Tensor Core GPU datasheet"),
        Accelerator("l4", "NVIDIA L4", 121, 24, 300, "NVIDIA L4 Tensor Core GPU datasheet"),
        Accelerator("l40s", "NVIDIA L40S", 362, 48, 864, "NVIDIA L40S GPU datasheet"),
        Accelerator("mi300x", "AMD Instinct MI300X", 1307, 192, 5300, "AMD Instinct MI300X accelerator data sheet"),
        Accelerator("rtx4090", "NVIDIA GeForce RTX 4090", 165, 24, 1008, "NVIDIA Ada GPU architecture whitepaper"),
    )
}


def accelerator_of(name: str) -> Accelerator:
    """The kind of that name.

    Raises:
        ConfigError: Naming the nearest, and all there are.
    """
    found = ACCELERATORS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), list(ACCELERATORS), n=1, cutoff=0.5)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--gpu {name}: not known; {guess}choose one of {', '.join(ACCELERATORS)}")
    return found
