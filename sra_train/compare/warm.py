"""Imported once by the process that all jobs are forked from: what each of them would import by itself.

Nothing here may start a thread or touch a device: neither survives a fork.
"""

import accelerate
import transformers.generation
import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto

import sra_train.compare.work

__all__ = ["accelerate", "sra_train", "transformers"]
