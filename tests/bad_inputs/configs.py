"""Configurations that are none: `sra-train run --config`, and the sections of `sra-data --config`."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bad_inputs.case import ALIGN, CACHE, RUN, Case, usage, written
from tests.crash.world import World

Says = tuple[str, ...]
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))

# What is wrong: the file's content, words of the answer beside the file's name.
TRAINING: dict[str, tuple[str | bytes, Says]] = {
    "prose": ("Train it well, please.\n", ("mapping", "str")),
    "a list": ("- training\n- method\n", ("mapping", "list")),
    "a number": ("42\n", ("mapping", "int")),
    "a bracket that is not closed": ("training: {epochs: 3\n", ("not YAML",)),
    "a tab for space": ("training:\n\tepochs: 3\n", ("not YAML",)),
    "a colon too many": ("training: epochs: 3\n", ("not YAML",)),
    "bytes": (b"\xff\xfe\x00\x01", ("not YAML",)),
    "latin-1": ("output_dir: Läufe\n".encode("latin-1"), ("not YAML",)),
    "zeros": (b"\x00" * 64, ("not YAML",)),
    "two documents": ("training: {epochs: 3}\n---\ntraining: {epochs: 4}\n", ("not YAML",)),
    "an object of Python's": ("training: !!python/object/apply:os.system ['touch made']\n", ("not YAML", "python")),
    "a module of Python's": ("output_dir: !!python/module:os\n", ("not YAML", "python")),
    "a tag that there is not": ("training: !mine {epochs: 3}\n", ("not YAML", "!mine")),
    "an alias of nothing": ("training: *none\n", ("not YAML", "none")),
    "an anchor in itself": ("training: &a\n  epochs: 3\n  warmup: *a\n", ("training.warmup",)),
    "a list in itself": ("student:\n  freeze: &a [*a]\n", ("student.freeze",)),
    "a mapping that is its own section": ("training: &a {training: *a}\n", ("training.training",)),
    "laughs by the billion": (LAUGHS, ("a0", "unknown key")),
    "brackets by the thousand": ("student: " + "[" * 5000, ("not YAML",)),
    "a date that is none": ("training: {epochs: 2024-99-99}\n", ("not YAML",)),
    "a section that there is not": ("trainig: {epochs: 3}\n", ("trainig", "did you mean training")),
    "a key that there is not": ("training: {epoch: 3}\n", ("training.epoch", "did you mean epochs")),
    "a key of another section": ("training: {keep_last: 3}\n", ("training.keep_last", "unknown key")),
    "a key without a section": ("epochs: 3\n", ("epochs", "unknown key")),
    "a key in capitals": ("training: {Epochs: 3}\n", ("training.Epochs", "did you mean epochs")),
    "a key with a dot": ("training.epochs: 3\n", ("training.epochs", "unknown key")),
    "a key that is a number": ("7: 3\n", ("7",)),
    "a key that is a list": ("? [a, b]\n: 3\n", ("not YAML",)),
    "a key that is nothing": ("training: {null: 3}\n", ("training",)),
    "a key that is a truth": ("training: {yes: 3}\n", ("training",)),
    "a section that is a list": ("training: [epochs, 3]\n", ("training",)),
    "a section that is text": ("training: fast\n", ("training='fast'",)),
    "epochs in words": ("training: {epochs: three}\n", ("training.epochs='three'",)),
    "epochs of a half": ("training: {epochs: 2.5}\n", ("training.epochs=2.5",)),
    "epochs without end": ("training: {epochs: .inf}\n", ("training.epochs=inf",)),
    "epochs below none": ("training: {epochs: -2}\n", ("training.epochs=-2",)),
    "epochs that are a truth": ("training: {epochs: yes}\n", ("training.epochs",)),
    "epochs of thousands of digits": ("training: {epochs: " + "9" * 5000 + "}\n", ("5000 digits",)),
    "a rate that is no number": ("training: {learning_rate: .nan}\n", ("training.learning_rate=nan",)),
    "a rate below 0": ("training: {learning_rate: -1}\n", ("training.learning_rate=-1",)),
    "a rate with a comma": ("training: {learning_rate: '5,0'}\n", ("training.learning_rate='5,0'",)),
    "a least rate without end": ("training: {min_learning_rate: .inf}\n", ("training.min_learning_rate=inf",)),
    "a decay that is no number": ("training: {weight_decay: .nan}\n", ("training.weight_decay=nan",)),
    "a decay without end": ("training: {weight_decay: .inf}\n", ("training.weight_decay=inf",)),
    "an epsilon of 0": ("training: {epsilon: 0}\n", ("training.epsilon=0",)),
    "an epsilon without end": ("training: {epsilon: .inf}\n", ("training.epsilon=inf",)),
    "a bound of the gradient without end": ("training: {max_grad_norm: .inf}\n", ("training.max_grad_norm=inf",)),
    "a rate of projectors without end": (
        "training: {projector_learning_rate: .inf}\n",
        ("training.projector_learning_rate=inf",),
    ),
    "a beta of one": ("training: {beta1: 1}\n", ("training.beta1=1",)),
    "a beta that is no number": ("training: {beta2: .nan}\n", ("training.beta2=nan",)),
    "a warm-up beyond the run": ("training: {warmup: 1.5}\n", ("training.warmup=1.5",)),
    "a warm-up in steps": ("training: {warmup: 100}\n", ("training.warmup=100",)),
    "a schedule that there is not": ("training: {schedule: exponential}\n", ("training.schedule='exponential'",)),
    "a precision that is yes": ("training: {precision: yes}\n", ("training.precision=True",)),
    "a precision that is a number": ("training: {precision: 16}\n", ("training.precision=16",)),
    "a strategy that there is not": ("training: {strategy: horovod}\n", ("training.strategy='horovod'",)),
    "a window of none": ("data: {window: 0}\n", ("data.window=0",)),
    "a teacher without a name": ("data: {teachers: [{weight: 1}]}\n", ("data.teachers.0.name",)),
    "a teacher's weight misspelt": ("data: {teachers: [{name: a, wieght: 1}]}\n", ("wieght", "did you mean weight")),
    "a teacher's weight in words": ("data: {teachers: [{name: a, weight: half}]}\n", ("data.teachers.0.weight",)),
    "teachers that are a number": ("data: {teachers: 3}\n", ("data.teachers",)),
    "teachers of numbers": ("data: {teachers: [1, 2]}\n", ("data.teachers.0",)),
    "shards that are a list": ("data: {shards: [a, b]}\n", ("data.shards",)),
    "a student that is a number": ("student: {name: 7}\n", ("student.name=7",)),
    "a student's weights from nowhere": ("student: {init: zeros}\n", ("student.init='zeros'",)),
    "a rank of none": ("student: {lora: {r: 0}}\n", ("student.lora.r=0",)),
    "an adapter's drop-out of one": ("student: {lora: {dropout: 1}}\n", ("student.lora.dropout=1",)),
    "an adapter's alpha without end": ("student: {lora: {alpha: .inf}}\n", ("student.lora.alpha=inf",)),
    "an adapter in words": ("student: {lora: small}\n", ("student.lora",)),
    "an adapter exported as something else": ("student: {lora: {export: gguf}}\n", ("student.lora.export='gguf'",)),
    "a method that is a list": ("method: [sra, sft]\n", ("method",)),
    "a method that is a number": ("method: 7\n", ("method",)),
    "a method whose name is a list": ("method: {name: [sra]}\n", ("method",)),
    "a method whose name is nothing": ("method: {name: }\n", ("method",)),
    "an option that is a number": ("method: {name: sra, 7: 3}\n", ("method", "7")),
    "a method that there is not": ("method: {name: sar}\n", ("method=sar", "sra")),
    "an option of another method": ("method: {name: sft, alpha: 0.5}\n", ("method.alpha", "unknown key")),
    "an option that is no number": ("method: {name: sra, alpha: .nan}\n", ("alpha=nan",)),
    "a temperature without end": ("method: {name: sra, temperature: .inf}\n", ("temperature=inf",)),
    "a temperature of 0": ("method: {name: sra, temperature: 0}\n", ("temperature=0",)),
    "a weight of a term below 0": ("method: {name: strict, lambda_cos: -1}\n", ("lambda_cos=-1",)),
    "a weight of a term that is no number": ("method: {name: strict, lambda_cos: .nan}\n", ("lambda_cos=nan",)),
    "layers that are no pairs": ("method: {name: sra, layer_pairs: [3]}\n", ("method.layer_pairs",)),
    "measuring that is a word": ("evaluation: {enabled: sometimes}\n", ("evaluation.enabled='sometimes'",)),
    "patience of none": ("evaluation: {patience: 0}\n", ("evaluation.patience=0",)),
    "sets that are a list": ("evaluation: {generation: {sets: [a.jsonl]}}\n", ("evaluation.generation.sets",)),
    "no seeds": ("evaluation: {generation: {seeds: []}}\n", ("evaluation.generation.seeds",)),
    "seeds in words": ("evaluation: {generation: {seeds: [lucky]}}\n", ("evaluation.generation.seeds.0",)),
    "generation at a temperature of 0": (
        "evaluation: {generation: {temperature: 0}}\n",
        ("evaluation.generation.temperature=0",),
    ),
    "generation at a temperature without end": (
        "evaluation: {generation: {temperature: .inf}}\n",
        ("evaluation.generation.temperature=inf",),
    ),
    "checkpoints of none": ("checkpoints: {keep_last: 0}\n", ("checkpoints.keep_last=0",)),
    "an export of the worst": ("checkpoints: {export: worst}\n", ("checkpoints.export='worst'",)),
    "trackers that are a truth": ("tracking: {trackers: yes}\n", ("tracking.trackers",)),
    "a folder that is a list": ("output_dir: [a]\n", ("output_dir",)),
    "a folder that is a truth": ("output_dir: no\n", ("output_dir=False",)),
    "a Hub name that is a truth": ("hub: {push_to: yes}\n", ("hub.push_to=True",)),
    "a section of evaluation in text": ("evaluation: all\n", ("evaluation='all'",)),
}

# The same of a section of a file for `sra-data align`.
ALIGNING: dict[str, tuple[str | bytes, Says, int]] = {
    "prose": ("Align it well, please.\n", ("mapping",), 1),
    "a list": ("- align\n", ("mapping",), 1),
    "a bracket that is not closed": ("align: {max_spans: 3\n", ("YAML",), 1),
    "bytes": (b"\xff\xfe\x00\x01", ("YAML",), 1),
    "an object of Python's": ("align: !!python/object/apply:os.system ['touch made']\n", ("YAML", "python"), 1),
    "brackets by the thousand": ("align: " + "[" * 5000, ("YAML",), 1),
    "a section that is a list": ("align: [max_spans, 3]\n", ("align", "list"), 1),
    "a section that is text": ("align: fast\n", ("align", "str"), 1),
    "a section that there is not": ("algin: {max_spans: 3}\n", ("algin", "align"), 1),
    "an option that there is not": ("align: {max_span: 3}\n", ("max_span", "max_spans"), 1),
    "an option as on the command line": ("align: {max-spans: 3}\n", ("max-spans",), 1),
    "an option that is a number": ("align: {7: 3}\n", ("7",), 1),
    "spans in words": ("align: {max_spans: many}\n", ("--max-spans",), 2),
    "spans of a half": ("align: {max_spans: 2.5}\n", ("--max-spans",), 2),
    "spans that are a list": ("align: {max_spans: [3]}\n", ("--max-spans",), 2),
    "spans that are a mapping": ("align: {max_spans: {a: 3}}\n", ("--max-spans",), 2),
    "no spans": ("align: {max_spans: 0}\n", ("--max-spans 0",), 1),
    "a share that is no number": ("align: {dev_share: .nan}\n", ("--dev-share nan",), 1),
    "a choice that there is not": ("align: {overlong: cut}\n", ("--overlong",), 2),
    "a choice that is a truth": ("align: {boundaries: yes}\n", ("--boundaries",), 2),
    "columns that are a mapping": ("align: {columns: {prompt: q}}\n", ("--columns",), 1),
    "a data file that is a list": ("align: {data: [a.jsonl]}\n", ("--data", "a.jsonl"), 1),
    "a switch in words": ("align: {edit_distance: perhaps}\n", ("--edit-distance",), 2),
}


def _training_case(wrong: str) -> Case:
    content, says = TRAINING[wrong]
    ours = RUN.replace("--epochs 2", "").replace("--output-dir out", "")  # flags would win over the file
    line = f"{ours} --config bad.yaml{'' if says == ('data.shards',) else ' SHARDS'}"
    return Case(f"configs: to train by, {wrong}", line, ("bad.yaml", *says), written("bad.yaml", content))


def _align_case(wrong: str) -> Case:
    content, says, code = ALIGNING[wrong]
    named = ("bad.yaml", *says) if code == 1 and not says[0].startswith("--") else says
    line = f"{ALIGN} --config bad.yaml{'' if says[0] == '--data' else ' --data DATA'}"
    return Case(f"configs: to align by, {wrong}", line, named, written("bad.yaml", content), code=code)


def _pipe(place: Path, world: World) -> None:
    (place / "loop.yaml").symlink_to("loop.yaml")


def _secret(place: Path, world: World) -> None:
    written("secret.yaml", "training: {epochs: 1}\n")(place, world)
    os.chmod(place / "secret.yaml", 0)


CASES: list[Case] = [
    *map(_training_case, TRAINING),
    *map(_align_case, ALIGNING),
    *usage(
        "configs",
        {
            "a file that is not there, to train by": (f"{RUN} SHARDS --config nowhere.yaml", ("nowhere.yaml",)),
            "a folder, to train by": (f"{RUN} SHARDS --config SHARDS", ("cache-teacher",)),
            "a name too long, to train by": (f"{RUN} SHARDS --config {'n' * 300}", ("nnn",)),
            "no name, to train by": (f"{RUN} SHARDS --config ''", ("config",)),
            "a model, to train by": (f"{RUN} SHARDS --config TEACHER/model.safetensors", ("model.safetensors",)),
            "a model's description, to train by": (f"{RUN} SHARDS --config TEACHER/config.json", ("unknown key",)),
            "a file that is not there, to align by": (f"{ALIGN} --data DATA --config nowhere.yaml", ("nowhere.yaml",)),
            "a folder, to align by": (f"{ALIGN} --data DATA --config TEACHER", ("teacher",)),
            "no name, to align by": (f"{ALIGN} --data DATA --config ''", ("config",)),
            "a file that is not there, to cache by": (f"{CACHE} ALIGNED --config nowhere.yaml", ("nowhere.yaml",)),
        },
    ),
    Case("configs: a link to itself, to train by", f"{RUN} SHARDS --config loop.yaml", ("loop.yaml",), _pipe),
    Case(
        "configs: a file that may not be read, to train by",
        f"{RUN} SHARDS --config secret.yaml",
        ("secret.yaml", "Permission denied"),
        _secret,
        is_nobody=True,
    ),
    Case(
        "configs: to cache by, layers that are no numbers",
        f"{CACHE} ALIGNED --config bad.yaml",
        ("layers",),
        written("bad.yaml", "cache-teacher: {layers: [1, first]}\n"),
    ),
    Case(
        "configs: to cache by, an option of align's",
        f"{CACHE} ALIGNED --config bad.yaml",
        ("bad.yaml", "max_spans"),
        written("bad.yaml", "cache-teacher: {max_spans: 3}\n"),
    ),
]
