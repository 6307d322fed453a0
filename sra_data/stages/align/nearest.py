"""The ids of two tokenizers by edit distance: made once for a pair, and only where it was asked for."""

from __future__ import annotations

from functools import lru_cache

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.nearest import SideNearest, StoredNearest
from sra_data.spans.edit_distance import nearest_ids
from sra_data.spans.vocabulary import Vocabulary


@lru_cache(maxsize=8)
def nearest_of(left: SideTokenizer, right: SideTokenizer) -> StoredNearest:
    """Both directions, for tokenizers that may be aligned again on another corpus."""
    return StoredNearest(left=_side(left.vocabulary, right.vocabulary), right=_side(right.vocabulary, left.vocabulary))


def _side(source: Vocabulary, target: Vocabulary) -> SideNearest:
    return SideNearest(nearest_ids(source=source, target=target), [piece or b"" for piece in source.byte_strings])
