"""`sra-train run`: flags that cannot be."""

from __future__ import annotations

from pathlib import Path

from tests.bad_inputs.case import RUN, Case, usage, written
from tests.crash.world import World

HERE = f"{RUN} SHARDS"
LONG = "n" * 300


def _read_only(place: Path, world: World) -> None:
    (place / "locked").mkdir(mode=0o555)


CASES: list[Case] = [
    *usage(
        "run's options",
        {
            "half an epoch": (f"{HERE} --epochs 1.5", ("--epochs", "valid integer")),
            "a batch in words": (f"{HERE} --batch-size large", ("--batch-size", "valid integer")),
            "a rate in words": (f"{HERE} --learning-rate slow", ("--learning-rate", "valid number")),
            "eight bits": (f"{HERE} --precision fp8", ("--precision", "fp8", "bf16")),
            "a seed in words": (f"{HERE} --seed lucky", ("--seed", "valid integer")),
            "an option that is none": (f"{HERE} --eopchs 3", ("has no such option", "--eopchs")),
            "two folders of shards": (f"{HERE} more", ("unexpected extra argument", "more")),
            "adapters of a rank": (f"{HERE} --lora=8", ("--lora", "does not take a value")),
            "a key without a value": (f"{HERE} --set", ("--set", "requires an argument")),
        },
        code=2,
    ),
    *usage(
        "run's options",
        {
            "no shards here": (RUN, ("shards", "sra-data align")),
            "shards that are not there": (f"{RUN} nowhere", ("nowhere", "sra-data align")),
            "shards with a name too long": (f"{RUN} {LONG}", ("nnn",)),
            "a file as the shards": (f"{RUN} DATA", ("data.jsonl",)),
            "shards without a teacher": (f"{RUN} ALIGNED", ("sra-data cache-teacher",)),
            "no epoch": (f"{HERE} --epochs 0", ("epochs=0",)),
            "epochs below none": (f"{HERE} --epochs -1", ("epochs=-1",)),
            "no step": (f"{HERE} --max-steps 0", ("max_steps=0",)),
            "no example in a batch": (f"{HERE} --batch-size 0", ("batch_size=0",)),
            "more examples in a batch than there are": (f"{HERE} --batch-size 4096", ("batch_size=4096",)),
            "micro-batches of none": (f"{HERE} --micro-batch-size 0", ("micro_batch_size=0",)),
            "micro-batches of tokens below none": (f"{HERE} --micro-batch-tokens -7", ("micro_batch_tokens=-7",)),
            "a rate of 0": (f"{HERE} --learning-rate 0", ("learning_rate=0",)),
            "a rate below 0": (f"{HERE} --learning-rate -1e-4", ("learning_rate=-0.0001",)),
            "a rate that is no number": (f"{HERE} --learning-rate nan", ("learning_rate=nan",)),
            "a rate without end": (f"{HERE} --learning-rate inf", ("learning_rate=inf",)),
            "a seed below none": (f"{HERE} --seed -1", ("seed=-1",)),
            "a seed beyond every generator": (f"{HERE} --seed {'9' * 40}", ("seed",)),
            "a method that there is not": (f"{HERE} --method sar", ("method=sar", "sra")),
            "a preset that there is not": (f"{HERE} --preset best", ("--preset best", "paper")),
            "a preset of another method": (f"{HERE} --preset paper --method uld", ("--preset paper", "uld")),
            "a teacher that there is not": (f"{HERE} --teacher nobody", ("nobody",)),
            "a teacher of half a weight": (f"{HERE} --teacher teacher:0.5", ("0.5", "sum")),
            "a teacher of a weight below 0": (f"{HERE} --teacher teacher:-1", ("-1",)),
            "a teacher of no number": (f"{HERE} --teacher teacher:nan", ("nan",)),
            "a teacher without a name": (f"{HERE} --teacher ''", ("teacher",)),
            "a teacher named twice": (f"{HERE} --teacher teacher --teacher teacher", ("twice",)),
            "a teacher by two names": (f"{HERE} --teacher teacher --teacher teacher-", ("twice",)),
            "a student that there is not": (f"{HERE} --student ./nowhere", ("./nowhere",)),
            "a student out of reach": (f"{HERE} --student someone/nothing", ("someone/nothing",)),
            "a student that was never aligned": (f"{HERE} --student DATA", ("data.jsonl",)),
            "the teacher as the student": (f"{HERE} --student TEACHER", ("teacher", "aligned")),
            "a student with a name too long": (f"{HERE} --student {LONG}", ("nnn",)),
            "a file as the folder": (f"{HERE} --output-dir DATA", ("data.jsonl", "--output-dir")),
            "a folder in a file": (f"{HERE} --output-dir DATA/run", ("data.jsonl", "--output-dir")),
            "the shards as the folder": (f"{HERE} --output-dir SHARDS", ("not the folder of a run", "--output-dir")),
            "a folder with a name too long": (f"{HERE} --output-dir {LONG}", ("--output-dir",)),
            "a folder where there are none": (f"{HERE} --output-dir /proc/run", ("/proc/run", "--output-dir")),
            "a key without a sign": (f"{HERE} --set training.epochs", ("--set training.epochs", "=")),
            "a key without a name": (f"{HERE} --set =3", ("--set",)),
            "a section that there is not": (f"{HERE} --set trainig.epochs=3", ("trainig", "did you mean training")),
            "a key that there is not": (f"{HERE} --set training.epoch=3", ("training.epoch", "did you mean epochs")),
            "a value as a section": (f"{HERE} --set training.seed.first=3", ("training.seed",)),
            "a section as a value": (f"{HERE} --set training=3", ("training=3",)),
            "a key of dots": (f"{HERE} --set ...=3", ("unknown key",)),
            "a key that ends in a dot": (f"{HERE} --set training.=3", ("training.", "unknown key")),
            "a list where a number is": (f"{HERE} --set 'training.warmup=[1, 2]'", ("training.warmup",)),
            "a date where a number is": (f"{HERE} --set training.epochs=2024-01-01", ("training.epochs",)),
            "an unclosed list": (f"{HERE} --set 'student.freeze=[a, b'", ("student.freeze",)),
            "an alias of nothing": (f"{HERE} --set training.epochs=*none", ("training.epochs",)),
            "an object of Python's": (
                f"{HERE} --set 'training.epochs=!!python/object/apply:os.getpid []'",
                ("training.epochs",),
            ),
            "a number of thousands of digits": (f"{HERE} --set training.epochs={'9' * 5000}", ("training.epochs",)),
            "a value of thousands of brackets": (f"{HERE} --set 'student.freeze={'[' * 3000}'", ("student.freeze",)),
            "an option of another method": (f"{HERE} --method sft --set method.alpha=0.5", ("method.alpha",)),
            "a layer that the teacher's pages lack": (
                f"{HERE} --set 'method.layer_pairs=[\"1:1:1.0\"]'",
                ("hidden.1", "cache-teacher"),
            ),
            "a layer that the student lacks": (f"{HERE} --set 'method.layer_pairs=[\"9:last:1\"]'", ("layer 9",)),
            "layers that are no pair": (f"{HERE} --set 'method.layer_pairs=[\"first\"]'", ("layer_pairs", "first")),
            "nothing to train": (f"{HERE} --set 'student.freeze=[\"\"]'", ("student.freeze",)),
            "nothing of that name to freeze": (f"{HERE} --set 'student.freeze=[lm_haed]'", ("lm_haed",)),
            "adapters on no layer": (
                f"{HERE} --lora --set 'student.lora.target_modules=[nothing]'",
                ("student.lora.target_modules", "nothing"),
            ),
            "adapters on the norms": (
                f"{HERE} --lora --set 'student.lora.target_modules=[ln_1]'",
                ("student.lora.target_modules",),
            ),
            "an attention that there is not": (f"{HERE} --set student.attention=nonsense", ("nonsense",)),
            "a side that there is not": (f"{HERE} --set student.side=nobody", ("nobody", "student.side")),
            "an alignment that there is not": (f"{HERE} --set student.alignment=none-such", ("none-such",)),
            "a revision of a folder's": (f"{HERE} --student ./nowhere --set student.revision=v9", ("./nowhere",)),
            "sets that are not there": (
                f"{HERE} --set 'evaluation.generation.sets={{held: nowhere.jsonl}}'",
                ("nowhere.jsonl",),
            ),
            "a tracker that is not installed": (f"{HERE} --set 'tracking.trackers=[wandb]'", ("wandb", "install")),
            "a tracker that there is not": (
                f"{HERE} --set 'tracking.trackers=[mlflow]'",
                ("tracking.trackers", "mlflow"),
            ),
            "a measure that nothing gives": (f"{HERE} --set evaluation.metric=rouge_l", ("evaluation.metric",)),
            "a temperature that the pages lack": (
                f"{HERE} --set method.temperature=3 --set method.kd_source=top_k",
                ("cache-teacher",),
            ),
        },
    ),
    Case(
        "run's options: a folder that holds a thesis",
        f"{RUN} SHARDS --output-dir thesis",
        ("thesis", "not the folder of a run"),
        written("thesis/chapter-1.txt", "years of work"),
    ),
    Case(
        "run's options: a folder that may not be written",
        f"{RUN} SHARDS --output-dir locked/run",
        ("locked/run", "--output-dir"),
        _read_only,
        is_nobody=True,
    ),
    Case(
        "run's options: a folder that is a loop",
        f"{RUN} SHARDS --output-dir loop",
        ("loop",),
        lambda place, world: (place / "loop").symlink_to("loop"),
    ),
    Case(
        "run's options: a measure that is misspelt",
        f"{RUN} SHARDS --set evaluation.metric=los",
        ("evaluation.metric=los", "loss"),
    ),
    Case(
        "run's options: a Hub name that can be none",
        f"{RUN} SHARDS --push-to-hub 'my model!'",
        ("push",),
    ),
]
