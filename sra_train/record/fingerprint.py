"""The weights a student starts with, as one short hash: a part of what a run is.

A checkpoint holds what is trained; what is frozen comes from the student's own folder again, at every resume and once
more for the export, and methods may read the head as it began. So a folder that was overwritten, or a Hub id that has
moved on, would change the function that is trained though every name and shape is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xxhash
from torch import Tensor, nn

from sra_train.config import StudentConfig


def starting_weights(model: nn.Module, options: StudentConfig) -> str:
    """xxh3 over the names, types, shapes and bytes of what a student as loaded does not owe to the seed alone.

    Everything that was read from disk, and everything frozen. New weights that are trained (adapters, those of
    `student.init=random`) are left out: the seed stands for them, a checkpoint holds them, and another machine may
    round one of them otherwise. Of a quantised base its packed weights and its scales are what is hashed.

    Args:
        model: As `load_student` returns it, before the first step, unsharded.
        options: How it was loaded.
    """
    new = options.init == "random" or options.lora is not None
    left_out = (
        {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        if new
        else set()
    )
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        if name not in left_out and isinstance(value, Tensor):
            for place, piece in enumerate(plain_tensors(value.detach())):
                digest.update(f"{name} {place} {piece.dtype} {tuple(piece.shape)}\n".encode())
                digest.update(piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, or those a subclass of tensors (as some libraries quantise) is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from plain_tensors(getattr(tensor, name))
