"""A law of everything that is written and printed: no token, no key, nothing of the environment is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_data.terminal import printable
from tests.integration.command_lines import Answer, sra_data, sra_train, write_examples, write_pair

MARK = "s3cr3t-9d41"
SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "GITHUB_TOKEN",
    "ANYTHING_AT_ALL",
)


def done(answer: Answer) -> Answer:
    """A command that did what it was asked, and did not say a secret."""
    assert answer.exit_code == 0, answer.error
    assert MARK not in answer.output + answer.error
    return answer


def test_no_secret_of_the_environment_is_written_or_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(SECRETS):
        monkeypatch.setenv(name, f"{MARK}-{number}")
    monkeypatch.chdir(tmp_path)
    data = write_examples(tmp_path / "data.jsonl", 12)
    teacher, student = write_pair(tmp_path)
    shards, run = tmp_path / "shards", tmp_path / "run"
    done(sra_data("align", "--data", data, "--teacher", teacher, "--student", student, "--out", shards))
    done(sra_data("cache-teacher", shards, "--teacher", teacher, "--device", "cpu"))
    settings = [f"--set={one}" for one in ("training.max_steps=2", "training.batch_size=4", "tracking.plots=true")]
    done(sra_train("run", shards, "--output-dir", run, *settings))
    done(sra_data("report", shards, "--out", tmp_path / "report.html"))
    done(sra_train("report", run, "--out", tmp_path / "run.html", "--samples", 1, "--device", "cpu"))
    done(sra_data("inspect", "0", "--shards", shards, "--html", tmp_path / "example.html"))
    for command in ("list", "verify"):
        done(sra_data(command, shards))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "run.json", "config.yaml", "README.md", "report.html", "run.html"} <= {
        path.name for path in written
    }
    assert [path.name for path in written if MARK.encode() in path.read_bytes()] == []


def test_what_is_refused_does_not_say_a_secret_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", MARK)
    for answer in (
        sra_data("cache-teacher", tmp_path, "--teacher", "no/such-model"),
        sra_data("align", "--data", tmp_path / "none.jsonl", "--teacher", "no/such", "--student", "no/such"),
        sra_train("run", tmp_path, "--student", "no/such-model"),
    ):
        assert answer.exit_code == 1
        assert MARK not in answer.output + answer.error


@pytest.mark.parametrize("scheme", ["https", "hf", "s3"])
def test_an_address_with_a_password_is_refused_without_saying_it(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a source nor a model is an address, so that none with a password is ever written into a manifest."""
    monkeypatch.chdir(tmp_path)
    teacher, student = write_pair(tmp_path)
    data = write_examples(tmp_path / "data.jsonl", 3)
    address = f"{scheme}://user:{MARK}@host/org/name"
    for asked in ((address, teacher), (data, address)):
        answer = sra_data(
            "align", "--data", asked[0], "--teacher", asked[1], "--student", student, "--out", tmp_path / "shards"
        )
        assert answer.exit_code == 1
        assert MARK not in printable(answer.output + answer.error)  # as `terminal.run` prints it
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]
