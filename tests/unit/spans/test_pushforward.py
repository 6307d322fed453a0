"""Where ids go by the bytes they begin with: never to bytes that are not there, and as far as bytes go."""

from hypothesis import given
from hypothesis import strategies as st

from sra_data.spans.pushforward import NO_IMAGE, byte_prefix_map, first_piece_map, lowest_ids
from sra_data.spans.vocabulary import Vocabulary


def vocabulary(*pieces: bytes | None) -> Vocabulary:
    return Vocabulary([None if piece is None else piece.decode("latin-1") for piece in pieces], list(pieces))


PIECES = st.lists(st.none() | st.binary(max_size=5), min_size=1, max_size=12)


@given(source=PIECES, target=PIECES)
def test_an_image_is_the_longest_prefix_there_is(source, target):
    images = byte_prefix_map(source=vocabulary(*source), target=vocabulary(*target))
    known = lowest_ids(vocabulary(*target))
    for piece, image in zip(source, images.tolist(), strict=True):
        prefixes = [other for other in known if piece and piece.startswith(other)]
        assert image == (known[max(prefixes, key=len)] if prefixes else NO_IMAGE)


@given(source=PIECES)
def test_a_tokenizer_goes_to_itself(source):
    own = vocabulary(*source)
    known = lowest_ids(own)
    expected = [known[piece] if piece else NO_IMAGE for piece in source]
    assert byte_prefix_map(source=own, target=own).tolist() == expected


def test_with_every_byte_every_string_has_an_image():
    complete = vocabulary(*(bytes([byte]) for byte in range(256)), b"the", b" t")
    source = vocabulary(b"there", b" the", "é".encode(), b"\xff", None, b"")
    assert byte_prefix_map(source=source, target=complete).tolist() == [256, 257, 0xC3, 0xFF, NO_IMAGE, NO_IMAGE]


def test_the_first_piece_is_of_the_targets_own_cut():
    target = vocabulary(b"t", b"th", b"e", b"h", b"the")
    cuts = {"the": [1, 2], "he": [3, 2]}  # a merge order that never makes "the"
    source = vocabulary(b"the", b"he", b"\xc3", None)
    images = first_piece_map(source=source, target=target, cut=lambda texts: [cuts[text] for text in texts])
    assert images.tolist() == [1, 3, NO_IMAGE, NO_IMAGE]
    assert byte_prefix_map(source=source, target=target).tolist() == [4, 3, NO_IMAGE, NO_IMAGE]


def test_a_cut_that_begins_with_other_bytes_gives_way_to_the_longest_prefix():
    target = vocabulary(b" the", b"th", b"t")
    source = vocabulary(b"the", b" the", b"x")
    # SentencePiece's way: a space before the text, or an unknown token, or nothing at all.
    images = first_piece_map(source=source, target=target, cut=lambda texts: [[0], [0], []])
    assert images.tolist() == [1, 0, NO_IMAGE]
