"""The little that is asked of a store, by fsspec: read, write, write once, replace what was read, list.

What a store answers for a moment only (a time-out, 503, 429, 409: a conflict of two writers) is asked again, with waits
that grow and end. A write that happened although it answered an error is met when it is tried again: the store then
says that the key exists (412), what is there is read back and compared, and it is the writer's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sra_data.errors import ConfigError, ShardError, one_line

WAITS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before each further try
AT_ONCE = 16  # requests for small files
ONCE = "create-once"  # the key that says whether the store refuses to write a key twice
DRIVERS = {"s3": "'sra-distill[scale]'", "s3a": "'sra-distill[scale]'", "gs": "gcsfs", "gcs": "gcsfs"}
DRIVERS |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs")
# Stores of keys, in which a folder is there as soon as something lies in it.
OF_KEYS = {*DRIVERS, "hf", "memory", "oss", "r2", "oci"}
FOR_A_MOMENT = (408, 409, 425, 429)  # answers below 500 after which the same request may succeed
Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """A document as it was read, and the store's name for that very version of it, where it has one."""

    data: bytes
    version: str | None = None


@dataclass(frozen=True)
class Entry:
    """What a listing says of a key: its size, and the md5 of its bytes where the store tells."""

    size: int
    md5: str | None = None


class _Exists(Exception):
    """The key is there already (412)."""


class Remote:
    """The keys below a URL; safe to use from several threads, and after a fork.

    Attributes:
        url: without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: tuple[int, Any, str] | None = None
        self._refuses_twice: bool | None = None

    # ------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str) -> bytes | None:
        """A whole small key; None where there is none."""
        fs, place = self._place(key)
        return self._asked("read", key, lambda: bytes(fs.cat_file(place, start=0)))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Whole small keys, those that are there."""
        wanted = list(keys)
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(AT_ONCE, len(wanted)), thread_name_prefix="store") as threads:
            found = zip(wanted, threads.map(self.get, wanted), strict=True)
            return {key: data for key, data in found if data is not None}

    def see(self, key: str) -> Seen | None:
        """A document that may be replaced, with its version: asked before it is read, so never newer than the data."""
        fs, place = self._place(key)
        version = None
        if _has_versions(fs):
            facts = self._asked("read", key, lambda: _now(fs).info(place))
            version = None if facts is None else facts.get("ETag")
        data = self.get(key)
        return None if data is None else Seen(data, version)

    def range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a key.

        Raises:
            ShardError: If it is not there or shorter.
        """
        fs, place = self._place(key)
        data = self._asked("read", key, lambda: bytes(fs.cat_file(place, start=start, end=stop)))
        if data is None or len(data) != stop - start:
            have = "missing" if data is None else "shorter than its receipt says"
            raise ShardError(f"{self.url}/{key}: {have}; run `sra-data repair {self.url}`")
        return data

    def download(self, key: str, to: Path) -> bool:
        """A whole key as a file; False where there is none."""
        fs, place = self._place(key)
        return self._asked("read", key, lambda: fs.get_file(place, os.fspath(to)) or True) is not None

    def size(self, key: str) -> int | None:
        """Bytes of a key; None where there is none."""
        fs, place = self._place(key)
        return self._asked("read", key, lambda: int(_now(fs).info(place)["size"]))

    def list(self, folder: str) -> dict[str, Entry]:
        """The keys right below a folder, by their names; none where there is no such folder."""
        fs, place = self._place(folder)
        found = self._asked("list", folder, lambda: _now(fs).ls(place, detail=True)) or []
        files = (one for one in found if one.get("type") == "file")
        return {one["name"].rpartition("/")[2]: Entry(int(one["size"]), _md5_of(one)) for one in files}

    # ------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, content: bytes | Path) -> None:
        """Write a key, whatever was there."""
        fs, place = self._place(key)

        def write() -> bool:
            self._make_folder(fs, place)
            if isinstance(content, Path):
                fs.put_file(os.fspath(content), place)
            else:
                fs.pipe_file(place, content)
            return True

        if self._asked("write", key, write) is None:
            raise self._no_such_place(key)

    def put_once(self, key: str, data: bytes) -> bytes:
        """Write a key unless it is there; what it holds then: `data`, or what another writer has put there before.

        ONE conditional put where the store has those. Otherwise it is looked for, written and read back, and of two
        who do that at once either may win, unnoticed by the other.
        """
        fs, place = self._place(key)
        if self.refuses_twice:
            try:
                self._make_folder(fs, place)
                done = self._asked("write", key, lambda: fs.pipe_file(place, data, mode="create") or True)
                if done is None:
                    raise self._no_such_place(key)
                return data
            except _Exists:
                pass
        elif self.get(key) is None:
            self.put(key, data)
        found = self.get(key)
        if found is None:
            raise ShardError(f"{self.url}/{key}: gone while it was written; leave the store alone and run again")
        return found

    def replace(self, key: str, data: bytes, seen: Seen | None) -> bool:
        """Write a document if it still is what was `seen` (None: if there is none); whether it was, and is `data` now.

        With the store's own condition where it has one for keys that exist (If-Match); otherwise it is read and
        compared, then written and read back.
        """
        if seen is None:
            return self.put_once(key, data) == data
        if seen.version is None:
            if self.get(key) != seen.data:
                return False
            self.put(key, data)
            return self.get(key) == data
        fs, place = self._place(key)
        try:
            match = {"IfMatch": seen.version}
            if self._asked("write", key, lambda: fs.pipe_file(place, data, **match) or True) is not None:
                return True
        except _Exists:
            pass
        return self.get(key) == data  # a write that answered an error and was tried again

    def remove(self, key: str) -> None:
        """Delete a key, if it is there."""
        fs, place = self._place(key)
        self._asked("delete", key, lambda: fs.rm_file(place) or True)

    @property
    def refuses_twice(self) -> bool:
        """Whether the store refuses to write a key that is there, tried once with a key of its own."""
        if self._refuses_twice is None:
            self._refuses_twice = _knows_once(self._place("")[0]) and self._tried_twice()
        return self._refuses_twice

    def _tried_twice(self) -> bool:
        """Write the key that says it once or, where it is new, twice: only the second tells."""
        fs, place = self._place(ONCE)
        said = b"this store was asked to write this key once\n"
        try:
            for _ in range(2):
                if self._asked("write", ONCE, lambda: fs.pipe_file(place, said, mode="create") or True) is None:
                    raise self._no_such_place(ONCE)
        except _Exists:
            return True
        except _NotThere:
            pass
        return False

    # -------------------------------------------------------------------------------------------------------- asking

    def _place(self, key: str) -> tuple[Any, str]:
        """The file system of this process, and a key's whole name in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_open(self.url))
        _, fs, root = self._opened
        return fs, f"{root}/{key}" if key else root

    def _asked(self, doing: str, key: str, request: Callable[[], Result]) -> Result | None:
        """What the store answers, asked again while it fails for a moment; None where there is no such key.

        Raises:
            _Exists: If it refuses because the key is there, or is no longer what it was.
            ShardError: One line for whatever else it refuses, and when it has failed too often.
        """
        where = f"{self.url}/{key}" if key else self.url
        for wait in (*WAITS, None):
            try:
                return request()
            except FileNotFoundError:
                return None
            except FileExistsError:
                raise _Exists from None
            except Exception as error:
                status = _status_of(error)
                if status == 412:
                    raise _Exists from None
                if status == 501:
                    raise _NotThere(f"{where}: the store cannot {doing} so ({one_line(error)})") from error
                if _is_forbidden(error, status):
                    raise ShardError(
                        f"{where}: not allowed to {doing} there ({one_line(error)}); check the credentials and the "
                        f"rights they have on {self.url}, then run the same command again"
                    ) from error
                if _is_final(error, status):
                    raise ShardError(f"{where}: the store refuses to {doing} it ({one_line(error)})") from error
                if wait is None:
                    raise ShardError(
                        f"{where}: no answer after {len(WAITS) + 1} tries to {doing} it, the last: {one_line(error)}; "
                        "run the same command again, what is finished is kept"
                    ) from error
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _make_folder(self, fs: Any, place: str) -> None:
        """Make the folder of a key, in a store of folders."""
        if not OF_KEYS & set(_protocols(fs)):
            fs.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _no_such_place(self, key: str) -> ShardError:
        return ShardError(f"{self.url}/{key}: there is no such place to write to; make the bucket, or name another one")


