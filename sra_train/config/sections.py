"""The sections of a run's configuration, frozen and typed; `TrainConfig` is all of them.

`identity` names what makes a run the run it is: a checkpoint is refused by a run that differs in it. Everything else
(how many processes, how often to save, where to log) may change between a checkpoint and its continuation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_serializer
from pydantic import model_validator as validate_model

from sra_data.errors import ConfigError
from sra_train.choices import Precision, WeightDtype
from sra_train.config.metric import refuse_metric
from sra_train.config.section import Section
from sra_train.config.teachers import TeacherChoice, shared_weights

Tracker = Literal["tensorboard", "wandb", "trackio"]


class DataConfig(Section):
    """What is read, and how far ahead."""

    shards: str = Field(
        default="shards",
        description="folder made by `sra-data align` and `sra-data cache-teacher`, or s3://bucket/shards",
    )
    teachers: tuple[TeacherChoice, ...] = Field(
        default=(), description="whom the student learns from; by default the only one of the shards"
    )
    window: int = Field(
        default=8, ge=1, description="row groups of the corpus (64 KiB of responses each) shuffled together"
    )
    cache_dir: str | None = Field(
        default=None, description="where blocks of shards in a store are kept (default: SRA_CACHE_DIR or ~/.cache)"
    )
    cache_gib: float | None = Field(
        default=None, gt=0, description="what they may weigh, in GiB (default: SRA_CACHE_GIB or 16)"
    )
    prefetch: int = Field(default=2, ge=1, description="micro-batches prepared ahead by the reading thread")

    @field_validator("teachers", mode="before")
    @classmethod
    def one_or_several(cls, value: object) -> object:
        """One teacher may stand without a list."""
        return (value,) if isinstance(value, str | Mapping | TeacherChoice) else () if value is None else value

    @field_validator("teachers", mode="after")
    @classmethod
    def check_teachers(cls, teachers: tuple[TeacherChoice, ...]) -> tuple[TeacherChoice, ...]:
        """Refuse a teacher named twice, and weights that are none or do not sum to 1."""
        names = [teacher.name for teacher in teachers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"data.teachers: {twice} is named twice; name it once, with the sum of the weights")
        shared_weights(teachers)
        return teachers

    @property
    def weights(self) -> list[float]:
        """Of the teachers, in order; they sum to 1."""
        return shared_weights(self.teachers)


class LoraConfig(Section):
    """Low-rank adapters in place of full fine-tuning; the values are the published recipe's."""

    r: int = Field(default=256, ge=1)
    alpha: float = Field(default=8, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        description="names of linear layers; by default the query and value projections of the architecture",
    )
    export: Literal["merged", "adapter"] = Field(default="merged", description="what out/model holds")


class StudentConfig(Section):
    """The model that learns."""

    name: str | None = Field(
        default=None, description="Hub id or folder; by default the one the alignment was made for"
    )
    side: str | None = Field(
        default=None, description="which side of the shards the student reads, where its tokenizer has several"
    )
    alignment: str | None = Field(
        default=None, description="which alignment of that side and a teacher's, where there are several"
    )
    revision: str | None = None
    init: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random: new weights from its config.json"
    )
    dtype: WeightDtype = Field(default="float32", description="of the weights held in memory")
    attention: str | None = Field(
        default=None, description="sdpa, eager, flash_attention_2 ...; by default the model's own"
    )
    trust_remote_code: bool = False
    freeze: tuple[str, ...] = Field(
        default=(), description="parameters whose name starts with one of these are not trained"
    )
    lora: LoraConfig | None = Field(
        default=None, description="false: full fine-tuning; SRA's research code always trains adapters"
    )

    @field_validator("lora", mode="before")
    @classmethod
    def lora_switch(cls, value: object) -> object:
        """`lora: true` is the recipe, `lora: false` none."""
        if isinstance(value, bool):
            return LoraConfig() if value else None
        return value


class MethodConfig(Section):
    """The objective: its name, and its options beside it (``{name: sra, alpha: 0.5}``)."""

    name: str = "sra"
    options: SerializeAsAny[BaseModel]

    @validate_model(mode="before")
    @classmethod
    def options_of_the_method(cls, value: Any) -> Any:
        """Gather what is not the name into the method's own options; a bare string is a name."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or isinstance(value.get("options"), BaseModel):
            return value
        options = dict(value)
        name = options.pop("name", "sra")
        if not isinstance(name, str):
            raise ConfigError(f"method.name={name!r}: a method's name is text; see `sra-train run --print-config`")
        return {"name": name, "options": options_type(name).model_validate(options)}

    @model_serializer(mode="plain")
    def flat(self) -> dict[str, Any]:
        """The same flat form that is read."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


