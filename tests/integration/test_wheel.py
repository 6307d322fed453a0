"""What people install: the wheel by itself, in an environment that does not know the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.integration.command_lines import write_examples, write_pair

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs in an environment with the wheel; the dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    # a path in a .pth file: what is installed there is seen, an editable installation of the repository is not
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return python.parent


def test_the_wheel_alone_does_the_three_commands(programs: Path, tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    data = write_examples(tmp_path / "train.jsonl", 8)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def run(*words: object) -> str:
        done = subprocess.run(
            [str(programs / str(words[0])), *map(str, words[1:])], cwd=tmp_path, env=own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    asked = "import sra_data, sra_train; print(sra_data.__file__, sra_train.__file__)"
    places = subprocess.run(
        [programs / "python", "-c", asked], cwd=tmp_path, env=own, capture_output=True, text=True, check=True
    )
    assert str(REPOSITORY) not in places.stdout
    run("sra-data", "align", "--teacher", teacher, "--student", student, "--data", data)
    run("sra-data", "cache-teacher")
    run("sra-data", "report", "shards")
    run("sra-train", "run", "shards/", "--max-steps", "1", "--batch-size", "2", "--output-dir", "run")
    run("sra-train", "compare", "--list-methods")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
