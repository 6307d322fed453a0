"""What the processes of a tensor-parallel teacher do that do not lead: load their share, take part in every forward."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import torch
from torch import nn

from sra_data.errors import ModelError, SRAError
from sra_data.models.attention import LastQueryAttention
from sra_data.models.decoder import decoder_body, unwrap
from sra_data.models.devices import kernels_for_any_shape
from sra_data.models.placement import device_of_module
from sra_data.teacher.loading import load
from sra_data.teacher.tensor_parallel import End, Forward, Load, Team


def follow(team: Team) -> None:
    """Do what the leader orders until it ends.

    What goes wrong on the way is the leader's to say: it meets the same error in the same place.

    Raises:
        ModelError: If the leader was refused, or is gone.
    """
    model: nn.Module | None = None
    while not isinstance(order := team.hear(), End):
        with suppress(SRAError, IndexError, RuntimeError, ValueError):
            if isinstance(order, Load):
                model = load(order.spec).model
            elif model is not None:
                _take_part(model, order, team)
    if not order.is_well:
        raise ModelError("--tensor-parallel: the first process was refused; its error says why")


@kernels_for_any_shape()
@torch.inference_mode()
def _take_part(model: nn.Module, order: Forward, team: Team) -> None:
    """One forward of the body, with the rows of attention that the leader reads."""
    ids = order.ids.to(device_of_module(unwrap(model).get_input_embeddings()))
    with ExitStack() as stack:
        if order.query_index is not None:
            reader = LastQueryAttention.attach(model, order.layers, total=team.total)
            stack.callback(reader.detach)
            stack.enter_context(reader.capture(order.query_index.to(ids.device)))
        decoder_body(model)(input_ids=ids, use_cache=False, output_hidden_states=order.all_layers)