class _NotThere(ShardError):
    """The store does not know the request (501)."""


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the name of its place there; settings are fsspec's own (files, FSSPEC_...)."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=protocol != "memory")
    except ImportError as error:
        package = DRIVERS.get(protocol)
        remedy = f"run `pip install {package}`" if package else one_line(error)
        raise ConfigError(f"{url}: {protocol}:// needs a package that is not installed; {remedy}") from None
    except ValueError as error:
        raise ConfigError(
            f"{url}: no store that fsspec reaches ({one_line(error)}); use s3://, gs://, hf:// or a folder"
        ) from None
    return fs, root.rstrip("/")


def _now(fs: Any) -> Any:
    """The file system without what it remembers of earlier listings: others write there too."""
    fs.invalidate_cache()
    return fs


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _has_versions(fs: Any) -> bool:
    """Whether a put may be bound to the version that was read: S3's If-Match."""
    return bool({"s3", "s3a"} & set(_protocols(fs)))


def _knows_once(fs: Any) -> bool:
    """Whether the driver has a put that fails where the key exists; fsspec's own looks first and then writes."""
    import inspect

    from fsspec import AbstractFileSystem

    how = getattr(type(fs), "_pipe_file", None) or type(fs).pipe_file
    return how is not AbstractFileSystem.pipe_file and "mode" in inspect.signature(how).parameters


def _md5_of(entry: dict[str, Any]) -> str | None:
    tag = str(entry.get("ETag") or "").strip('"')
    return tag if len(tag) == 32 and all(letter in "0123456789abcdef" for letter in tag) else None


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind a driver's error, whichever way the driver tells it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            code = getattr(response, "status_code", None) or getattr(error, "status", None)
            code = code or getattr(error, "code", None)
        if isinstance(code, int):
            return code
        error = error.__cause__
    return None


def _is_forbidden(error: Exception, status: int | None) -> bool:
    return isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__


def _is_final(error: Exception, status: int | None) -> bool:
    """Whether asking again is of no use."""
    if status is not None:
        return 400 <= status < 500 and status not in FOR_A_MOMENT
    misused = isinstance(error, NotImplementedError | TypeError | ValueError | KeyError | IsADirectoryError)
    return misused or "Validation" in type(error).__name__
