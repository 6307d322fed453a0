"""Shards in a store: the same laws as in a folder, without a server (fsspec's memory)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sra_data.errors import ConfigError, ShardError
from sra_data.shards import part_bytes
from sra_data.shards.kinds import corpus_schema
from sra_data.shards.manifest import Manifest, Plan, Receipt, missing_units, record
from sra_data.shards.store import (
    ShardSet,
    begin,
    choose_places,
    claimed,
    copy_to_store,
    folder_of,
    is_in_store,
    not_promised,
    seal,
    state_of,
    write_part,
)
from sra_data.shards.stores import mirror as mirrors
from sra_data.shards.stores import places, remote
from sra_data.shards.stores.blocks import KEPT_SHARE, BlockCache, StoredPart
from sra_data.stages.list import list_shards
from sra_data.stages.repair import repair
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.stores import Machines, in_memory
from tests.synthetic_shards import SyntheticShards, World, make_examples, make_shards

URL = "memory://bucket/shards"
LARGE = (".parquet", ".safetensors")


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with in_memory(tmp_path, monkeypatch) as found:
        found.use("first")
        yield found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    folder = tmp_path_factory.mktemp("on_disk")
    make_shards(folder, shards=folder / "before")  # the student is there when its tokenizer is loaded, as it will be
    return make_shards(folder)


@pytest.fixture
def in_store(machines: Machines, on_disk: SyntheticShards) -> SyntheticShards:
    """The same shards as `on_disk`, made in a store."""
    return make_shards(on_disk.shards.parent, shards=folder_of(URL))


def small_world(count: int = 12) -> World:
    return World(folder_of(URL), make_examples(count, 0, 0), 4, 0)


def write_unit(world: World, number: int, *, noise: int = 0, **notes: object) -> Receipt:
    """Write a part; `noise`: bytes of each row that nothing compresses below half."""
    unit, random = world.units[number], np.random.default_rng(number)
    rows = world.examples[unit.start : unit.stop]
    if noise:
        rows = [replace(row, prompt=random.bytes(noise).hex()) for row in rows]
    return write_part(world.shards / "corpus", corpus_schema(), unit, rows, [len(rows)], notes=notes)


def keys(ending: str = "") -> list[str]:
    return sorted(key.removeprefix("/bucket/shards/") for key in MemoryFileSystem.store if key.endswith(ending))


def content(key: str) -> bytes:
    return MemoryFileSystem.store[f"/bucket/shards/{key}"].getvalue()


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("times", [1, 2])
def test_a_large_file_that_arrives_damaged_is_asked_for_again_and_refused_the_second_time(
    in_store: SyntheticShards, machines: Machines, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Whole files: the index, the head. One flipped bit on the way must not be read, nor stay here."""
    machines.use("second")
    left = [times]
    original = remote.Remote.download

    def download(self: remote.Remote, key: str, to: Path) -> bool:
        found = original(self, key, to)
        if "index" in key and left[0]:
            left[0] -= 1
            data = bytearray(to.read_bytes())
            data[len(data) // 2] ^= 1
            to.write_bytes(bytes(data))
        return found

    monkeypatch.setattr(remote.Remote, "download", download)
    with ShardSet.open(URL) as shards:
        if times == 2:
            with pytest.raises(ShardError, match=r"index\.parquet: damaged in the store, twice; run `sra-data repair"):
                shards.corpus.read([0])
            assert not list((machines.folder / "second").rglob("index.parquet"))
        else:
            assert len(shards.corpus.read([0])) == 1
    assert left == [0]


# ------------------------------------------------------------------------------------------------------------- writing


def test_what_is_made_in_a_store_has_the_bytes_of_a_folder(in_store: SyntheticShards, on_disk: SyntheticShards) -> None:
    expected = {}
    for path in on_disk.shards.rglob("*"):
        name = path.relative_to(on_disk.shards).as_posix()
        if path.suffix in LARGE:
            receipt = path.with_suffix(".receipt.json")
            section = Manifest.load(on_disk.shards).section(path.parent.relative_to(on_disk.shards).as_posix()) or {}
            sha = json.loads(receipt.read_text())["sha256"] if receipt.exists() else section["index_sha256"]
            name = name.replace(path.suffix, f".{sha[:16]}{path.suffix}")
        if path.is_file():
            expected[name] = path.read_bytes()
    found = {key: content(key) for key in keys() if key != remote.ONCE}
    assert found.keys() == expected.keys()
    assert found == expected


def test_a_folder_that_is_copied_into_a_store_is_the_one_made_there(
    machines: Machines, on_disk: SyntheticShards
) -> None:
    for _ in range(2):  # doing it again changes nothing
        copy_to_store(on_disk.shards, URL)
    assert verify(VerifyOptions(URL), Reporter()).problems == ()
    copied = {key: content(key) for key in keys() if key != remote.ONCE}
    MemoryFileSystem.store.clear()
    machines.use("second")
    make_shards(on_disk.shards.parent, shards=folder_of(URL))
    assert copied == {key: content(key) for key in keys() if key != remote.ONCE}


def test_unlike_shards_are_not_copied_over_each_other(machines: Machines, on_disk: SyntheticShards) -> None:
    small_world().begin("corpus")
    with pytest.raises(ShardError, match=f"^{URL}: holds another corpus/plan.json; choose an empty place"):
        copy_to_store(on_disk.shards, URL)


def test_no_part_stays_here_once_it_is_in_the_store(in_store: SyntheticShards) -> None:
    assert is_in_store(in_store.shards)
    assert not list(in_store.shards.rglob("part-*.parquet*"))
    assert len(list(in_store.shards.rglob("part-*.receipt.json"))) == sum("/part-" in key for key in keys(".parquet"))


def test_another_machine_reads_the_same_rows(
    in_store: SyntheticShards, on_disk: SyntheticShards, machines: Machines
) -> None:
    machines.use("second")
    with ShardSet.open(URL) as there, ShardSet.open(on_disk.shards) as here:
        for section in here:
            one, other = (shards._open(section) for shards in (there, here))
            for got, had in zip(one.read(range(len(one))), other.read(range(len(other))), strict=True):
                assert repr(got) == repr(had)
        assert np.array_equal(there.embeddings("teacher-00000000")[0], here.embeddings("teacher-00000000")[0])


def test_a_unit_that_is_in_the_store_is_not_made_again_by_another_machine(machines: Machines) -> None:
    world = small_world()
    world.begin("corpus")
    write_unit(world, 0)
    machines.use("second")
    again = small_world()
    plan = begin(again.shards, "corpus", {"seed": 0}, lambda: again.units)
    assert [unit.part for unit in missing_units(again.shards / "corpus", plan)] == [1, 2]
    machines.use("first")
    write_unit(world, 1)
    machines.use("second")
    with claimed(again.shards / "corpus", again.units[1]) as claim:  # put there meanwhile
        assert claim is None
    assert Receipt.load(again.shards / "corpus", 1) == Receipt.load(world.shards / "corpus", 1)


def test_two_machines_that_make_one_unit_at_once_have_one_receipt(machines: Machines) -> None:
    world = small_world()
    world.begin("corpus")
    machines.use("second")
    other = small_world()
    other.begin("corpus")
    with claimed(other.shards / "corpus", other.units[0]) as claim:
        machines.use("first")
        first = write_unit(world, 0, seconds=1.0)
        machines.use("second")
        rows = other.examples[:4]
        second = write_part(other.shards / "corpus", corpus_schema(), other.units[0], rows, [4], claim=claim)
    assert second == first  # what it took is no content
    assert Receipt.load(other.shards / "corpus", 0).notes == {"seconds": 1.0}


def test_an_unlike_unit_is_refused_and_the_first_one_kept(machines: Machines) -> None:
    world = small_world()
    world.begin("corpus")
    machines.use("second")
    other = small_world()
    folder = other.begin("corpus")
    with claimed(folder, other.units[0]) as claim:
        machines.use("first")
        write_unit(world, 0)
        machines.use("second")
        rows = [replace(row, prompt="other") for row in other.examples[:4]]
        with pytest.raises(ShardError, match=f"^{URL}/corpus/part-00000.receipt.json: another machine has put an un"):
            write_part(folder, corpus_schema(), other.units[0], rows, [4], claim=claim)
    kept = json.loads(content("corpus/part-00000.receipt.json"))
    assert f"corpus/part-00000.{kept['sha256'][:16]}.parquet" in keys()
    with claimed(folder, other.units[0]) as claim:  # the same command again goes on with that one
        assert claim is None
    assert not list(folder.glob("*.pending"))


@pytest.mark.parametrize("step", ["part", "receipt"])
def test_a_kill_while_a_unit_is_put_costs_nothing(machines: Machines, monkeypatch, step: str) -> None:
    world = small_world()
    folder = world.begin("corpus")
    method = {"part": "put", "receipt": "put_once"}[step]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote.Remote, method, killed)
        with pytest.raises(KeyboardInterrupt):
            write_unit(world, 0)
    assert not keys(".receipt.json")
    assert [unit.part for unit in missing_units(folder, Plan.load(folder))] == [0, 1, 2]
    with claimed(folder, world.units[0]) as claim:  # put now, not made
        assert claim is None
    assert len(keys("receipt.json")) == len(keys(".parquet")) == 1
    assert not list(folder.glob("part-*.parquet"))


