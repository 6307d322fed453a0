"""Strict: next-token distributions only where the next token is the same piece of text on both sides.

After arXiv 2610.08448 (there on-policy, with reverse KL): over the shared vocabulary alone, and only at shared
boundaries after which the next span is one token of each side, the first token of a response and its end included.
Where the next pieces differ nothing is compared, so nothing unlike is: a mapping is not needed, a residual neither.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from sra_train.contract import Aligned
from sra_train.methods.base import register
from sra_train.methods.boundary import Boundary, BoundaryOptions
from sra_train.methods.terms.kd import KDVocabulary


class StrictOptions(BoundaryOptions):
    """Distributions over the shared vocabulary, where the next token is one and the same text on both sides."""

    kd_vocabulary: KDVocabulary = Field("renormalised", description="what is compared with kd_source=head")


@register("strict")
class Strict(Boundary):
    """`Boundary` at the rows whose next token is one on both sides."""

    options_type: ClassVar[type[BaseModel]] = StrictOptions
    aligned: ClassVar[Aligned] = "strict"
