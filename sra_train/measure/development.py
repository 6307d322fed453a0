"""What the student can do on the development split, measured while it trains.

The same losses as in training, over the whole split, and bits per byte, which compares with any other model
(docs/method.md, section 7). Every rank measures its share; the sums are exact whatever their number.
"""

from __future__ import annotations

import math

from sra_data.errors import ConfigError
from sra_data.models.output_head import OutputHead
from sra_train.config import EvaluationConfig
from sra_train.data.prefetch import Prefetcher
from sra_train.data.stream import Share, development_stream
from sra_train.data.table import RowTable
from sra_train.likelihood import bits_of_unpredicted
from sra_train.loop import StepSums, Trainer
from sra_train.parallel import student_inside

MICRO_BATCHES_BETWEEN_QUESTIONS = 8  # whether to stop: an exchange between ranks that waits for the device


def measure_development(trainer: Trainer) -> dict[str, float] | None:
    """Losses and bits per byte on the development split; None if asked to stop in between.

    Args:
        trainer: Its model, maker and share are used; its weights do not change.
    """
    budget = trainer.share.budget.limited(most_rows=trainer.config.evaluation.batch_size)
    share = Share(trainer.share.rank, trainer.share.world_size, budget)
    head = OutputHead.from_model(student_inside(trainer.model).model)
    sums = StepSums()
    sums.add("bits", 0.0)
    sums.add("bytes", 0.0)
    stream = development_stream(trainer.maker, share)
    with Prefetcher(stream, depth=trainer.config.data.prefetch) as micros:
        for micro, losses in trainer.forward_only(micros):
            assert micro.text is not None
            sums.add("loss", losses["total"].double())
            for name, value in losses["terms"].items():
                sums.add(name, value.double())
            sums.add("bits", losses["nats"].sum() / math.log(2) + bits_of_unpredicted(micro.text.num_unpredicted, head))
            sums.add("bytes", float(micro.text.num_bytes))
            if micro.index % MICRO_BATCHES_BETWEEN_QUESTIONS == 0 and trainer.stop.agreed(trainer.accelerator):
                return None
    found = sums.over_ranks(trainer.accelerator)
    bits, num_bytes = found.pop("bits"), found.pop("bytes")
    return {"loss": found.pop("loss"), "bits_per_byte": bits / max(num_bytes, 1), **found}


def wants_development(options: EvaluationConfig, table: RowTable, *, shards: str) -> bool:
    """Whether the development split is measured.

    Raises:
        ConfigError: If something that needs it is asked for and the split is empty.
    """
    num_rows = int(table.is_dev.sum())
    if options.enabled is False:
        return False
    asked = options.enabled or options.patience is not None or options.every_steps is not None
    if num_rows == 0 and (asked or options.metric != "loss"):
        raise ConfigError(
            f"{shards}: the development split is empty, but the configuration evaluates on it; align again with"
            " --dev-data or --dev-share, or set evaluation.enabled=false"
        )
    return num_rows > 0