def test_what_waits_for_another_plan_is_thrown_away(machines: Machines, monkeypatch) -> None:
    world = small_world()
    folder = world.begin("corpus")
    with monkeypatch.context() as patch:
        patch.setattr(remote.Remote, "put_once", lambda *arguments: (_ for _ in ()).throw(ShardError("away")))
        with pytest.raises(ShardError, match="away"):
            write_unit(world, 0)
    MemoryFileSystem.store.clear()  # somebody emptied the bucket
    again = small_world()
    begin(again.shards, "corpus", {"seed": 1}, lambda: again.units)
    assert not list(folder.glob("*.pending"))
    with claimed(folder, again.units[0]) as claim:
        assert claim is not None


def test_two_machines_that_change_the_manifest_at_once_are_both_heard(machines: Machines, monkeypatch) -> None:
    small_world().begin("corpus")
    begun, real = [], remote.Remote.replace

    def slow(self: remote.Remote, key: str, data: bytes, seen: remote.Seen | None) -> bool:
        if not begun:  # the other machine changes it between our look and our word
            begun.append(True)
            machines.use("second")
            record(folder_of(URL), "corpus", num_dev=7)
            machines.use("first")
        return real(self, key, data, seen)

    monkeypatch.setattr(remote.Remote, "replace", slow)
    record(folder_of(URL), "corpus", left_out={"empty": 2})
    found = Manifest.load(folder_of(URL)).section("corpus") or {}
    assert (found["num_dev"], found["left_out"]) == (7, {"empty": 2})


