"""Laws of cutting a global batch by tokens: every row once, equal numbers, budgets kept, nothing wasted."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_train.contract import MethodSetting, ModelShape
from sra_train.data.micro_batches import BUDGETS, TokenBudget, budget_of_device, plan_micro_batches
from sra_train.data.order import NO_ROW
from sra_train.methods.sft import SFT, SFTOptions
from sra_train.methods.sra import SRAOptions
from sra_train.student import StudentModel
from tests.unit.methods import worlds

LENGTHS = st.lists(st.integers(1, 60), min_size=0, max_size=24)
BUDGET = st.builds(
    TokenBudget, st.integers(1, 400), st.integers(0, 80), st.one_of(st.none(), st.integers(min_value=1, max_value=9))
)
WORLD_SIZES = st.integers(1, 5)


def batch_of(lengths: list[int], *, empty: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers that are not their places, and their lengths, with empty slots behind."""
    rows = np.array([*range(100, 100 + len(lengths)), *[NO_ROW] * empty], dtype=np.int64)
    return rows, np.array(lengths + [0] * empty, dtype=np.int64)


def plans(rows: np.ndarray, lengths: np.ndarray, world_size: int, budget: TokenBudget) -> list[list[list[int]]]:
    """Rank -> micro-batches -> rows."""
    return [
        [piece.tolist() for piece in plan_micro_batches(rows, lengths, rank=rank, world_size=world_size, budget=budget)]
        for rank in range(world_size)
    ]


def padded(piece: list[int], tokens: dict[int, int]) -> int:
    return 1 if piece == [NO_ROW] else len(piece) * max(tokens[row] for row in piece)


def cost(pieces: list[list[int]], tokens: dict[int, int], budget: TokenBudget) -> int:
    return sum(padded(piece, tokens) + budget.overhead_tokens for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, WORLD_SIZES, BUDGET, st.integers(0, 4))
def test_every_row_runs_exactly_once_in_equally_many_micro_batches_on_every_rank(
    lengths, world_size, budget, empty
) -> None:
    rows, sizes = batch_of(lengths, empty=empty)
    ranks = plans(rows, sizes, world_size, budget)
    assert len({len(pieces) for pieces in ranks}) == 1
    pieces = [piece for pieces in ranks for piece in pieces]
    real = [piece for piece in pieces if piece != [NO_ROW]]
    assert all(piece for piece in pieces)
    assert sorted(row for piece in real for row in piece) == rows[rows != NO_ROW].tolist()
    # empty micro-batches stand only where rows are fewer than places
    assert len(real) == min(len(pieces), len(lengths))


@settings(max_examples=200, deadline=None)
@given(LENGTHS, WORLD_SIZES, BUDGET)
def test_no_micro_batch_goes_over_the_budget_unless_it_is_a_single_row(lengths, world_size, budget) -> None:
    rows, sizes = batch_of(lengths)
    tokens = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    for piece in (piece for pieces in plans(rows, sizes, world_size, budget) for piece in pieces):
        assert len(piece) == 1 or padded(piece, tokens) <= budget.most_tokens
        assert budget.most_rows is None or len(piece) <= budget.most_rows


@settings(max_examples=100, deadline=None)
@given(LENGTHS, WORLD_SIZES, BUDGET)
def test_the_largest_micro_batch_comes_first(lengths, world_size, budget) -> None:
    rows, sizes = batch_of(lengths)
    tokens = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    for pieces in plans(rows, sizes, world_size, budget):
        found = [padded(piece, tokens) for piece in pieces]
        assert found == sorted(found, reverse=True)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, WORLD_SIZES, BUDGET, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_rows_are_given_in(lengths, world_size, budget, random) -> None:
    rows, sizes = batch_of(lengths, empty=2)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    assert plans(rows[shuffled], sizes[shuffled], world_size, budget) == plans(rows, sizes, world_size, budget)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), BUDGET)
def test_one_rank_computes_no_more_than_the_best_of_all_partitions(lengths, budget) -> None:
    rows, sizes = batch_of(lengths)
    tokens = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    (pieces,) = plans(rows, sizes, 1, budget)
    allowed = [
        partition
        for partition in partitions(rows.tolist())
        if all(
            len(piece) == 1
            or (padded(piece, tokens) <= budget.most_tokens and len(piece) <= (budget.most_rows or len(piece)))
            for piece in partition
        )
    ]
    assert cost(pieces, tokens, budget) == min(cost(partition, tokens, budget) for partition in allowed)


def partitions(rows: list[int]):
    """All ways to put rows into groups."""
    if not rows:
        yield []
        return
    first, *rest = rows
    for partition in partitions(rest):
        yield [[first], *partition]
        for place in range(len(partition)):
            yield [*partition[:place], [first, *partition[place]], *partition[place + 1 :]]


@settings(max_examples=100, deadline=None)
@given(LENGTHS.filter(bool), WORLD_SIZES, st.integers(0, 80))
def test_no_rank_does_more_than_all_rows_in_one_micro_batch(lengths, world_size, overhead) -> None:
    rows, sizes = batch_of(lengths)
    tokens = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    budget = TokenBudget(most_tokens=len(lengths) * max(lengths), overhead_tokens=overhead)
    slowest = max(cost(pieces, tokens, budget) for pieces in plans(rows, sizes, world_size, budget))
    assert slowest <= cost([rows.tolist()], tokens, budget)


