"""The folder that stands for a store: the same small files, and parts only while they are being made.

**Keys.** Everything has the name it has in a folder, but for what is large: a part, a file beside the parts and the
index carry the first 16 hex digits of their sha256 (``part-00000.0123456789abcdef.parquet``). So two unlike attempts
never overwrite each other, and whoever has the receipt (of the index: the manifest) knows the key.

**Writing.** What is large is put first; its receipt last, as one conditional put. A part that is made and not yet put
waits here beside its receipt (``.pending``), and is put by whoever claims it next. Receipts and plans are written once
and never changed; the manifest is replaced only if it still is what was read.

**The store is right.** What is here is only what was read there: a receipt that is no longer there goes here too.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import md5
from pathlib import Path

from sra_data.errors import ShardError, calls
from sra_data.shards.durable import TEMPORARY, explain, flush, make_folder, sha256_of
from sra_data.shards.stores.places import local_path, mirror_folder, url_in, url_of
from sra_data.shards.stores.remote import Entry, Remote, Seen

MANIFEST, PLAN, RECEIPT, PENDING = "manifest.json", "plan.json", ".receipt.json", ".pending"
TURN = ".turn"  # the file whose lock is a turn
SMALL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.json")  # names that are brought here
PART, TENSORS = ".parquet", ".safetensors"  # the ends of large files' names
HEX = 16  # digits of the sha256 in a key
LENGTH_BYTES = 8  # of a safetensors file's header
NOT_PROMISED = (
    "warning: {url}: this store cannot refuse to write a key twice: two writers of one unit, or two commands that begin"
    " or seal at once, may not notice each other; give each its own --units and start them one after the other"
)


class Mirror:
    """A store and the folder that stands for it.

    Attributes:
        shards: the folder.
        remote: the store.
    """

    def __init__(self, shards: Path, url: str) -> None:
        self.shards = shards
        self.remote = Remote(url)
        calls(os.fspath(shards), url)

    def key(self, path: Path) -> str:
        """The key of a small file."""
        return path.relative_to(self.shards).as_posix()

    def large_key(self, path: Path, sha256: str) -> str:
        """The key of a part, of the index or of a file beside the parts."""
        return self.key(path.with_name(f"{path.stem}.{sha256[:HEX]}{path.suffix}"))

    # ------------------------------------------------------------------------------------------------- from the store

    def pull(self, section: str) -> None:
        """Make the small files of one folder what they are in the store; what was made from another plan goes.

        Raises:
            ShardError: If the store does not answer, or the disk refuses.
        """
        make_folder(self.shards)
        with self._turn():
            self._pull(section, self.shards / section)

    def _pull(self, section: str, folder: Path) -> None:
        here = {path.name for path in folder.glob("*.json")}
        there = {name: one for name, one in self.remote.list(section).items() if SMALL.fullmatch(name)}
        plan = self.remote.get(f"{section}/{PLAN}") if PLAN in there else None
        if plan is None or plan != _content(folder / PLAN):
            _empty(folder)
            here = set()
        if plan is None:
            return
        make_folder(folder)
        _write(folder / PLAN, plan)
        changed = [name for name, entry in there.items() if name != PLAN and not _is_same(folder / name, entry)]
        for key, data in self.remote.get_many(f"{section}/{name}" for name in changed).items():
            _write(self.shards / key, data)
        for name in here - set(there):
            (folder / name).unlink(missing_ok=True)

    def pull_manifest(self) -> Seen | None:
        """Make the manifest what it is in the store; what was seen of it, None where there is none."""
        make_folder(self.shards)
        with self._turn():
            seen = self.remote.see(MANIFEST)
            if seen is None:
                (self.shards / MANIFEST).unlink(missing_ok=True)
            else:
                _write(self.shards / MANIFEST, seen.data)
        return seen

    def pull_all(self) -> None:
        """The small files of every folder that the manifest names."""
        with suppress(OSError, ValueError, AttributeError):  # a damaged manifest is refused by whoever reads it
            content = json.loads((self.shards / MANIFEST).read_bytes())
            groups = ("sides", "alignments", "teachers")
            named = [f"{group}/{name}" for group in groups for name in content.get(group, {}) if _is_name(name)]
            for section in ("corpus", *named):
                self.pull(section)

    def pull_receipt(self, receipt: Path) -> bool:
        """Bring one receipt here; whether it is in the store."""
        data = self.remote.get(self.key(receipt))
        if data is not None:
            _write(receipt, data)
        return data is not None

    def fetch(self, path: Path, sha256: str) -> None:
        """Bring a whole large file here, unless it is.

        Raises:
            ShardError: If it is not in the store, or twice arrives with other bytes than its receipt says.
        """
        if path.is_file() and sha256_of(path) == sha256:
            return
        for _ in range(2):
            with _beside(path) as temporary:
                if not self.remote.download(self.large_key(path, sha256), temporary):
                    raise ShardError(f"{path}: missing in the store; run `sra-data repair {self.shards}`")
                if sha256_of(temporary) == sha256:
                    os.replace(temporary, path)
                    return
        raise ShardError(f"{path}: damaged in the store, twice; run `sra-data repair {self.shards}`")

    def header(self, path: Path, sha256: str, longest: int) -> bytes:
        """The JSON header of a safetensors file that is not here, behind the 8 bytes of its length.

        Raises:
            ShardError: If it is not there, or says it is longer than `longest`.
        """
        key = self.large_key(path, sha256)
        start = self.remote.range(key, 0, LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if length > longest:
            raise ShardError(f"{path}: damaged (a header of {length} bytes); run `sra-data repair {self.shards}`")
        return start + self.remote.range(key, LENGTH_BYTES, LENGTH_BYTES + length)

    # --------------------------------------------------------------------------------------------------- to the store

    def publish(self, receipt: Path, made: Path, content: bytes) -> bytes:
        """Put what was made and then its receipt; the receipt as the store has it, by whoever was first.

        What is made waits here with its receipt until then, so that a crash or a store that is away costs nothing. A
        part goes from here when it is there; a file beside the parts stays, to be read from here.

        Raises:
            ShardError: If the store has an unlike one, or does not answer.
        """
        _write(_pending(receipt), content, is_durable=True)
        found = self._put(receipt, made, content)
        assert found is not None, "what was made is here"
        return found

    def publish_pending(self, receipt: Path, made: Path) -> bytes | None:
        """Put what a crash, or a store that was away, left waiting here; its receipt, None where nothing waits."""
        content = _content(_pending(receipt))
        found = None if content is None else self._put(receipt, made, content)
        if content is not None and found is None:
            _pending(receipt).unlink(missing_ok=True)
        return found

    def _put(self, receipt: Path, made: Path, content: bytes) -> bytes | None:
        """`publish` of what waits; None where its part is neither here nor there."""
        key = self.large_key(made, _said(content)["sha256"])
        if made.is_file():
            self.put_large(made, key)
        elif self.remote.size(key) is None:
            return None
        found = self.remote.put_once(self.key(receipt), content)
        if not _is_alike(found, content):
            for path in (made, _pending(receipt)):
                path.unlink(missing_ok=True)
            raise ShardError(
                f"{receipt}: another machine has put an unlike {made.name} there: the two environments (library"
                " versions, devices) make different values; that one is kept, this one is thrown away: run the same"
                " command in that environment"
            )
        if made.suffix == PART:
            made.unlink(missing_ok=True)
        _pending(receipt).unlink(missing_ok=True)
        return found

    def publish_plan(self, path: Path, content: bytes) -> bool:
        """Put a plan unless there is one, and bring here the one that is there; whether it is this one."""
        with self._turn():
            found = self.remote.put_once(self.key(path), content)
            _write(path, found)
        return found == content

    def publish_index(self, path: Path, sha256: str) -> None:
        """Put the index, before the manifest that names it."""
        self.put_large(path, self.large_key(path, sha256))

    def put_large(self, path: Path, key: str) -> None:
        """Put a large file, unless it is there: its key names its bytes, and a put is whole or not at all."""
        if self.remote.size(key) != path.stat().st_size:
            self.remote.put(key, path)

    def replace_manifest(self, content: bytes, seen: Seen | None) -> bool:
        """Put the manifest if it still is what was seen, and keep it here; whether it was."""
        is_ours = self.remote.replace(MANIFEST, content, seen)
        if is_ours:
            with self._turn():  # or a reader could bring back here what it saw before
                _write(self.shards / MANIFEST, content, is_durable=True)
        return is_ours

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time makes small files here what they are there, so that nobody brings an older one."""
        with (self.shards / TURN).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def remove(self, path: Path) -> bool:
        """Take a file away from the store, of a large one every attempt; whether there was any."""
        if SMALL.fullmatch(path.name):
            had = self.remote.size(self.key(path)) is not None
            self.remote.remove(self.key(path))
            return had
        folder = self.key(path.parent)
        attempt = re.compile(rf"{re.escape(path.stem)}\.[0-9a-f]{{{HEX}}}{re.escape(path.suffix)}")
        found = [name for name in self.remote.list(folder) if attempt.fullmatch(name)]
        for name in found:
            self.remote.remove(f"{folder}/{name}")
        return bool(found)


