"""Shards in a real S3-compatible server that fails: time-outs, 503, puts that happened but answered an error, 409."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from sra_data.errors import ShardError
from sra_data.shards.kinds import corpus_schema
from sra_data.shards.manifest import Manifest, Receipt, record
from sra_data.shards.store import ShardSet, claimed, folder_of, not_promised, seal, write_part
from sra_data.shards.stores import mirror as mirrors
from sra_data.shards.stores import remote
from tests.stores import S3, Machines, s3_server, settings_of, without_waits
from tests.synthetic_shards import World, make_examples

s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs (the extra [scale])")
pytest.importorskip("moto.moto_server", reason="the S3 test server is moto's (the extra [scale])")

URL = "s3://bucket/shards"
RECEIPT = r"part-00000\.receipt\.json$"
PART = r"part-00000\.[0-9a-f]{16}\.parquet$"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as found:
        yield found


@pytest.fixture
def s3(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setitem(fsspec.config.conf, "s3", settings_of(server.endpoint))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    without_waits(monkeypatch)
    Machines(tmp_path, monkeypatch).use("first")
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    if bucket.exists("bucket"):
        bucket.rm("bucket", recursive=True)
    bucket.call_s3("create_bucket", Bucket="bucket")
    mirrors._mirror.cache_clear()
    server.app.requests.clear()
    yield server
    server.app.faults.clear()
    server.app.ignores_conditions = False
    mirrors._mirror.cache_clear()


@pytest.fixture
def machines(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


def begun() -> World:
    world = World(folder_of(URL), make_examples(8, 0, 0), 4, 0)
    world.begin("corpus")
    return world


def write_unit(world: World, number: int = 0, *, prompt: str | None = None) -> Receipt:
    unit = world.units[number]
    rows = world.examples[unit.start : unit.stop]
    rows = rows if prompt is None else [replace(row, prompt=prompt) for row in rows]
    return write_part(world.shards / "corpus", corpus_schema(), unit, rows, [len(rows)])


def in_store(key: str) -> bytes | None:
    return remote.Remote(URL).get(key)


def is_whole() -> bool:
    """Whether the receipt of unit 0 and the part that it names are in the store, once each."""
    content = in_store("corpus/part-00000.receipt.json")
    assert content is not None
    parts = [name for name in remote.Remote(URL).list("corpus") if name.endswith(".parquet")]
    return parts == [f"part-00000.{json.loads(content)['sha256'][:16]}.parquet"]


@pytest.mark.parametrize("what", [PART, RECEIPT, r"manifest\.json$"])
@pytest.mark.parametrize("happens", [False, True], ids=["it did not happen", "it happened"])
@pytest.mark.parametrize("answer", [503, 500, 0], ids=["503", "500", "time-out"])
def test_a_put_that_fails_for_a_moment_ends_well(s3: S3, what: str, happens: bool, answer: int) -> None:
    if "manifest" in what:
        fault = s3.fail("PUT", what, answer, happens=happens)
        world = begun()
        write_unit(world)
    else:
        world = begun()
        fault = s3.fail("PUT", what, answer, happens=happens)
        write_unit(world)
    assert len(fault.seen) == 1
    assert is_whole()
    assert (Manifest.load(folder_of(URL)).section("corpus") or {})["fingerprint"] == {"seed": 0}
    assert Receipt.load(world.shards / "corpus", 0).rows == 4


@pytest.mark.parametrize("what", [PART, RECEIPT])
def test_a_conflict_is_tried_again(s3: S3, what: str) -> None:
    world = begun()
    fault = s3.fail("PUT", what, 409, times=3)
    write_unit(world)
    assert len(fault.seen) == 3
    assert is_whole()


def test_the_receipt_is_put_last_and_once(s3: S3) -> None:
    write_unit(begun())
    ends = [path.rpartition("/")[2] for method, path in s3.app.requests if method == "PUT" and "/part-" in path]
    assert [name.rpartition(".")[2] for name in ends] == ["parquet", "json"]


def test_a_receipt_that_is_there_is_read_back_equal_is_done_unlike_is_refused(s3: S3, machines: Machines) -> None:
    world = begun()
    for name, prompt in (("second", None), ("third", "other")):
        machines.use(name)
        other = begun()
        with claimed(other.shards / "corpus", other.units[0]) as claim:
            machines.use("first")
            write_unit(world)  # first, or there already
            machines.use(name)
            rows = [replace(row, prompt=prompt or row.prompt) for row in other.examples[:4]]
            if prompt is None:
                write_part(other.shards / "corpus", corpus_schema(), other.units[0], rows, [4], claim=claim)
            else:
                assert claim is None  # it is in the store already
    machines.use("fourth")
    other = begun()
    with claimed(other.shards / "corpus", other.units[1]) as claim:
        machines.use("first")
        write_unit(world, 1)
        machines.use("fourth")
        rows = [replace(row, prompt="other") for row in other.examples[4:]]
        with pytest.raises(ShardError, match=r"^s3://bucket/shards/corpus/part-00001.receipt.json: another machine"):
            write_part(other.shards / "corpus", corpus_schema(), other.units[1], rows, [4], claim=claim)
    assert Receipt.load(world.shards / "corpus", 1).sha256[:16].encode() in (
        b"".join(name.encode() for name in remote.Remote(URL).list("corpus"))
    )


def test_a_store_that_is_away_is_one_line_and_costs_nothing(s3: S3) -> None:
    world = begun()
    fault = s3.fail("PUT", RECEIPT, 503, times=1000)
    with pytest.raises(ShardError, match=r"^s3://bucket/.*receipt.json: no answer after 7 tries to write it, the last"):
        write_unit(world)
    assert len(fault.seen) == 7
    s3.app.faults.clear()
    s3.app.requests.clear()
    with claimed(world.shards / "corpus", world.units[0]) as claim:
        assert claim is None
    assert is_whole()
    assert s3.puts(".parquet") == []  # the part was there already


def test_two_machines_that_change_the_manifest_at_once_are_both_heard(s3: S3, machines: Machines, monkeypatch) -> None:
    begun()
    begun_once, real = [], remote.Remote.replace

    def slow(self: remote.Remote, key: str, data: bytes, seen: remote.Seen | None) -> bool:
        assert seen is not None
        assert seen.version  # S3 names versions: the put is bound to the one that was read
        if not begun_once:
            begun_once.append(True)
            machines.use("second")
            record(folder_of(URL), "corpus", num_dev=7)
            machines.use("first")
        return real(self, key, data, seen)

    monkeypatch.setattr(remote.Remote, "replace", slow)
    record(folder_of(URL), "corpus", left_out={"empty": 2})
    found = Manifest.load(folder_of(URL)).section("corpus") or {}
    assert (found["num_dev"], found["left_out"]) == (7, {"empty": 2})


def test_a_bucket_without_rights_is_one_line(s3: S3) -> None:
    s3.fail("PUT", "bucket", 403, times=1000)
    with pytest.raises(ShardError, match=r"^s3://bucket/shards/.*: not allowed to write there .*; check the credentia"):
        begun()


def test_a_bucket_that_does_not_exist_is_not_made(s3: S3) -> None:
    with pytest.raises(ShardError, match=r"^s3://nobody/shards/.*: there is no such place to write to; make"):
        World(folder_of("s3://nobody/shards"), make_examples(4, 0, 0), 4, 0).begin("corpus")
    assert not s3fs.S3FileSystem(skip_instance_cache=True).exists("nobody")


def test_a_server_that_ignores_conditions_is_found_out_and_used(s3: S3) -> None:
    assert not_promised(folder_of(URL)) == []
    s3fs.S3FileSystem(skip_instance_cache=True).rm_file(f"bucket/shards/{remote.ONCE}")
    s3.app.ignores_conditions = True
    mirrors._mirror.cache_clear()
    (line,) = not_promised(folder_of(URL))
    assert "cannot refuse to write a key twice" in line
    world = begun()
    write_unit(world)
    write_unit(world, 1)
    assert seal(world.shards, "corpus").num_rows == 8


def test_reading_asks_again_and_refuses_a_part_that_is_gone(s3: S3, machines: Machines) -> None:
    world = begun()
    write_unit(world)
    write_unit(world, 1)
    seal(world.shards, "corpus")
    machines.use("second")
    faults = [s3.fail("GET", "shards", 503, times=2), s3.fail("GET", r"\.parquet$", 0)]
    with ShardSet.open(URL) as shards:
        assert [row.prompt for row in shards.corpus.read(range(8))] == [row.prompt for row in world.examples]
    assert [len(fault.seen) for fault in faults] == [2, 1]
    (name,) = (name for name in remote.Remote(URL).list("corpus") if name.startswith("part-00001.") and "q" in name)
    s3fs.S3FileSystem(skip_instance_cache=True).rm_file(f"bucket/shards/corpus/{name}")
    machines.use("third")
    with (
        ShardSet.open(URL) as shards,
        pytest.raises(ShardError, match=r"^s3://bucket/.*: missing; run `sra-data repair"),
    ):
        shards.corpus.read([7])
