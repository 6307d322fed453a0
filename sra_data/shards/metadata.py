"""What the JSON of a folder of shards may say: types, bounds, and what must agree, in one place.

Everything that is read from a manifest, a plan, a receipt, a column's definition or the header of a safetensors file
goes through here before it is believed: no size, count or path of a file is used that was not checked. What is refused
is one line: the file, the field, what it holds and what to do. That the bytes are those that were written is the seals'
matter (durable.py, receipts.py); this is about what a stranger's file could say under a seal of its own.

Unknown facts of a section are kept: a stage may record more than is read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sra_data.errors import ShardError
from sra_data.terminal import UNPRINTABLE

LARGEST_COUNT = 1 << 53  # what any JSON reader keeps exactly
LARGEST_NUMBER = 1 << 31  # of layers, channels, ids
MOST_PARTS = 1 << 24
LONGEST_HEADER = 100 << 20  # of a safetensors file, as its own library bounds it
LONGEST_SHOWN = 60
BYTES_OF_A_ROW = 8  # and more: its hashes, which are not compressed


def _folder_name(name: str) -> str:
    """A name that stays in its folder."""
    if (
        name in ("", ".", "..")
        or len(name) > 255
        or any(letter in "/\\" or ord(letter) < 32 or UNPRINTABLE.match(letter) for letter in name)
    ):
        raise ValueError("not the name of a folder or file")
    return name


def _section_name(name: str) -> str:
    group, slash, key = name.partition("/")
    if name != "corpus" and (group not in ("sides", "alignments", "teachers") or not slash):
        raise ValueError("not corpus, sides/.., alignments/.. or teachers/..")
    if slash:
        _folder_name(key)
    return name


Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Number = Annotated[int, Field(ge=0, lt=LARGEST_NUMBER)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FileName = Annotated[str, AfterValidator(_folder_name)]
SectionName = Annotated[str, AfterValidator(_section_name)]
Kind = Literal["corpus", "side", "alignment", "teacher"]
Facts = dict[str, Any]


class Strict(BaseModel):
    """No conversions: 3.0 is no count and "3" is none either."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class PlanRecord(Strict):
    """plan.json."""

    format_version: int
    kind: Kind
    fingerprint: Facts
    units: Annotated[list[list[Any]], Field(max_length=MOST_PARTS)]
    files: list[FileName]
    made_from: list[SectionName]
    seal: str

    @model_validator(mode="after")
    def _units_follow_each_other(self) -> PlanRecord:
        before, stopped = -1, 0
        for unit in self.units:
            if len(unit) != 4 or any(type(number) is not int for number in unit[:3]):
                raise ValueError(f"unit {_short(unit)} is not part, start, stop and hint")
            part, start, stop = unit[:3]
            if not (before < part < MOST_PARTS and stopped <= start < stop <= LARGEST_COUNT):
                raise ValueError(f"unit {_short(unit[:3])} does not follow part {before} up to row {stopped}")
            before, stopped = part, stop
        return self


class ReceiptRecord(Strict):
    """part-N.receipt.json."""

    part: Annotated[int, Field(ge=0, lt=MOST_PARTS)]
    rows: Count
    row_groups: list[Annotated[int, Field(ge=1, le=LARGEST_COUNT)]]
    bytes: Count
    sha256: Sha256
    footer: Xxh3
    rows_root: Sha256
    notes: Facts
    seal: str

    @model_validator(mode="after")
    def _groups_hold_the_rows(self) -> ReceiptRecord:
        if sum(self.row_groups) != self.rows:
            raise ValueError(f"row groups of {sum(self.row_groups)} rows for {self.rows}")
        if self.rows * BYTES_OF_A_ROW > self.bytes:
            raise ValueError(f"{self.rows} rows in {self.bytes} bytes")
        return self


class FileReceiptRecord(Strict):
    """The receipt of a file beside the parts."""

    bytes: Count
    sha256: Sha256
    header: Xxh3
    seal: str


class SectionSeal(Strict):
    """What a sealed section says of its folder's metadata: see receipts.py."""

    facts: Sha256
    plan: Sha256
    receipts: Sha256
    files: dict[FileName, Sha256]


class WindowsRecord(Strict):
    """What a corpus's section says of long texts that were cut into windows."""

    overlap: Count
    texts: Count
    windows: Count


class HeardRecord(Strict):
    """What a teacher gives a student's tokens by one map of ids."""

    share: float
    log2_prob: float | None


class ReachRecord(Strict):
    """How far a teacher reaches one student's tokens; training asks the student about the same rows."""

    student: str
    starts: Count
    own: float
    equal_bytes: HeardRecord
    first_piece: HeardRecord
    rows: list[Count] = []


class ImportRecord(Strict):
    """From which capture of another tool a teacher's pages were taken.

    `rows` are its own, `exact_k` of a top k were stored as they were. `rescaled` are positions whose probabilities have
    a sum above 1 (`largest_sum`), `repeated` ids that stand twice at one: known once all units are there.
    """

    format: Literal["distillkit", "speculators"]
    capture: FileName
    files: Count
    rows: Count
    layers: list[Number] = []
    exact_k: Number | None = None
    rescaled: Count = 0
    repeated: Count = 0
    largest_sum: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0


