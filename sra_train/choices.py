"""Closed choices that the command line and the configuration share; it imports nothing, so `--help` may read it."""

from typing import Literal

Precision = Literal["auto", "no", "bf16", "fp16"]
WeightDtype = Literal["float32", "bfloat16"]
