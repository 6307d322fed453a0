"""Laws of malformed metadata: whatever a file holds, under whatever seal, is read as it was meant or is one line.

Values are put in the place of others in each kind of JSON file, which then seals itself anew, so that only the types,
bounds and agreements of metadata.py stand in the way; and bytes that are no JSON at all.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.durable import write_sealed
from sra_data.shards.images import SideImages, StoredImages, load_images, save_images
from sra_data.shards.manifest import Manifest, facts_digest, missing_units
from sra_data.shards.nearest import SideNearest, StoredNearest, load_nearest, save_nearest
from sra_data.shards.receipts import read_metadata, write_file_receipt
from sra_data.shards.store import Plan, ShardSet, load_embeddings, load_head, load_vocabulary
from sra_data.stages.list import list_shards
from sra_data.stages.repair import repair
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.unit.shards.builders import ALIGNMENT, LEFT, RIGHT, TEACHER, int32, make_shards

MOST = 20  # examples of each law
NUMBERS = (None, True, -1, 0, 1, 3.0, 1e308, float("nan"), float("inf"), 2**31, 2**53 + 1, 10**40)
TEXTS = (
    "",
    "x",
    "..",
    "../../etc",
    "a/b",
    "\x00",
    "\ud800",
    "9" * 5000,
    "corpus",
    "sides/../x",
    "0" * 64,
    "null",
    "1.0",
)
OTHERS = ([], [[]], [None], {}, {"": {}}, {"a": None}, [[0, 0, 4, None]], [0, 10**12], {"root": "0" * 64})
ODD = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS]).map(copy.deepcopy)
BYTES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"null", b"[]", b"{}", b""]),
    st.sampled_from([b'{"format_version": 2}', b'{"format_version": 2, "seal": null}']),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows in two parts, with every kind of file beside them."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    make_shards(folder, count=6, rows_per_part=3)
    side = SideImages(int32([0, 1]), int32([1, -1]), int32([3, 4]))
    save_images(folder / ALIGNMENT, StoredImages(side, side))
    pieces = SideNearest(int32([1, -1]), [b"ab", b"c"])
    save_nearest(folder / ALIGNMENT, StoredNearest(pieces, pieces))
    return folder


@pytest.fixture
def shards(small: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(small, tmp_path / "shards"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changes(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with one to three places changed, left out, or added to."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(changed))
        if not known:
            break
        *path, last = draw(st.sampled_from(known))
        place = changed
        for key in path:
            place = place[key]
        how = draw(st.sampled_from(["set", "set", "set", "drop", "add"]))
        if how == "drop":
            del place[last]
        elif how == "add" and isinstance(place, dict):
            place[draw(st.sampled_from(["x", "", "../x", "seal", "root"]))] = draw(ODD)
        else:
            place[last] = draw(ODD)
    return changed


def only_one_line(step: Callable[..., Any], *arguments: Any) -> Any:
    """What a step returns; what it refuses is a `ShardError` of one line."""
    said = ""
    try:
        return step(*arguments)
    except ShardError as error:
        said = str(error)
    assert "\n" not in said
    said.encode()
    return None


def read_everything(shards: Path) -> None:
    """What a run opens and reads."""
    with ShardSet.open(shards) as opened:
        for choose in (opened.choose_teacher, opened.choose_student, opened.choose_teacher_side):
            only_one_line(choose)
        for open_one in (
            lambda: opened.corpus,
            lambda: opened.side(LEFT),
            lambda: opened.side(RIGHT),
            lambda: opened.pair(student=LEFT, teacher=RIGHT),
            lambda: opened.teacher("big-00000000"),
        ):
            reader = only_one_line(open_one)
            if reader is not None:
                only_one_line(reader.read, [0, 5, 2])
        only_one_line(opened.head, "big-00000000")
        only_one_line(opened.embeddings, "big-00000000")


def use_in_every_way(shards: Path) -> None:
    """Reading, verifying and listing."""
    only_one_line(read_everything, shards)
    summary = only_one_line(verify, VerifyOptions(shards), Reporter())
    assert summary is None or not any("\n" in problem for problem in summary.problems)
    listing = only_one_line(list_shards, shards)
    assert listing is None or listing.lines()


def write_any(path: Path, value: dict[str, Any], *, is_flat: bool) -> None:
    """A JSON file under a seal of its own, if it can be written at all."""
    with suppress(ValueError):
        write_sealed(path, value, is_flat=is_flat)


def reseal(shards: Path, section: str) -> None:
    """Bind a folder's metadata as it is now into the manifest, as a forger would."""
    content = Manifest.load(shards).content
    facts = content[section.partition("/")[0]][section.partition("/")[2]]
    with suppress(ShardError):
        facts["seal"] = {**read_metadata(shards / section).seal, "facts": ""}
        facts["seal"]["facts"] = facts_digest(facts)
    write_sealed(shards / "manifest.json", content)


def test_a_malformed_manifest_is_one_line(shards: Path) -> None:
    path = shards / "manifest.json"
    before = path.read_bytes()

    @settings(max_examples=2 * MOST, deadline=None)
    @given(changes(json.loads(before)))
    def changed(content: dict[str, Any]) -> None:
        for group in ("sides", "alignments", "teachers"):
            for facts in content[group].values() if isinstance(content.get(group), dict) else ():
                with suppress(TypeError, KeyError, AttributeError):
                    facts["seal"]["facts"] = facts_digest(facts)
        write_any(path, content, is_flat=False)
        use_in_every_way(shards)
        path.write_bytes(before)

    changed()


