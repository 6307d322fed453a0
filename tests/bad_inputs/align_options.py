"""`sra-data align`: options that cannot be."""

from __future__ import annotations

from pathlib import Path

from tests.bad_inputs.case import ALIGN, Case, copied, usage, written
from tests.crash.world import World

LONG = "n" * 300  # longer than a file's name may be
DIGITS = "9" * 5000
WITH = f"{ALIGN} --data DATA"
BARE = "sra-data align --json --out out --data DATA"


def _loop(place: Path, world: World) -> None:
    (place / "loop").symlink_to("loop")


def _no_writing(place: Path, world: World) -> None:
    (place / "locked").mkdir(mode=0o555)


CASES: list[Case] = [
    *usage(
        "align's options",
        {
            "no teacher": ("sra-data align --json --student STUDENT --data DATA", ("Missing option", "--teacher")),
            "no student": ("sra-data align --json --teacher TEACHER --data DATA", ("Missing option", "--student")),
            "an option that is none": (f"{WITH} --techer x", ("has no such option", "--techer")),
            "a word too many": (f"{WITH} more", ("unexpected extra argument", "more")),
            "an option without its value": (f"{WITH} --columns", ("--columns", "requires an argument")),
            "a switch with a value": (f"{WITH} --edit-distance=yes", ("--edit-distance", "does not take a value")),
            "a share in words": (f"{WITH} --dev-share half", ("--dev-share", "valid number")),
            "spans in scientific notation": (f"{WITH} --max-spans 1e3", ("--max-spans", "valid integer")),
            "a length with a unit": (f"{WITH} --max-length 4k", ("--max-length", "valid integer")),
            "processes in words": (f"{WITH} --workers two", ("--workers", "valid integer")),
            "what to do with overlong rows": (f"{WITH} --overlong cut", ("--overlong", "cut", "truncate")),
            "boundaries of letters": (f"{WITH} --boundaries letter", ("--boundaries", "letter", "token")),
            "a vocabulary by meaning": (f"{WITH} --vocabulary-match meaning", ("--vocabulary-match", "bytes")),
            "invalid rows ignored": (f"{WITH} --on-invalid ignore", ("--on-invalid", "ignore", "skip")),
            "an engine that is none": (f"{WITH} --engine slurm", ("--engine", "slurm", "local")),
        },
        code=2,
    ),
    *usage(
        "align's options",
        {
            "a teacher named twice": (f"{WITH} --teacher TEACHER", ("--teacher", "twice")),
            "a student named twice": (f"{WITH} --student STUDENT", ("--student", "twice")),
            "a teacher without a name": (f"{BARE} --teacher '' --student STUDENT", ("a model without a name",)),
            "a student of spaces": (f"{BARE} --teacher TEACHER --student '  '", ("a model without a name",)),
            "a teacher that is a file": (f"{BARE} --teacher DATA --student STUDENT", ("data.jsonl",)),
            "a teacher that is an address": (
                f"{BARE} --teacher https://user:secret@example.org/model --student STUDENT",
                ("example.org/model",),
            ),
            "a teacher above here": (f"{BARE} --teacher ../nowhere --student STUDENT", ("../nowhere",)),
            "a teacher of four words": (f"{BARE} --teacher 'my very own model' --student STUDENT", ("my very own",)),
            "a teacher with escape codes": (f"{BARE} --teacher 'a\x1b[31mb' --student STUDENT", ("x1b",)),
            "a student with a name too long": (f"{BARE} --teacher TEACHER --student {LONG}", ("nnn",)),
            "a revision of what is not there": (f"{BARE} --teacher a/b@main --student STUDENT", ("a/b", "main")),
            "a student with an empty revision": (f"{BARE} --teacher TEACHER --student a/b@", ("a/b@",)),
            "a share of one": (f"{WITH} --dev-share 1", ("--dev-share 1",)),
            "a share below none": (f"{WITH} --dev-share -0.1", ("--dev-share -0.1",)),
            "a share that is no number": (f"{WITH} --dev-share nan", ("--dev-share nan",)),
            "a share without end": (f"{WITH} --dev-share inf", ("--dev-share inf",)),
            "a length of one token": (f"{WITH} --max-length 1", ("max-length 1",)),
            "a length of none": (f"{WITH} --max-length 0", ("max-length 0",)),
            "a teacher's length of none beside one that is right": (
                f"{WITH} --max-length 64 --teacher-max-length 0",
                ("--teacher-max-length 0",),
            ),
            "a student's length below none": (f"{WITH} --student-max-length -5", ("--student-max-length -5",)),
            "no spans": (f"{WITH} --max-spans 0", ("--max-spans 0",)),
            "no processes": (f"{WITH} --workers 0", ("--workers 0",)),
            "processes below none": (f"{WITH} --workers -3", ("--workers -3",)),
            "units without a colon": (f"{WITH} --units 3", ("--units 3", "a:b")),
            "units in letters": (f"{WITH} --units a:b", ("--units a:b",)),
            "units that end before they begin": (f"{WITH} --units 5:2", ("--units 5:2",)),
            "units of thousands of digits": (f"{WITH} --units 0:{DIGITS}", ("--units",)),
            "units in raised digits": (f"{WITH} --units ²:³", ("--units",)),
            "columns without a sign": (f"{WITH} --columns prompt", ("--columns prompt",)),
            "a role that is none": (f"{WITH} --columns question_text=a", ("question_text", "no such role")),
            "a role named twice": (f"{WITH} --columns response=a,answer=b", ("named twice",)),
            "a column that is not there": (f"{WITH} --columns prompt=nowhere", ("nowhere", "prompt")),
            "a folder without a name": (
                "sra-data align --json --workers 1 --teacher TEACHER --student STUDENT --data DATA --out ''",
                ("--out",),
            ),
            "a folder with a name too long": (f"{WITH} --out {LONG}", ("nnn",)),
            "a folder in a file": (f"{WITH} --out DATA/shards", ("data.jsonl", "--out")),
            "a file as the folder": (f"{WITH} --out DATA", ("data.jsonl", "--out")),
            "a folder where there are none": (f"{WITH} --out /proc/shards", ("/proc",)),
            "development data that are not there": (f"{WITH} --dev-data none.jsonl", ("none.jsonl",)),
            "development data that are the others": (f"{WITH} --dev-data DATA", ("example-", "id")),
        },
    ),
    Case("align's options: a folder that is a loop", f"{WITH} --out loop", ("loop",), _loop),
    Case(
        "align's options: a folder that may not be written",
        f"{WITH} --out locked/shards",
        ("locked", "may not be written"),
        _no_writing,
        is_nobody=True,
    ),
    Case(
        "align's options: shards of another format",
        f"{WITH} --out old",
        ("old", "format"),
        written("old/manifest.json", '{"format_version": 1}'),
    ),
    Case(
        "align's options: shards of another corpus",
        f"{ALIGN} --data other.jsonl --out old",
        ("old", "other inputs"),
        lambda place, world: (
            copied("ALIGNED", "old", lambda folder: None)(place, world),
            written("other.jsonl", '{"prompt": "p", "response": "another"}\n')(place, world),
        ),
    ),
    Case(
        "align's options: shards of another development share",
        f"{WITH} --dev-share 0.6 --out old",
        ("old", "other inputs"),
        copied("ALIGNED", "old", lambda folder: None),
    ),
    Case(
        "align's options: shards with a manifest that is none",
        f"{WITH} --dev-share 0.2 --out old",
        ("old", "manifest.json"),
        copied("ALIGNED", "old", lambda folder: (folder / "manifest.json").write_text("[]")),
    ),
    Case(
        "align's options: shards with a plan that was changed",
        f"{WITH} --dev-share 0.2 --out old",
        ("old", "plan.json"),
        copied("ALIGNED", "old", lambda folder: (folder / "corpus" / "plan.json").write_text("{}")),
    ),
    Case(
        "align's options: a file in place of the corpus's folder",
        f"{WITH} --out old",
        ("old", "corpus"),
        written("old/corpus", "not a folder"),
    ),
]
