"""Laws that need a GPU (`make gpu` on a machine with one); elsewhere they skip, with that reason."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, before the first product of the process

import pytest
import torch

from tests.integration.conftest import made, still

__all__ = ["made", "still"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # what drivers and compilers warn of is no law
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a GPU: `make gpu` on a machine with one"))