def test_a_plan_is_written_once_and_other_inputs_are_refused(machines: Machines) -> None:
    small_world().begin("corpus")
    machines.use("second")
    other = small_world()
    with pytest.raises(ShardError, match=f"^{URL}/corpus: made from other inputs .seed: had 0, got 1"):
        begin(other.shards, "corpus", {"seed": 1}, lambda: other.units)


def test_a_receipt_that_is_gone_from_the_store_is_gone_here(machines: Machines) -> None:
    world = small_world()
    folder = world.begin("corpus")
    write_unit(world, 0)
    del MemoryFileSystem.store["/bucket/shards/corpus/part-00000.receipt.json"]
    assert [unit.part for unit in missing_units(folder, Plan.load(folder))] == [0, 1, 2]


def test_a_store_without_conditional_puts_is_said_and_used(machines: Machines, monkeypatch) -> None:
    assert not_promised(folder_of(URL)) == []
    monkeypatch.setattr(remote, "_knows_once", lambda fs: False)
    mirrors._mirror.cache_clear()
    (line,) = not_promised(folder_of(URL))
    assert line.startswith(f"warning: {URL}: this store cannot refuse to write a key twice")
    world = small_world()
    world.begin("corpus")
    for number in range(3):
        write_unit(world, number)
    assert seal(world.shards, "corpus").num_rows == 12


