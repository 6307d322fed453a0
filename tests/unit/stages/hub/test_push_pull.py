"""Shards go to the Hub and come back, every byte; what is damaged, unfinished or somebody else's is refused."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCard

from sra_data.errors import SRAError
from sra_data.stages.hub.place import Place, place_of
from sra_data.stages.hub.pull import PULLING, PullOptions, pull
from sra_data.stages.hub.push import PushOptions, push
from sra_data.stages.list import list_shards
from sra_data.terminal import Reporter
from tests.fake_hub import TOKEN, FakeHub, Files
from tests.integration.command_lines import sra_data
from tests.manifests import change_manifest

NAME = "ann/dolly-shards"


def pushed(shards: Path, name: str = NAME, **settings: object) -> None:
    push(PushOptions(str(shards), place_of(name), **settings), Reporter())  # type: ignore[arg-type]


def pulled(folder: Path, name: str = NAME) -> Path:
    pull(PullOptions(place_of(name), str(folder)), Reporter())
    return folder


def refused(call: object, *arguments: object, **settings: object) -> str:
    """The one line that something is refused with; never a token."""
    with pytest.raises(SRAError) as caught:
        call(*arguments, **settings)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert TOKEN not in message
    return message


def files_in(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flipped(content: bytes) -> bytes:
    """With one byte changed."""
    return content[:40] + bytes([content[40] ^ 255]) + content[41:]


# ------------------------------------------------------------------------------------------------- there and back


def test_what_is_pushed_and_pulled_is_the_same_to_the_byte(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    (shards / "report.html").write_text("mine alone")
    (shards / "corpus" / "part-00009.parquet").write_bytes(b"of an earlier plan")
    answer = sra_data("push", shards, NAME)
    assert answer.exit_code == 0, answer.error
    assert f"sra-data pull {NAME}" in answer.output
    held = hub.files(NAME)
    assert {"report.html", "corpus/part-00009.parquet"}.isdisjoint(held)
    answer = sra_data("pull", NAME, tmp_path / "back", "--json")
    assert answer.exit_code == 0, answer.error
    assert json.loads(answer.output)["commit"] == hub.repositories[NAME].branches["main"]
    (shards / "report.html").unlink()
    (shards / "corpus" / "part-00009.parquet").unlink()
    assert files_in(tmp_path / "back") == files_in(shards)
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "back"}


def test_the_data_set_can_be_viewed_and_says_how_it_is_fetched(shards: Path, hub: FakeHub) -> None:
    pushed(shards, licence="cc-by-sa-3.0")
    held = hub.files(NAME)
    card = DatasetCard(held["README.md"].decode())
    assert card.data.license == "cc-by-sa-3.0"
    assert f"`sra-data pull {NAME}`" in card.text
    assert next(one["config_name"] for one in card.data.configs) == "corpus"
    for one in card.data.configs:
        start, _, end = one["data_files"].partition("*")
        assert [path for path in held if path.startswith(start) and path.endswith(end)]
    pushed(shards)  # without a licence: the card before said it
    assert DatasetCard(hub.files(NAME)["README.md"].decode()).data.license == "cc-by-sa-3.0"


def test_manifest_and_card_are_committed_last(shards: Path, hub: FakeHub) -> None:
    pushed(shards)
    assert set(hub.sent[-2:]) == {"manifest.json", "README.md"}
    assert len(hub.sent) == len(set(hub.sent)) == len(files_in(shards))


def test_a_push_that_broke_off_leaves_nothing_to_pull_and_goes_on(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.commits_left = 2
    assert refused(pushed, shards).startswith(f"{NAME}: ")
    assert "no shards there (manifest.json is missing)" in refused(pulled, tmp_path / "back")
    assert not list(tmp_path.glob("back*"))
    sent, hub.commits_left = list(hub.sent), None
    assert sent
    pushed(shards)
    assert len(hub.sent) == len(set(hub.sent))  # nothing twice
    assert files_in(pulled(tmp_path / "back")) == files_in(shards)


def test_a_second_push_sends_what_is_new_and_removes_what_is_gone(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    pushed(shards)
    teacher = next((shards / "teachers").iterdir())
    shutil.rmtree(teacher)
    change_manifest(shards, lambda manifest: manifest["teachers"].pop(teacher.name))
    hub.sent.clear()
    hub.files(NAME)["LICENSE"] = b"somebody put it there"
    pushed(shards)
    assert set(hub.sent) == {"manifest.json", "README.md"}
    assert not [path for path in hub.files(NAME) if path.startswith(f"teachers/{teacher.name}/")]
    assert hub.files(NAME)["LICENSE"] == b"somebody put it there"
    assert files_in(pulled(tmp_path / "back")) == files_in(shards)


def test_a_revision_is_a_branch_and_the_main_one_stays_as_it_is(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    pushed(shards, f"{NAME}@v2")
    assert set(hub.files(NAME)) == {".gitattributes"}
    assert "no shards there" in refused(pulled, tmp_path / "main")
    assert files_in(pulled(tmp_path / "back", f"{NAME}@v2")) == files_in(shards)
    assert "there is no such revision" in refused(pulled, tmp_path / "none", f"{NAME}@v3")


# ------------------------------------------------------------------------------------------------- what is refused


def test_damaged_shards_are_not_pushed(shards: Path, hub: FakeHub) -> None:
    part = next((shards / "corpus").glob("part-*.parquet"))
    part.write_bytes(flipped(part.read_bytes()))
    assert f"{part}: " in refused(pushed, shards)
    assert hub.repositories == {}


def test_unfinished_shards_are_not_pushed_as_a_data_set(shards: Path, hub: FakeHub) -> None:
    change_manifest(shards, lambda manifest: [one.update(root=None) for one in manifest["teachers"].values()])
    message = refused(pushed, shards)
    assert "teachers/" in message
    assert "unfinished; run `sra-data cache-teacher" in message
    assert "hf://buckets/owner/name" in message
    assert hub.repositories == {}


def test_a_repository_with_something_else_in_it_is_not_pushed_to(shards: Path, hub: FakeHub) -> None:
    hub.make(NAME, {"train.csv": b"1,2", "README.md": b""})
    assert f"{NAME}: holds train.csv, which is no file of shards" in refused(pushed, shards)
    assert hub.sent == []


def test_who_may_not_write_is_refused_before_the_shards_are_read(shards: Path, hub: FakeHub) -> None:
    hub.make(NAME, {})
    hub.may_write = False
    assert "ann may not write to it" in refused(pushed, shards)
    assert "does not belong to bob" in refused(pushed, shards, "bob/new")
    assert hub.sent == []


def test_private_and_gated_are_asked_for_and_kept(shards: Path, hub: FakeHub, monkeypatch, tmp_path: Path) -> None:
    pushed(shards, private=True, gated="manual")
    assert (hub.repositories[NAME].private, hub.repositories[NAME].gated) == (True, "manual")
    monkeypatch.setenv("HF_TOKEN", "")
    assert "private and not yours to read; check the name, or log in" in refused(pulled, tmp_path / "back")
    hub.repositories[NAME].private = False
    message = refused(pulled, tmp_path / "back")
    assert f"{NAME}: gated, and access was not given to you; ask for it at http://127.0.0.1:" in message
    assert f"/datasets/{NAME}, then log in" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[NAME].gated = None
    assert "exists and is public; leave --private out" in refused(pushed, shards, private=True)


def test_where_the_hub_is_switched_off_nobody_is_asked(shards: Path, tmp_path: Path) -> None:
    for call, place in ((pushed, shards), (pulled, tmp_path / "back")):
        assert refused(call, place) == f"{NAME}: the Hub is switched off (HF_HUB_OFFLINE); unset it"


def test_a_hub_that_is_not_there_is_one_line(shards: Path, hub: FakeHub, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "the Hub cannot be asked" in refused(pulled, tmp_path / "back")
    assert "the Hub cannot be asked" in refused(pushed, shards)


def test_what_came_damaged_is_refused_and_only_that_is_fetched_again(
    shards: Path, hub: FakeHub, tmp_path: Path
) -> None:
    pushed(shards)
    held = hub.files(NAME)
    name = next(path for path in held if path.startswith("corpus/part-") and path.endswith(".parquet"))
    whole = held[name]
    held[name] = flipped(whole)
    message = refused(pulled, tmp_path / "back")
    assert f"{NAME}: what came is damaged ({name}: " in message
    assert not (tmp_path / "back").exists()
    held[name] = whole
    hub.fetched.clear()
    assert files_in(pulled(tmp_path / "back")) == files_in(shards)
    assert set(hub.fetched) - {"manifest.json"} == {name, name.replace(".parquet", ".receipt.json")}
    assert not list(tmp_path.glob(f"*{PULLING}"))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"train.csv": b"1,2"}, "no shards there (manifest.json is missing)"),
        ({"manifest.json": b"{}"}, "no shards that can be read (manifest.json: shard format None"),
        ({"manifest.json": b"["}, "no shards that can be read (manifest.json: damaged, not JSON"),
    ],
)
def test_a_foreign_data_set_is_refused_and_leaves_nothing(files: Files, why: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.make(NAME, files)
    assert why in refused(pulled, tmp_path / "back")
    assert not list(tmp_path.iterdir())


def test_of_a_strangers_data_set_nothing_comes_but_shards(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    pushed(shards)
    hub.files(NAME).update({"corpus/run.py": b"#", "setup.py": b"#", "teachers/other/plan.json": b"{}"})
    assert files_in(pulled(tmp_path / "back")) == files_in(shards)


def test_an_occupied_folder_is_left_alone(shards: Path, hub: FakeHub, tmp_path: Path) -> None:
    pushed(shards)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert "there is something else in it" in refused(pulled, tmp_path / "mine")
    assert files_in(tmp_path / "mine") == {"thesis.txt": b"all of it"}
    back, before = pulled(tmp_path / "back"), files_in(shards)
    hub.fetched.clear()
    summary = pull(PullOptions(place_of(NAME), str(back)), Reporter())
    assert summary.was_there
    assert hub.fetched == ["manifest.json"]
    change_manifest(back, lambda manifest: manifest["teachers"].clear())
    assert "holds other shards than ann/dolly-shards; give another folder" in refused(pulled, back)
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "mine", "back"}
    assert files_in(shards) == before


# ------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ann/data", Place("ann/data")),
        ("ann/data@v1", Place("ann/data", "v1")),
        ("hf://datasets/ann/data@v1", Place("ann/data", "v1")),
        ("hf://buckets/ann/work", Place("ann/work", is_bucket=True)),
        ("hf://buckets/ann/work/a/b/", Place("ann/work", prefix="a/b", is_bucket=True)),
    ],
)
def test_places_are_read_as_they_are_written(text: str, place: Place) -> None:
    assert place_of(text) == place
    assert place_of(str(place)) == place


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("data", "no place on the Hub; write owner/name"),
        ("ann/data@", "no place on the Hub"),
        ("ann/a b", "write owner/name"),
        ("ann/data/more", "write owner/name"),
        ("hf://spaces/ann/data", "neither a data set nor a bucket"),
        ("hf://buckets/ann/work@v1", "a bucket has no revisions"),
        ("hf://buckets/ann/work/../other", "no place on the Hub"),
    ],
)
def test_what_is_no_place_is_refused(text: str, why: str) -> None:
    assert why in refused(place_of, text)


def test_two_revisions_are_refused() -> None:
    assert "two revisions, v1 and v2; leave one out" in refused(place_of, "ann/data@v1", "v2")


# ------------------------------------------------------------------------------------------------- buckets


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bucket that is a folder here: uploads to one go through a service of its own that no test has."""
    folder = tmp_path / "bucket"

    def inside(uri: str) -> Path:
        return folder / uri.removeprefix("hf://buckets/ann/work").strip("/")

    class Api:
        def create_bucket(self, name: str, *, private: bool | None, exist_ok: bool) -> None:
            assert (name, exist_ok) == ("ann/work", True)
            folder.mkdir(exist_ok=True)

        def sync_bucket(self, source: str, dest: str, *, include=None, exclude=(), quiet: bool = False) -> None:
            is_push = dest.startswith("hf://")
            here, there = (Path(source), inside(dest)) if is_push else (inside(source), Path(dest))
            for path in sorted(here.rglob("*")) if here.is_dir() else []:
                name = path.relative_to(here).as_posix()
                is_wanted = include is None or any(fnmatch(name, pattern) for pattern in include)
                if path.is_file() and is_wanted and not any(fnmatch(name, pattern) for pattern in exclude):
                    (there / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, there / name)

        def batch_bucket_files(self, name: str, *, add: list[tuple[bytes, str]]) -> None:
            for content, place in add:
                (folder / place).write_bytes(content)

        def list_bucket_tree(self, name: str, *, prefix: str | None, recursive: bool) -> list[SimpleNamespace]:
            files = [path for path in folder.rglob("*") if path.is_file()]
            found = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
            return [SimpleNamespace(path=path, size=size) for path, size in found if path.startswith(prefix or "")]

        def download_bucket_files(self, name: str, files: list[tuple[str, Path]]) -> None:
            for place, path in files:
                shutil.copyfile(folder / place, path)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return folder