def test_a_worked_example() -> None:
    rows, lengths = batch_of([9, 50, 8, 48])
    assert plans(rows, lengths, 1, TokenBudget(400, 10)) == [[[101, 103], [100, 102]]]
    assert plans(rows, lengths, 1, TokenBudget(400, 200)) == [[[101, 103, 100, 102]]]
    assert plans(rows, lengths, 2, TokenBudget(400, 10)) == [[[101], [102]], [[103], [100]]]
    assert plans(*batch_of([9]), 2, TokenBudget(400, 10)) == [[[100]], [[NO_ROW]]]
    assert plans(*batch_of([], empty=3), 2, TokenBudget(400, 10)) == [[[NO_ROW]], [[NO_ROW]]]


def test_a_user_limits_what_the_device_allows() -> None:
    assert budget_of_device("cpu") == BUDGETS["cpu"]
    assert budget_of_device("xpu") == BUDGETS["cuda"]
    limited = BUDGETS["cuda"].limited(most_tokens=512, most_rows=4)
    assert (limited.most_tokens, limited.most_rows) == (512, 4)
    assert limited.overhead_tokens == BUDGETS["cuda"].overhead_tokens
    assert BUDGETS["cpu"].limited() == BUDGETS["cpu"]
    assert str(limited) == "at most 512 tokens and 4 examples"


# ---------------------------------------------------------------- gradients


@pytest.fixture
def student_of():
    """Method name -> a GPT-2 in miniature with that method, in double precision; the same every time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def build(name: str) -> StudentModel:
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=worlds.STUDENT_LAYERS,
            n_embd=worlds.STUDENT_WIDTH,
            n_head=2,
            n_positions=32,
            vocab_size=worlds.STUDENT_VOCABULARY,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        if name == "sft":
            shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
            return StudentModel(GPT2LMHeadModel(config), SFT(SFTOptions(), MethodSetting(student=shape))).double()
        head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
        return StudentModel(GPT2LMHeadModel(config), worlds.make_method(SRAOptions(), head)).double()

    return build


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["sft", "sra"])
def test_gradients_of_a_step_cut_by_tokens_are_those_of_the_uncut_step(student_of, name, world_size) -> None:
    sizes = [[(1, 2), (2, 1)], [], [(3, 3)], [(1, 1), (1, 1), (2, 4)], [(4, 1)], [(2, 2), (3, 1), (1, 1), (4, 2)]]
    examples = [worlds.make_example(seed, sizes=one) for seed, one in enumerate(sizes)]
    totals = worlds.totals_of(examples)
    student = student_of(name)

    def gradients(pieces: list[list[int]]) -> list[torch.Tensor]:
        student.zero_grad()
        for piece in pieces:
            batch, _, _ = worlds.make_batch([examples[row] for row in piece])
            student(batch, totals)["total"].backward()
        return [parameter.grad.clone() for parameter in student.parameters()]

    rows, lengths = np.arange(len(examples)), np.array([len(one.ids) for one in examples])
    cut = plans(rows, lengths, world_size, TokenBudget(most_tokens=16, overhead_tokens=2))
    assert all(len(pieces) > 1 for pieces in cut)
    for part, whole in zip(
        gradients([piece for pieces in cut for piece in pieces]), gradients([rows.tolist()]), strict=True
    ):
        # sra weighs tokens by the student's own attention row, which is float32 in any model
        tolerance = 1e-12 if name == "sft" else 1e-6
        torch.testing.assert_close(part, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max()))


# ---------------------------------------------------------------- real lengths


@pytest.fixture(scope="module")
def dolly_lengths(shared_folder) -> np.ndarray:
    """GPT-2 tokens of some Dolly examples with their end-of-sequence, cut to the student's positions."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shared_folder / "tokenizers" / "gpt2" / "tokenizer.json"))
    with open(shared_folder / "data" / "dolly" / "train.jsonl", encoding="utf-8") as lines:
        texts = [row["prompt"] + row["response"] for row in map(json.loads, islice(lines, 1024))]
    lengths = np.array([len(one.ids) + 1 for one in tokenizer.encode_batch(texts)])
    return np.minimum(lengths, 1024)


def test_little_is_padded_at_the_published_batch_size(dolly_lengths) -> None:
    real = computed = 0
    for start in range(0, len(dolly_lengths), 16):
        rows = np.arange(start, start + 16)
        for piece in plan_micro_batches(rows, dolly_lengths[rows], rank=0, world_size=1, budget=BUDGETS["cpu"]):
            real += int(dolly_lengths[piece].sum())
            computed += len(piece) * int(dolly_lengths[piece].max())
    assert real / computed >= 0.85


@pytest.mark.parametrize(("batch_size", "most"), [(32, 1.15), (64, 1.06), (128, 1.05), (512, 1.02)])
def test_eight_ranks_have_about_equally_much_to_do(dolly_lengths, batch_size, most) -> None:
    """Against the mean of all ranks, or the longest row alone where that is more."""
    budget = BUDGETS["cpu"]
    ratios = []
    for start in range(0, len(dolly_lengths) - batch_size + 1, batch_size):
        rows = np.arange(start, start + batch_size)
        lengths = dolly_lengths[rows]
        tokens = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
        costs = [cost(pieces, tokens, budget) for pieces in plans(rows, lengths, 8, budget)]
        ratios.append(max(costs) / max(np.mean(costs), lengths.max() + budget.overhead_tokens))
    assert np.mean(ratios) <= most