class TrainingConfig(Section):
    """Optimisation; the defaults are the published recipe's (docs/method.md, section 7)."""

    epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(
        default=None, ge=1, description="end (and end of the schedule) before the epochs are over"
    )
    batch_size: int = Field(default=16, ge=1, description="examples of the GLOBAL step, over all processes")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="most examples one process runs at once; by default as micro_batch_tokens say"
    )
    micro_batch_tokens: int | None = Field(
        default=None, ge=1, description="most tokens at once, padding included; by default what suits the device"
    )
    learning_rate: float = Field(default=5e-4, gt=0)
    min_learning_rate: float = Field(default=5e-6, ge=0)
    projector_learning_rate: float = Field(
        default=5e-4, gt=0, description="of the method's own parameters, without decay"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of all steps")
    weight_decay: float = Field(
        default=0.01, ge=0, description="on matrices only; SRA's research code decays norms and biases too"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="none: measured, not clipped, as SRA's research code has it"
    )
    seed: int = Field(default=42, ge=0, lt=1 << 63)
    precision: Precision = Field(default="auto", description="auto: bf16 where the GPU has it, else no")
    strategy: Literal["ddp", "fsdp2"] = Field(default="ddp", description="how several processes share the work")
    deterministic: bool = Field(
        default=False, description="the same run twice gives the same bits on a GPU too, more slowly"
    )
    gradient_checkpointing: bool = False
    compile: bool = Field(default=False, description="torch.compile the student's body")
    router_loss: float | None = Field(
        default=None, ge=0, description="weight of a mixture of experts' router loss; by default its own, 0: without"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def no_is_a_word(cls, value: object) -> object:
        """YAML reads a bare `no` as false."""
        return "no" if value is False else value


class GenerationConfig(Section):
    """The Rouge-L protocol of docs/method.md, section 7."""

    sets: dict[str, str] = Field(default_factory=dict, description="name -> data, as `sra-data align --data` takes it")
    every_epochs: int = Field(default=1, ge=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...] = Field(default=(10, 20, 30, 40, 50), min_length=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_prompt_tokens: int = Field(default=256, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_examples: int | None = Field(default=None, ge=1)


class EvaluationConfig(Section):
    """What is measured on the development split while training."""

    enabled: bool | None = Field(default=None, description="by default whenever there is a development split")
    every_steps: int | None = Field(default=None, ge=1, description="by default at the end of every epoch")
    batch_size: int = Field(default=16, ge=1, description="most examples one process runs at once")
    metric: str = Field(
        default="loss", description="loss, bits_per_byte, a term such as kd, or rouge_l: picks the best"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after so many evaluations without a better one")
    generation: GenerationConfig | None = None


class CheckpointConfig(Section):
    """When the state is written and which is kept."""

    every_steps: int | None = Field(default=None, ge=1, description="by default at the end of every epoch")
    keep_last: int = Field(default=2, ge=1)
    export: Literal["best", "last"] = Field(default="best", description="which weights become out/model")


class TrackingConfig(Section):
    """metrics.jsonl and metrics.csv are always written; these come on top."""

    trackers: tuple[Tracker, ...] = ()
    project: str = "sra-train"
    run_name: str | None = None
    plots: bool = True


class HubConfig(Section):
    """Where the finished model is pushed, if anywhere."""

    push_to: str | None = Field(default=None, description="owner/name")
    private: bool = True


class TrainConfig(Section):
    """Everything a run depends on."""

    output_dir: str | None = Field(default=None, description="by default runs/<method>-<student>")
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    method: MethodConfig = Field(default_factory=lambda: MethodConfig.model_validate({"name": "sra"}))
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    hub: HubConfig = HubConfig()

    @validate_model(mode="after")
    def check_metric(self) -> TrainConfig:
        """Refuse to choose the best weights by what nothing measures."""
        refuse_metric(self)
        return self

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back to the same value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as flat dotted names."""
        values = flatten(self.model_dump(mode="json"))
        return {
            name: value
            for name, value in values.items()
            if name.split(".")[0] in ("student", "method", "training")
            and name not in MAY_CHANGE
            and name.split(".")[:3] != ["student", "lora", "export"]
        } | {"data.window": self.data.window}


MAY_CHANGE = frozenset(
    {
        "student.name",  # a folder may move; the tokenizer and the weights themselves are compared instead
        "student.revision",
        "student.side",  # the roots of the folders that are read say more
        "student.alignment",
        "student.attention",
        "student.trust_remote_code",
        "training.micro_batch_size",
        "training.micro_batch_tokens",
        "training.strategy",
        "training.deterministic",
        "training.gradient_checkpointing",
        "training.compile",
    }
)


def options_type(method: str) -> type[BaseModel]:
    """The options of the method called `method`.

    Raises:
        ConfigError: If there is no such method.
    """
    import sra_train.methods  # registers all of them; torch is loaded only now
    from sra_train.methods.base import method_type

    assert sra_train.methods is not None
    return method_type(method).options_type


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one flat mapping with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two flat mappings disagree, one phrase a field."""
    return [
        f"{name}: {old.get(name, 'absent')} then, {new.get(name, 'absent')} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
