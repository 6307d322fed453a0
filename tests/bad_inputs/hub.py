"""`sra-data push` and `pull`: names that are no places, shards that are none, and a Hub that is switched off."""

from __future__ import annotations

from tests.bad_inputs.case import Case, usage, written

PUSH, PULL = "sra-data push --json", "sra-data pull --json"
OFFLINE = "HF_HUB_OFFLINE"

CASES: list[Case] = [
    *usage(
        "push and pull",
        {
            "push without a name": (PUSH, ("OWNER/NAME",)),
            "pull without a name": (PULL, ("OWNER/NAME",)),
            "gated by a riddle": (f"{PUSH} SHARDS ann/data --gated riddle", ("--gated", "riddle")),
        },
        code=2,
    ),
    *usage(
        "push and pull",
        {
            "a folder and no name": (f"{PUSH} SHARDS", ("owner/name",)),
            "the name before the folder": (f"{PUSH} ann/data shards", ("shards", "owner/name")),
            "three names": (f"{PUSH} SHARDS ann/data more", ("3 names", "sra-data push SHARDS owner/name")),
            "a name of three parts": (f"{PUSH} SHARDS a/b/c", ("a/b/c", "owner/name")),
            "two revisions": (f"{PULL} ann/data@v1 out --revision v2", ("v1 and v2", "leave one out")),
            "a bucket's revision": (f"{PULL} hf://buckets/ann/work@v1 out", ("no revisions",)),
            "a space": (f"{PULL} hf://spaces/ann/demo out", ("neither a data set nor a bucket",)),
            "out of the bucket": (f"{PULL} hf://buckets/ann/work/../b out", ("no place on the Hub",)),
            "no shards to push": (f"{PUSH} nowhere ann/data", ("nowhere", "sra-data align")),
            "a file to push": (f"{PUSH} DATA ann/data", ("data.jsonl",)),
            "pushed while the Hub is off": (f"{PUSH} SHARDS ann/data", ("ann/data", OFFLINE, "unset it")),
            "pulled while the Hub is off": (f"{PULL} ann/data out", ("ann/data", OFFLINE, "unset it")),
            "a bucket while the Hub is off": (f"{PULL} hf://buckets/ann/work out", (OFFLINE, "unset it")),
        },
    ),
    Case(
        "push and pull: a manifest of somebody else",
        f"{PUSH} here ann/data",
        ("manifest.json", "shard format"),
        written("here/manifest.json", "{}"),
    ),
]
