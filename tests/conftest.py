"""What every test shares: no network, few threads, and the way to the shared material (or a reason to skip)."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
from hypothesis import HealthCheck, settings

# How large or slow to draw an example is says something of the strategy and the machine, nothing of the law under test.
settings.register_profile("house", suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
settings.load_profile("house")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of shared data and tokenizers beside the project; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "tokenizers").is_dir():
        pytest.skip(f"needs the shared tokenizers and data in {folder.name}/ beside the project, which is absent")
    return folder