class SectionRecord(BaseModel):
    """A section of the manifest; the facts that are read anywhere, each with its type."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    fingerprint: Facts | None = None
    root: Sha256 | None = None
    num_parts: Count | None = None
    num_rows: Count | None = None
    num_bytes: Count | None = None
    index_sha256: Sha256 | None = None
    granularity: Literal["token", "span"] | None = None
    made_from: dict[SectionName, Sha256] = {}
    seal: SectionSeal | None = None
    # corpus
    source: list[str] | None = None
    num_dev: Count | None = None
    left_out: dict[str, Count] = {}
    windows: WindowsRecord | None = None
    # sides
    tokenizer_name: str = ""
    tokenizer: str = ""
    max_positions: Count | None = None
    max_length: Count | None = None
    overlong: str | None = None
    # alignments
    options: Facts = {}
    shared_ids: Number = 0
    # teachers
    name: str = ""
    revision: str | None = None
    adapter: str | None = None
    side: FileName = "none"
    alignment: SectionName | None = None
    num_layers: Number | None = None
    layers: list[Number] = []
    hidden_size: Number = 0
    hidden_dtype: str = ""
    attention: bool = False
    top_k: Number = 0
    vocabulary_size: Number = 0
    temperatures: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = []
    failed_examples: list[str] = []
    num_splits: Count = 0
    faithfulness: Facts = {}
    reach: list[ReachRecord] | None = None
    imported: ImportRecord | None = None

    @model_validator(mode="after")
    def _a_root_has_its_facts(self) -> SectionRecord:
        needed = ("fingerprint", "num_parts", "num_rows", "num_bytes", "index_sha256", "granularity", "seal")
        lacking = [name for name in needed if getattr(self, name) is None]
        if self.root is not None and lacking:
            raise ValueError(f"sealed without {', '.join(lacking)}")
        if self.num_dev is not None and self.num_rows is not None and self.num_dev > self.num_rows:
            raise ValueError(f"{self.num_dev} of {self.num_rows} rows are development")
        deepest = max(self.layers, default=0)
        if self.num_layers is None:
            if "num_layers" in self.model_fields_set:
                raise ValueError("num_layers is null")
        elif deepest > self.num_layers:
            raise ValueError(f"layer {deepest} of {self.num_layers}")
        return self


class ModelRecord(Strict):
    """A model of a pair."""

    name: str
    revision: str | None


class PairRecord(Strict):
    """Which teacher and student were asked for."""

    teacher: ModelRecord
    student: ModelRecord
    teacher_side: FileName
    student_side: FileName
    alignment: FileName


class ManifestRecord(Strict):
    """manifest.json."""

    format_version: int
    corpus: SectionRecord | None = None
    sides: dict[FileName, SectionRecord] = {}
    alignments: dict[FileName, SectionRecord] = {}
    teachers: dict[FileName, SectionRecord] = {}
    pairs: list[PairRecord] = []
    seal: str

    @model_validator(mode="after")
    def _alignments_have_two_sides(self) -> ManifestRecord:
        wrong = [name for name in self.alignments if name.count("~") < 1]
        if wrong:
            raise ValueError(f"alignment {_short(wrong[0])} does not name two sides")
        return self


class ColumnRecord(Strict):
    """What a part says of one of its value columns."""

    codec: Annotated[str, Field(max_length=64)]
    shape: list[Number | Literal["positions", "any"]]
    compression: Literal["none", "zstd", "lz4"]
    parameters: Facts
    nullable: bool


class TensorRecord(Strict):
    """One tensor in the header of a safetensors file; `data_offsets` are bytes behind the header."""

    dtype: Literal["BF16", "F16", "F32", "I32", "I64"]
    shape: Annotated[list[Count], Field(max_length=8)]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]

    @property
    def num_bytes(self) -> int:
        """By its shape."""
        return math.prod(self.shape) * {"F32": 4, "I32": 4, "I64": 8}.get(self.dtype, 2)


class HeaderRecord(Strict):
    """The header of a safetensors file: its texts, and its tensors one behind the other."""

    metadata: dict[str, str]
    tensors: dict[str, TensorRecord]

    @model_validator(mode="after")
    def _without_gaps(self) -> HeaderRecord:
        end = 0
        for name, tensor in self.tensors.items():
            start, stop = tensor.data_offsets
            if start != end or stop - start != tensor.num_bytes:
                raise ValueError(f"tensor {_short(name)}: bytes {start}:{stop} for shape {tensor.shape} behind {end}")
            end = stop
        return self

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


Record = TypeVar("Record", bound=BaseModel)


def checked(record: type[Record], value: object, *, where: object, remedy: str) -> Record:
    """A value as the record it must be.

    Args:
        record: one of the classes above.
        value: what a file says.
        where: the file, for the message; `remedy` is its end.

    Raises:
        ShardError: At the first field that is not of its type, beyond its bounds, or at odds with another.
    """
    try:
        return record.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "content"
        had = "" if first["type"] == "missing" else f", had {_short(first['input'])}"
        message = first["msg"].removeprefix("Value error, ")
        raise ShardError(_one_line(f"{where}: damaged ({field}: {message}{had}); {remedy}")) from None
    except RecursionError:
        raise ShardError(f"{where}: damaged (nested too deep); {remedy}") from None


def checked_header(text: bytes, *, num_bytes: int, where: object, remedy: str) -> HeaderRecord:
    """The JSON header of a safetensors file of `num_bytes` bytes of tensors.

    Raises:
        ShardError: If it is no such header, or its tensors are not exactly the bytes there are.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, Mapping):
            raise ValueError(f"a {type(found).__name__} in place of an object")
    except (ValueError, RecursionError) as error:
        raise ShardError(_one_line(f"{where}: damaged (header: {error}); {remedy}")) from None
    tensors = {name: entry for name, entry in found.items() if name != "__metadata__"}
    value = {"metadata": found.get("__metadata__", {}), "tensors": tensors}
    header = checked(HeaderRecord, value, where=where, remedy=remedy)
    if header.num_bytes != num_bytes:
        raise ShardError(f"{where}: damaged (tensors of {header.num_bytes} bytes in {num_bytes}); {remedy}")
    return header


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _one_line(text: str) -> str:
    """Printable, whatever a file held."""
    flat = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in flat)