@pytest.mark.parametrize("name", ["plan.json", "part-00001.receipt.json", "head.receipt.json"])
def test_a_malformed_plan_or_receipt_is_one_line(name: str, shards: Path) -> None:
    path, manifest = shards / TEACHER / name, shards / "manifest.json"
    before, known = path.read_bytes(), manifest.read_bytes()

    @settings(max_examples=MOST, deadline=None)
    @given(changes(json.loads(before)))
    def changed(content: dict[str, Any]) -> None:
        write_any(path, content, is_flat=True)
        plan = only_one_line(Plan.load, shards / TEACHER)
        if plan is not None:
            only_one_line(missing_units, shards / TEACHER, plan)
        reseal(shards, TEACHER)
        use_in_every_way(shards)
        path.write_bytes(before)
        manifest.write_bytes(known)

    changed()


FILES = {
    f"{TEACHER}/head.safetensors": load_head,
    f"{TEACHER}/embeddings.safetensors": load_embeddings,
    f"{ALIGNMENT}/vocabulary.safetensors": load_vocabulary,
    f"{ALIGNMENT}/images.safetensors": load_images,
    f"{ALIGNMENT}/nearest.safetensors": load_nearest,
}


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_header_of_safetensors_is_one_line(name: str, shards: Path) -> None:
    path = shards / name
    before = path.read_bytes()
    size = 8 + int.from_bytes(before[:8], "little")

    @settings(max_examples=MOST, deadline=None)
    @given(changes(json.loads(before[8:size])), st.sampled_from([0, 0, 0, 1, -1, 1 << 62]))
    def changed(header: dict[str, Any], off: int) -> None:
        text = json.dumps(header).encode()
        path.write_bytes((len(text) + off).to_bytes(8, "little", signed=True) + text + before[size:])
        with suppress(ShardError):
            write_file_receipt(path.parent, path.name)
        only_one_line(FILES[name], path.parent)

    changed()


@pytest.mark.parametrize("name", FILES)
def test_other_numbers_in_a_file_beside_the_parts_are_one_line(name: str, shards: Path) -> None:
    """Ids out of bounds, tensors of another dtype or shape: whole by every hash."""
    import numpy as np

    from sra_data.shards.tensor_file import load_tensors, save_tensors

    path = shards / name
    tensors, metadata = load_tensors(path.parent, path.name, {})

    @settings(max_examples=MOST, deadline=None)
    @given(st.sampled_from(sorted(tensors)), st.integers(0, 5), st.sampled_from([-2, 10**9, 2**31 - 1]))
    def changed(key: str, how: int, number: int) -> None:
        array = np.full((2, 3), number, np.int32)
        others = [array, array[0], array.astype(np.float32), array.astype(np.int64)[0], array[:0, 0], None]
        other = others[how]
        said = {name: tensor for name, tensor in tensors.items() if name != key or other is not None}
        save_tensors(path.parent, path.name, said | ({} if other is None else {key: other}), metadata)
        only_one_line(FILES[name], path.parent)

    changed()


@pytest.mark.parametrize("name", ["manifest.json", f"{TEACHER}/plan.json", f"{TEACHER}/part-00000.receipt.json"])
def test_bytes_that_are_no_json_are_one_line(name: str, shards: Path) -> None:
    path = shards / name
    before = path.read_bytes()

    @settings(max_examples=MOST, deadline=None)
    @given(BYTES)
    def changed(content: bytes) -> None:
        path.write_bytes(content)
        use_in_every_way(shards)
        path.write_bytes(before)

    changed()


def test_an_index_that_is_something_else_is_one_line(shards: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sra_data.shards.durable import sha256_of
    from sra_data.shards.store import record

    path = shards / TEACHER / "index.parquet"
    table = pq.read_table(path)
    wrong = {
        "a column less": table.drop_columns(["row_hash"]),
        "rows less": table.slice(1),
        "rows more": pa.concat_tables([table, table]),
        "other numbers": table.set_column(1, "num_positions", pa.array([-1] * 6, pa.int32())),
        "text": table.set_column(1, "num_positions", pa.array(["1"] * 6)),
        "nothing": table.set_column(1, "num_positions", pa.array([None] * 6, pa.int32())),
        "other groups": table.set_column(2, "part", pa.array([1] * 6, pa.int32())),
    }
    for other in wrong.values():
        pq.write_table(other, path)
        record(shards, TEACHER, index_sha256=sha256_of(path))
        with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"index.parquet: damaged"):
            opened.teacher("big-00000000").read([0])
        use_in_every_way(shards)


def test_repair_of_malformed_metadata_is_one_line_too(shards: Path, small: Path) -> None:
    files = ("plan.json", "part-00000.receipt.json", "head.receipt.json")
    names = ["manifest.json", *(f"{TEACHER}/{name}" for name in files)]

    @settings(max_examples=MOST // 2, deadline=None)
    @given(st.sampled_from(names), BYTES)
    def changed(name: str, content: bytes) -> None:
        (shards / name).write_bytes(content)
        only_one_line(repair, shards, Reporter())
        shutil.rmtree(shards)
        shutil.copytree(small, shards)

    changed()