def unfinished(shards: Path) -> str:
    """Take the seal and a part from a teacher's pages; which."""
    folder = next((shards / "teachers").iterdir())
    change_manifest(shards, lambda manifest: manifest["teachers"][folder.name].update(root=None))
    (folder / "part-00000.parquet").unlink()
    (folder / "part-00000.receipt.json").unlink()
    return f"teachers/{folder.name}"


@pytest.mark.parametrize("place", ["hf://buckets/ann/work", "hf://buckets/ann/work/monday/one"])
def test_an_unfinished_folder_goes_to_a_bucket_and_comes_back(
    place: str, shards: Path, bucket: Path, tmp_path: Path
) -> None:
    section = unfinished(shards)
    (shards / section / "part-00001.parquet.tmp").write_bytes(b"being written")
    (shards / "notes.txt").write_text("mine")
    summary = push(PushOptions(str(shards), place_of(place)), Reporter())
    assert summary.unfinished == (section,)
    summary_back = pull(PullOptions(place_of(place), str(tmp_path / "back")), Reporter())
    assert summary_back.unfinished == (section,)
    (shards / section / "part-00001.parquet.tmp").unlink()
    (shards / "notes.txt").unlink()
    assert files_in(tmp_path / "back") == files_in(shards)
    entries = {entry.section: entry for entry in list_shards(tmp_path / "back").entries}
    assert not entries[section].is_sealed
    assert entries["corpus"].is_sealed


def test_damage_in_an_unfinished_folder_is_refused_at_both_ends(shards: Path, bucket: Path, tmp_path: Path) -> None:
    unfinished(shards)
    part = next((shards / "corpus").glob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(flipped(whole))
    assert f"{part}: " in refused(pushed, shards, "hf://buckets/ann/work")
    assert not bucket.exists()
    part.write_bytes(whole)
    pushed(shards, "hf://buckets/ann/work")
    (bucket / "corpus" / part.name).write_bytes(flipped(whole))
    assert "what came is damaged" in refused(pulled, tmp_path / "back", "hf://buckets/ann/work")
    (bucket / "corpus" / part.name).write_bytes(whole)
    assert files_in(pulled(tmp_path / "back", "hf://buckets/ann/work")) == files_in(shards)


def test_what_a_bucket_has_not_is_refused(shards: Path, bucket: Path) -> None:
    message = refused(pushed, shards, "hf://buckets/ann/work", gated="auto")
    assert "a bucket is not gated and has no card; leave --gated and --licence out" in message


def test_a_library_without_buckets_is_said(shards: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", object)
    message = refused(pushed, shards, "hf://buckets/ann/work")
    assert "knows no buckets; run `pip install -U huggingface_hub`, or finish the shards" in message
