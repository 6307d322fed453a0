"""The norm between a decoder's last block and its output head, found in a model that is in memory.

Families call it by many names and keep it in many places, so it is found by what it does: in a forward of a few ids it
is handed what the last block gave, and gives the body's last hidden state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.decoder import decoder_body, decoder_layers, unwrap
from sra_data.models.placement import device_of_module

NORMED = 0.02  # how far the root mean square of states that came through a norm lies from 1, at most


@torch.no_grad()
def final_norm(model: nn.Module) -> nn.Module:
    """The module between the last block's output and the last hidden state; an identity where there is none.

    Raises:
        ModelError: If something else than one module stands between the two.
    """
    body, last = decoder_body(model), decoder_layers(model)[-1]
    within = {id(module) for block in decoder_layers(model) for module in block.modules()}
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    given: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            seen.append((module, inputs[0], output))

    handles = [module.register_forward_hook(keep) for module in body.modules() if id(module) not in within]
    handles.append(last.register_forward_hook(lambda _, inputs, output: given.append(_states(output))))
    embedding = unwrap(model).get_input_embeddings()
    was_training = body.training
    body.eval()
    ids = torch.arange(3, 8, device=device_of_module(embedding))[None] % embedding.weight.shape[0]
    try:
        found = body(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        body.train(was_training)
        for handle in handles:
            handle.remove()
    if _are_equal(given[-1], found):
        return nn.Identity()
    for module, taken, made in seen:
        if _are_equal(taken, given[-1]) and _are_equal(made, found):
            return module
    raise ModelError(
        f"model class {type(unwrap(model)).__name__}: no single norm was found between its last block and its last "
        "hidden state, so states from before it cannot be used; cache the teacher with `sra-data cache-teacher`"
    )


@torch.no_grad()
def is_normed(norm: nn.Module, states: Tensor) -> bool:
    """Whether states [P, D] look like what the norm gives: scaled back by its own weights, all are of size 1.

    A norm's weights show in what it makes of plus and minus ones, whose own mean is 0 and whose size is 1.
    """
    if isinstance(norm, nn.Identity):
        return False  # there is nothing that could act twice
    ones = torch.ones_like(states[:1])
    ones[:, 1::2] = -1
    plus, minus = norm(ones).float(), norm(-ones).float()
    weight, bias = (plus - minus) / 2 * ones.float(), (plus + minus) / 2
    is_used = weight.abs() > 1e-3 * weight.abs().max()
    back = (states.float() - bias) / torch.where(is_used, weight, torch.inf)
    sizes = (back.square().sum(dim=-1) / is_used.sum()).sqrt()
    return bool((sizes - 1).abs().max() <= NORMED)


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _are_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two are the same numbers: they are of one forward, so nothing is rounded."""
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.device), theirs)
