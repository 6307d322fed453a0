"""`sra-data card`: a README.md for a folder of shards that is given to others, with what the Hub reads of a data set.

It says what the folder holds and how to open it, from the manifest, plans and receipts alone; folders that are not
sealed are left out. Names of local folders are shortened: where they lay says nothing to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from sra_data.cards import (
    LICENCE,
    MOST_BYTES,
    hub_data,
    licence_in_words,
    licence_of,
    short_name,
    short_source,
)
from sra_data.errors import ConfigError, ShardError
from sra_data.shards.durable import publish, staged
from sra_data.shards.store import folder_of, publish_beside
from sra_data.stages.list import Entry, Listing, list_shards
from sra_data.terminal import bytes_in_words

TAG = "sra-shards"  # by which a card of ours is known
# Fewer rows than that -> the Hub's name of the size.
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
FETCHING = "(fetching)"  # stands for the words on where it is fetched from
HOW_TO_READ = f"""\
## How to read it

{FETCHING}```python
import sra_data

with sra_data.open_shards("FOLDER") as shards:  # where this folder lies
    print(shards.corpus.read([0])[0].response)
```

Everything is Parquet, JSON and safetensors, so other tools open it too. Train a student from it with
`sra-train run FOLDER`; `sra-data list FOLDER` says more, `sra-data verify FOLDER` checks every byte.
"""


@dataclass(frozen=True)
class CardSummary:
    """What was written.

    Attributes:
        path: the card.
        sections: the folders it describes.
        licence: of the corpus, where it is known.
    """

    path: str
    sections: tuple[str, ...]
    licence: str | None

    def lines(self) -> list[str]:
        """It in words."""
        unknown = "unknown: say it with --licence before you give the corpus away"
        return [
            f"{self.path}: {len(self.sections)} folders described; licence of the corpus: {self.licence or unknown}",
            f"to publish: sra-data push {Path(self.path).parent} OWNER/NAME",
        ]


def write_card(shards: str | Path, *, licence: str | None = None, hub_id: str | None = None) -> CardSummary:
    """Write README.md into a folder of shards, in place of one that was written so before.

    Args:
        shards: the folder.
        licence: of the corpus, as the Hub names it ("cc-by-sa-3.0"); where it is not given, what the Hub data set says
            that the corpus is from, or else the card before this one.
        hub_id: where the folder will lie on the Hub, for the words on how to read it.

    Raises:
        ConfigError: If that is no name of a licence.
        ShardError: If there are no shards, the corpus is not sealed, README.md is somebody else's or cannot be written.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(f"--licence {licence}: no identifier of a licence; write, say, cc-by-sa-3.0")
    listing, path = list_shards(shards), folder_of(shards) / "README.md"
    sealed = [entry for entry in listing.entries if entry.is_sealed]
    if not any(entry.section == "corpus" for entry in sealed):
        raise ShardError(f"{shards}: its corpus is not finished; run `sra-data align` to its end first")
    refuse_foreign_card(path)
    known = {"license": licence} if licence is not None else licence_of_corpus(listing) or licence_of(str(shards))
    card = DatasetCard(f"---\n{card_data(sealed, known).to_yaml()}\n---\n\n{card_text(sealed, known, hub_id)}")
    with staged(path) as file:
        file.write(str(card).encode())
        publish(file, path)
    publish_beside(path)
    return CardSummary(str(path), tuple(entry.section for entry in sealed), licence_in_words(known) if known else None)


def refuse_foreign_card(path: Path) -> None:
    """Leave a README.md alone that is not one of ours.

    Raises:
        ShardError: If there is one.
    """
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        if f"- {TAG}\n" in file.read(MOST_BYTES).partition("\n---\n")[0]:
            return
    raise ShardError(f"{path}: not a card that `sra-data card` wrote; move it away to have one written")


