"""The configuration of every run of a comparison: what is common, and what the comparison decides itself.

Common to all methods is whatever the file and the flags say; the method, the learning rate, the clipping where it is
tuned, the seed and the folder are the comparison's own. Where a run has a choice that would favour one method's loss
over another's, the default here is another than a run's: the weights that are exported are those with the fewest bits
per byte on the development split, which is the same ruler for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sra_data.errors import ConfigError
from sra_train.compare.options import CompareOptions
from sra_train.compare.plan import Entry, Point, RunKey
from sra_train.config import TrainConfig, load_config, pairs

DEFAULTS: dict[str, Any] = {
    "evaluation.metric": "bits_per_byte",
    "evaluation.enabled": True,
    "checkpoints.keep_last": 1,
    "tracking.plots": False,
}
NOT_FROM_FILE = ("method", "output_dir", "hub")
OWN = {
    "method": "the options of a method belong to it: name a preset in --methods",
    "output_dir": "give --output-dir",
    "hub": "push the model you choose with `sra-train run`",
    "training.learning_rate": "give --rates",
}


def config_of(options: CompareOptions, entry: Entry) -> TrainConfig:
    """The configuration of a method's runs, up to rate, seed and folder.

    Raises:
        ConfigError: If a setting is the comparison's own, unknown, or makes a comparison impossible.
    """
    given = pairs(options.settings)
    for name, remedy in OWN.items():
        wrong = next((key for key in given if key == name or key.startswith(f"{name}.")), None)
        if wrong is not None:
            raise ConfigError(f"--set {wrong}: not common to all methods of a comparison; {remedy}")
    flags = {"data.shards": options.shards, "data.teachers": options.teacher, "student.name": options.student}
    config = load_config(
        options.config,
        {name: value for name, value in flags.items() if value} | given,
        beneath=DEFAULTS | dict(entry.settings),
        not_from_file=NOT_FROM_FILE,
    )
    if config.evaluation.enabled is False:
        raise ConfigError("evaluation.enabled=false: rates are chosen on the development split; leave it on")
    if config.student.lora is not None and config.student.lora.export == "adapter":
        raise ConfigError("student.lora.export=adapter: whole models are measured; leave it at merged")
    return config


def config_of_run(config: TrainConfig, key: RunKey, folder: Path) -> TrainConfig:
    """`config` with what makes a run this one.

    Args:
        config: of the method.
        key: which run.
        folder: the run's own.
    """
    training = config.training
    changes: dict[str, Any] = {"learning_rate": key.point.rate, "seed": key.seed}
    if key.point.clip is not None:
        changes["max_grad_norm"] = key.point.clip
    if key.steps is not None:
        changes["max_steps"] = key.steps if training.max_steps is None else min(key.steps, training.max_steps)
    return config.model_copy(
        update={"training": training.model_copy(update=changes), "output_dir": str(folder)},
    )


def common_settings(config: TrainConfig) -> dict[str, Any]:
    """What must not change between a comparison and its continuation, by dotted name."""
    own = ("method.", "training.learning_rate", "training.max_grad_norm")
    found = {name: value for name, value in config.identity().items() if not name.startswith(own)}
    chosen = config.data.teachers
    return found | {
        "student.name": config.student.name,
        "student.revision": config.student.revision,
        "data.teachers": [f"{one.name}:{one.weight}" for one in chosen],
        "evaluation.metric": config.evaluation.metric,
        "evaluation.every_steps": config.evaluation.every_steps,
        "evaluation.patience": config.evaluation.patience,
        "checkpoints.export": config.checkpoints.export,
    }


def exact_config(config: TrainConfig, point: Point) -> str:
    """A method's configuration as YAML for people who want to run it again: with its rate, in a folder of its own."""
    found = config_of_run(config, RunKey(config.method.name, point, config.training.seed), Path("unused"))
    return found.model_copy(update={"output_dir": None}).to_yaml()
