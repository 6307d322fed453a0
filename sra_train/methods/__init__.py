"""Training objectives, one file each; importing this package registers them all."""

from sra_train.methods.base import METHODS, method_type
from sra_train.methods.boundary import Boundary
from sra_train.methods.dskd import DSKD
from sra_train.methods.dskdv2 import DSKDv2
from sra_train.methods.mined import MinED
from sra_train.methods.sft import SFT
from sra_train.methods.sra import SRA
from sra_train.methods.strict import Strict

__all__ = ["DSKD", "METHODS", "SFT", "SRA", "Boundary", "DSKDv2", "MinED", "Strict", "method_type"]