def licence_of_corpus(listing: Listing) -> dict[str, str]:
    """The licence of the Hub data set that all of the corpus comes from, if it is one that says it."""
    (corpus,) = listing.of("corpus")
    names = {hub_data(source) for source in corpus.facts.get("source") or []}
    (name,) = names if len(names) == 1 else (None,)
    return {} if name is None else licence_of(name, kind="dataset")


def card_data(sealed: list[Entry], licence: dict[str, str]) -> DatasetCardData:
    """What the Hub reads: one configuration for each folder of Parquet."""
    corpus = next(entry for entry in sealed if entry.section == "corpus")
    sources = [name for name in map(hub_data, corpus.facts["source"] or []) if name is not None]
    size = next((name for most, name in SIZES if corpus.facts["examples"] < most), "n>10M")
    teachers = any(entry.section.startswith("teachers/") for entry in sealed)
    data: dict[str, Any] = {
        "configs": [
            {
                "config_name": entry.section.replace("/", "."),
                "data_files": f"{entry.section}/part-*.parquet",
                **({"default": True} if entry is corpus else {}),
            }
            for entry in sealed
        ],
        **licence,
    }
    return DatasetCardData(
        size_categories=[size],
        source_datasets=sources or None,
        task_categories=["text-generation"],
        tags=[TAG, "sra-distill", *(["knowledge-distillation"] if teachers else [])],
        **data,
    )


def card_text(sealed: list[Entry], licence: dict[str, str], hub_id: str | None = None) -> str:
    """What people read."""
    lines = [
        "# Shards of a corpus",
        "",
        "A corpus, how tokenizers cut it, which spans the cuts share, and what teachers said about it:"
        " for distillation across tokenizers.",
        "",
        "| folder | holds | on disk |",
        "|---|---|---:|",
        *(
            f"| `{entry.section}` | {'; '.join(_holds(entry)).replace('|', '/')} | {bytes_in_words(entry.num_bytes)} |"
            for entry in sealed
        ),
        "",
        f"Licence of the corpus: {licence_in_words(licence) if licence else 'not recorded'}. What a teacher said may be"
        " under the terms of that teacher's licence."
        if any(entry.section.startswith("teachers/") for entry in sealed)
        else f"Licence of the corpus: {licence_in_words(licence) if licence else 'not recorded'}.",
        "",
        HOW_TO_READ.replace(FETCHING, "" if hub_id is None else f"Fetch it with `sra-data pull {hub_id}`.\n\n"),
    ]
    return "\n".join(lines)


def _holds(entry: Entry) -> Iterator[str]:
    """A folder in words, without where anything lay."""
    facts, group = entry.facts, entry.section.partition("/")[0]
    if group == "corpus":
        yield f"{facts['examples']:,} examples ({facts['train']:,} train, {facts['dev']:,} dev)"
        yield f"from {', '.join(map(short_source, facts['source'] or ['an unnamed source']))}"
    elif group == "sides":
        yield f"as the tokenizer of {_model(facts['tokenizer'], facts['revision'])} reads it"
        yield f"{facts['tokens']:,} tokens, {facts['response_tokens']:,} of responses"
    elif group == "alignments":
        yield f"{facts['spans']:,} spans"
        if facts["covered"] is not None:
            yield f"{facts['covered']:.1%} of the responses' characters"
    else:
        yield f"what {_model(facts['model'], facts['revision'])} said"
        yield f"{facts['positions']:,} {'spans' if facts['granularity'] == 'span' else 'positions'}"
        layers = ", ".join(map(str, facts["layers"] or []))
        yield f"layers {layers or 'none'} of {facts['num_layers']} in {facts['hidden_dtype']}, top {facts['top_k']}"
        if facts["imported"]:
            yield f"imported from a capture of {facts['imported']}, not compared with the live model"


def _model(name: str | None, revision: str | None) -> str:
    short = "an unnamed model" if name is None else f"`{short_name(name)}`"
    return f"{short} at {revision}" if revision else short