def folder_of(place: str | os.PathLike[str], *, whole: bool = False) -> Path:
    """The folder of shards that is meant: a folder of this machine as it is, or what stands for a URL.

    Args:
        place: a path, file://, or the URL of a place in a store.
        whole: of a URL: bring the small files of every folder here, not only of those that are opened.

    Raises:
        ConfigError: If fsspec reaches no such store, or a package is missing for it.
        ShardError: If the store refuses, or does not answer.
    """
    url = url_in(place)
    if url is None:
        folder = local_path(place)
        known = mirror_of(folder)
        if known is not None and not (known.shards / MANIFEST).exists():  # handed over by a process of another machine
            known.pull_manifest()
        return folder
    mirror = _mirror(mirror_folder(url), url)
    mirror.pull_manifest()
    if whole:
        mirror.pull_all()
    return mirror.shards


def copy_to_store(shards: str | os.PathLike[str], url: str) -> None:
    """Put a finished folder of this machine into a store, the manifest last; what is there already is not put again.

    Args:
        shards: the folder.
        url: of a place in a store, empty or with a copy of these shards.

    Raises:
        ShardError: If the store holds unlike shards there, refuses, or does not answer.
    """
    folder = Path(shards)
    mirror = _mirror(mirror_folder(url), url)
    seen = mirror.remote.see(MANIFEST)

    def key(path: Path) -> Path:
        return mirror.shards / path.relative_to(folder)

    def put_once(path: Path) -> None:
        content = path.read_bytes()
        if mirror.remote.put_once(mirror.key(key(path)), content) != content:
            raise ShardError(f"{url}: holds another {path.relative_to(folder)}; choose an empty place")

    for path in sorted(folder.glob(f"**/{PLAN}")):
        put_once(path)
    for receipt in sorted(folder.glob(f"**/*{RECEIPT}")):
        stem = receipt.name.removesuffix(RECEIPT)
        made = next(path for path in receipt.parent.glob(f"{stem}.*") if path.suffix in (PART, TENSORS))
        mirror.put_large(made, mirror.large_key(key(made), _said(receipt.read_bytes())["sha256"]))
        put_once(receipt)
    for index in sorted(folder.glob(f"**/index{PART}")):
        mirror.put_large(index, mirror.large_key(key(index), sha256_of(index)))
    content = (folder / MANIFEST).read_bytes()
    if (seen is None or seen.data != content) and not mirror.remote.replace(MANIFEST, content, seen):
        raise ShardError(f"{url}: its {MANIFEST} was changed meanwhile; run the same command again")


