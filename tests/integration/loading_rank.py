"""One process of a sharded loading for the tests: a JSON list of students in, a JSON list of what came of each out.

Each student is `{"name": ..., "options": {...}, "with": whether the numbers are compared}`. What is told of it: whether
the others had to load it whole, whether every parameter gathered from all shards is the one `load_student` gives, how
many bytes this process held at most beyond what it held before, and the line it was refused with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sra_data.errors import SRAError
from sra_data.models.output_head import OutputHead
from sra_train.config import StudentConfig
from sra_train.contract import MethodSetting
from sra_train.methods.sft import SFT, SFTOptions
from sra_train.sharding import load_in_parts, shard
from sra_train.student import StudentModel, load_student, model_shape

CPU = torch.device("cpu")


def status_bytes(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def load(name: str, options: StudentConfig) -> tuple[StudentModel, bool]:
    """The student sharded over all processes, as a run does it, and whether it came in parts."""
    model, parts = load_in_parts(name, options, seed=3, device=CPU)
    OutputHead.from_model(model).weight.sum().item()  # a method may begin from it: it has numbers everywhere
    method = SFT(SFTOptions(), MethodSetting(model_shape(model)))
    student = StudentModel(model, method)
    shard(student, CPU, parts)
    return student, parts is not None


def whole(tensor: Any) -> torch.Tensor:
    """All of a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def are_equal(student: StudentModel, expected: nn.Module) -> bool:
    """Whether every tensor is the one that loading it whole gives, and the same ones are one."""
    found = dict(student.model.named_parameters())
    wanted = dict(expected.named_parameters())
    if list(found) != list(wanted) or any(found[name].requires_grad != wanted[name].requires_grad for name in wanted):
        return False
    equal = [torch.equal(whole(found[name]), wanted[name]) for name in wanted]  # every process gathers each of them
    buffers, others = dict(student.model.named_buffers()), dict(expected.named_buffers())
    return (
        all(equal)
        and list(buffers) == list(others)
        and all(torch.equal(buffers[name], others[name]) for name in others)
    )


def tell(asked: dict[str, Any]) -> dict[str, Any]:
    """What came of one student."""
    options = StudentConfig.model_validate(asked.get("options", {}))
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    try:
        student, is_in_parts = load(asked["name"], options)
    except SRAError as error:
        return {"refused": str(error)}
    peak = status_bytes("VmHWM") - before
    said: dict[str, Any] = {"in_parts": is_in_parts, "peak": peak}
    if asked.get("compared", True):
        said["equal"] = are_equal(student, load_student(asked["name"], options, seed=3))
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    told = [tell(asked) for asked in json.loads(sys.argv[1])]
    print(json.dumps(told))
    torch.distributed.destroy_process_group()
