"""Closed choices that command line and configuration share; nothing heavy is imported, so `--help` may read it."""

from typing import Literal

Precision = Literal["auto", "no", "bf16", "fp16"]
WeightDtype = Literal["float32", "bfloat16"]
# Those that are registered, as tests check; they are registered only when torch is there.
METHODS = ("alm", "boundary", "dskd", "dskdv2", "mined", "multilevel-ot", "sft", "sra", "strict", "uld")