def publish_beside(path: Path) -> None:
    """Put a small file that nothing vouches for, whatever was there; nothing to do in a folder of this machine."""
    mirror = mirror_of(path)
    if mirror is not None:
        mirror.remote.put(mirror.key(path), path.read_bytes())


def take_away(path: Path) -> bool:
    """Delete a file of shards, here and in the store that its folder stands for; whether it was there."""
    mirror = mirror_of(path)
    was_there = mirror is not None and mirror.remove(path)
    was_here = path.is_file()
    if was_here:
        path.unlink()
    return was_there or was_here


def mirror_of(folder: Path) -> Mirror | None:
    """The mirror that a folder is or lies in; None for a folder of this machine alone."""
    found = url_of(folder)
    return None if found is None else _mirror(*found)


@functools.cache
def _mirror(shards: Path, url: str) -> Mirror:
    return Mirror(shards, url)


def not_promised(shards: Path) -> list[str]:
    """What a store cannot promise to those who write into it, a line each; nothing of a folder."""
    mirror = mirror_of(shards)
    return [] if mirror is None or mirror.remote.refuses_twice else [NOT_PROMISED.format(url=mirror.remote.url)]


def _pending(receipt: Path) -> Path:
    return receipt.with_name(receipt.name + PENDING)


def _said(receipt: bytes) -> dict[str, str]:
    try:
        found = json.loads(receipt)
        return found if isinstance(found.get("sha256"), str) else {"sha256": ""}
    except (ValueError, AttributeError):
        return {"sha256": ""}


def _is_alike(one: bytes, other: bytes) -> bool:
    """Whether two receipts are of the same content: rows, or the bytes of a file; how long it took is no content."""
    return _content_of(one) == _content_of(other)


def _content_of(receipt: bytes) -> tuple[object, ...]:
    said: dict[str, object] = {**_said(receipt)}
    return said.get("part"), said.get("rows"), said.get("rows_root") or said.get("sha256")


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[^/\x00]+", name) is not None and name not in (".", "..")


def _content(path: Path) -> bytes | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.read_bytes()
    return None


def _is_same(path: Path, entry: Entry) -> bool:
    """Whether a file here is what the listing says, which only an md5 tells for sure."""
    content = _content(path)
    return content is not None and len(content) == entry.size and entry.md5 == md5(content).hexdigest()


def _empty(folder: Path) -> None:
    """Throw away all files of a folder but those that are being written, whose writers hold a lock on them."""
    for path in folder.glob("*"):
        if path.is_file() and not path.name.endswith(TEMPORARY):
            path.unlink(missing_ok=True)


def _write(path: Path, content: bytes, *, is_durable: bool = False) -> None:
    """Give a file this content, whole or not at all, without a lock: `durable.staged` is how receipts are claimed."""
    with _beside(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                if is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if is_durable:
                flush(path.parent)
        except OSError as error:
            raise explain(error, path, "writing") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for what becomes a file, of nobody else's; gone at the end."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
