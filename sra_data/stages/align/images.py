"""Where the ids of two tokenizers go among each other's: made once for a pair, beside the shared vocabulary."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.images import SideImages, StoredImages
from sra_data.spans.pushforward import NO_IMAGE, byte_prefix_map, first_piece_map
from sra_data.spans.vocabulary import Vocabulary


@lru_cache(maxsize=8)
def images_of(left: SideTokenizer, right: SideTokenizer) -> StoredImages:
    """Both directions, for tokenizers that may be aligned again on another corpus."""
    return StoredImages(left=_images(left, right), right=_images(right, left))


def _images(source: SideTokenizer, target: SideTokenizer) -> SideImages:
    vocabularies = {"source": source.vocabulary, "target": target.vocabulary}
    return SideImages(
        byte_prefix=byte_prefix_map(**vocabularies),
        first_piece=first_piece_map(**vocabularies, cut=target.cut),
        first_byte=first_bytes(source.vocabulary),
    )


def first_bytes(vocabulary: Vocabulary) -> NDArray[np.int32]:
    """[ids] int32, the first byte of each id, `NO_IMAGE` for those that stand for none."""
    return np.array([piece[0] if piece else NO_IMAGE for piece in vocabulary.byte_strings], dtype=np.int32)