def test_sealing_reads_keys_and_hashes_alone(machines: Machines, monkeypatch) -> None:
    world = small_world()
    world.begin("corpus")
    for number in range(3):
        write_unit(world, number, noise=200_000)
    read: list[int] = []
    real = remote.Remote.range

    def counted(self: remote.Remote, key: str, start: int, stop: int) -> bytes:
        read.append(stop - start)
        return real(self, key, start, stop)

    monkeypatch.setattr(remote.Remote, "range", counted)
    seal(world.shards, "corpus")
    parts = sum(len(content(key)) for key in keys(".parquet") if "part" in key)
    assert 0 < sum(read) < parts / 4
    assert not places.cache_folder().exists()


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_cache_smaller_than_the_shards_gives_the_same_rows_and_keeps_its_bound(
    in_store: SyntheticShards, on_disk: SyntheticShards, machines: Machines
) -> None:
    weight = sum(len(content(key)) for key in keys(".parquet") if "/part-" in key)
    machines.use("second", cache_bytes=weight // 3)
    order = np.random.default_rng(0).permutation(30)
    with ShardSet.open(URL) as there, ShardSet.open(on_disk.shards) as here:
        for row in order.tolist() * 2:
            got, had = (shards.teacher("teacher-00000000").read([row])[0] for shards in (there, here))
            assert repr(got) == repr(had)
            assert repr(there.corpus.read([row])) == repr(here.corpus.read([row]))
            assert weight_of(places.cache_folder()) <= weight // 3
    assert weight_of(places.cache_folder()) > 0


def test_fetched_row_groups_are_read_without_the_store(machines: Machines, monkeypatch) -> None:
    world = small_world()
    world.begin("corpus")
    for number in range(3):
        write_unit(world, number, noise=100_000)
    seal(world.shards, "corpus")
    machines.use("second")
    small = BlockCache(places.cache_folder(), 1 << 24, block_bytes=4096)
    monkeypatch.setattr(part_bytes, "block_cache", lambda: small)
    with ShardSet.open(URL) as shards:
        corpus, columns = shards.corpus, ["prompt", "response"]
        assert corpus.fetch([1, 6], columns) > 600_000  # two row groups of four rows, but what lies beside footers
        assert corpus.fetch([1, 6], columns) == 0
        monkeypatch.setattr(remote.Remote, "range", lambda *arguments: pytest.fail("asked the store"))
        assert [len(row.prompt) for row in corpus.read([6, 1], columns)] == [200_000] * 2


def test_a_damaged_block_is_fetched_again(in_store: SyntheticShards, machines: Machines) -> None:
    machines.use("second")
    with ShardSet.open(URL) as shards:
        had = repr(shards.corpus.read(range(30)))
    damage_blocks(places.cache_folder())
    with ShardSet.open(URL) as shards:
        assert repr(shards.corpus.read(range(30))) == had
    damage_blocks(places.cache_folder())
    assert not verify(VerifyOptions(URL), Reporter()).problems


def test_what_is_damaged_in_the_store_is_refused_by_its_url(in_store: SyntheticShards, machines: Machines) -> None:
    flip_in_store("corpus/part-00001")
    machines.use("second")
    with ShardSet.open(URL) as shards, pytest.raises(ShardError, match=f"^{URL}/corpus/part-00001.parquet: "):
        shards.corpus.read(range(30))


def test_repair_takes_what_is_damaged_out_of_the_store(in_store: SyntheticShards, machines: Machines) -> None:
    flip_in_store("corpus/part-00001")
    machines.use("second")
    problems = verify(VerifyOptions(URL), Reporter()).problems
    assert len(problems) == 1
    assert f"run `sra-data repair {URL}`" in problems[0] or URL in str(ShardError(problems[0]))
    done = repair(URL, Reporter())
    assert sorted(done.thrown_away) == ["corpus/part-00001.parquet", "corpus/part-00001.receipt.json"]
    assert not [key for key in keys() if key.startswith("corpus/part-00001")]
    assert not state_of(folder_of(URL), "corpus").is_sealed


def test_a_list_of_a_store_is_that_of_a_folder(
    in_store: SyntheticShards, on_disk: SyntheticShards, machines: Machines
) -> None:
    machines.use("second")
    assert list_shards(URL).entries == list_shards(on_disk.shards).entries


# ----------------------------------------------------------------------------------------------------------- the cache


class Numbers:
    """A part whose bytes tell their place; counts what is fetched."""

    def __init__(self, size: int, name: str = "aa") -> None:
        self.data = bytes(range(256)) * (size // 256 + 1)
        self.part = StoredPart(self, name, name * 32, size)  # type: ignore[arg-type]
        self.fetched: list[int] = []

    def range(self, key: str, start: int, stop: int) -> bytes:
        self.fetched.append(start)
        return self.data[start:stop]


def weight_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("[0-9a-f][0-9a-f]/*"))


def read(cache: BlockCache, source: Numbers, at: int, count: int) -> bytes:
    data = bytearray(count)
    cache.read_into(source.part, at, memoryview(data))
    assert bytes(data) == source.data[at : at + count]
    return bytes(data)


def test_the_least_recently_used_blocks_go(tmp_path: Path) -> None:
    cache, source = BlockCache(tmp_path, 800, block_bytes=100), Numbers(10_000)
    for number in range(6):
        read(cache, source, 100 * number, 100)
    read(cache, source, 0, 100)  # used again
    for number in range(6, 9):
        read(cache, source, 100 * number, 100)
    before = len(source.fetched)
    read(cache, source, 0, 100)
    assert len(source.fetched) == before
    read(cache, source, 100, 100)
    assert len(source.fetched) == before + 1


def test_threads_and_caches_on_one_folder_keep_the_bound_and_fetch_no_block_twice_at_once(tmp_path: Path) -> None:
    limit = 4_000
    caches = [BlockCache(tmp_path, limit, block_bytes=100) for _ in range(2)]
    sources = [Numbers(5_000, "aa"), Numbers(5_000, "bb")]
    heaviest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with caches[0]._locked("room"):  # nothing comes and nothing goes, but names change
                heaviest[0] = max(heaviest[0], weight_of_now(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as threads:
        jobs = [
            threads.submit(read, caches[number % 2], sources[number % 3 % 2], 37 * number % 4_000, 450)
            for number in range(200)
        ]
        for job in jobs:
            job.result()
    stop.set()
    watcher.join()
    assert 0 < heaviest[0] <= limit


def weight_of_now(folder: Path) -> int:
    found: dict[int, int] = {}  # by inode: a block that gets its name meanwhile is one
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        with suppress(FileNotFoundError):
            facts = path.stat()
            found[facts.st_ino] = facts.st_size
    return sum(found.values())


def test_one_block_that_many_want_is_fetched_once(tmp_path: Path) -> None:
    cache, source = BlockCache(tmp_path, 10_000, block_bytes=100), Numbers(1_000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read(cache, source, 0, 100), range(16)))
    assert source.fetched == [0]


def test_a_block_that_never_fits_is_read_all_the_same(tmp_path: Path) -> None:
    cache, source = BlockCache(tmp_path, 50, block_bytes=100), Numbers(1_000)
    read(cache, source, 150, 600)
    assert weight_of(tmp_path) == 0


def test_a_block_that_a_kill_left_short_is_fetched_again(tmp_path: Path) -> None:
    cache, source = BlockCache(tmp_path, 10_000, block_bytes=100), Numbers(1_000)
    read(cache, source, 0, 100)
    (path,) = tmp_path.glob("aa/*")
    path.write_bytes(path.read_bytes()[:50])
    read(cache, source, 0, 100)
    assert source.fetched == [0, 0]


def test_what_a_killed_writer_left_weighs_and_goes(tmp_path: Path) -> None:
    cache, source = BlockCache(tmp_path, 1_000, block_bytes=100), Numbers(10_000)
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "left.by.a.kill").write_bytes(bytes(600))
    for number in range(20):
        read(cache, source, 100 * number, 100)
        assert weight_of(tmp_path) <= 1_000
    assert not (tmp_path / "aa" / "left.by.a.kill").exists()
    assert weight_of(tmp_path) >= 100 * int(KEPT_SHARE)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/shards", "nosuch://bucket/shards: no store that fsspec reaches .*; use s3://"),
        ("memory://", "memory:/*: names no place in the store; write, say, memory://bucket/shards"),
        (f"memory://bucket/{'x' * 300}", "a URL of 316 characters; choose a shorter prefix"),
    ],
)
def test_a_url_that_cannot_be_is_one_line(machines: Machines, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder_of(url)


def test_a_driver_that_is_not_installed_is_named(machines: Machines, monkeypatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"^s3://bucket/shards: .* run `pip install 'sra-distill\[scale\]'`$"):
        folder_of("s3://bucket/shards")


@pytest.mark.parametrize("size", ["0", "-1", "nan", "much"])
def test_a_cache_of_no_size_is_refused(machines: Machines, monkeypatch, size: str) -> None:
    monkeypatch.setenv(places.CACHE_GIB, size)
    with pytest.raises(ConfigError, match=f"^SRA_CACHE_GIB={size}: not a size"):
        places.cache_bytes()


def test_places_are_chosen_for_this_process_and_those_it_starts(machines: Machines, tmp_path: Path) -> None:
    choose_places(workspace=str(tmp_path / "w"), cache_dir=str(tmp_path / "c"), cache_gib=0.5)
    assert places.workspaces() == tmp_path / "w"
    assert places.cache_folder() == tmp_path / "c"
    assert places.cache_bytes() == 1 << 29


def test_file_urls_are_folders_of_this_machine(on_disk: SyntheticShards) -> None:
    assert folder_of(f"file://{on_disk.shards}") == on_disk.shards
    assert not is_in_store(on_disk.shards)


def test_a_folder_of_a_stranger_names_no_store(machines: Machines, tmp_path: Path) -> None:
    stranger = tmp_path / "memory%3A%2F%2Fbucket%2Fshards"
    stranger.mkdir()
    assert not is_in_store(stranger)


def flip_in_store(start: str) -> None:
    """Change bytes of values of a part."""
    (key,) = (key for key in MemoryFileSystem.store if key.startswith(f"/bucket/shards/{start}") and "parquet" in key)
    data = bytearray(MemoryFileSystem.store[key].getvalue())
    for place in range(50, len(data) // 2, 50):
        data[place] ^= 1
    file = MemoryFileSystem.store[key]
    file.seek(0)
    file.write(bytes(data))


def damage_blocks(folder: Path) -> None:
    """Flip a byte in every 50 of every block."""
    found = list(folder.glob("[0-9a-f][0-9a-f]/*"))
    assert found
    for path in found:
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        data[::50] ^= 1
        path.write_bytes(data.tobytes())
