"""Laws of several teachers: L = alpha CE + (1 - alpha) sum_j lambda_j D_j.

Each has its own width, tokenizer, number of layers and spans.
"""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import ConfigError
from sra_train.contract import LossTerms, MethodSetting, ModelShape, StudentOutput
from sra_train.methods import SRA
from sra_train.methods.sra import SRAOptions
from tests.unit.methods import worlds
from tests.unit.methods.test_laws import VARIANTS

SIZES = [[(1, 2), (2, 1), (2, 3)], [], [(3, 1), (1, 1)]]
OTHER_SIZES = [[(3, 1), (1, 4), (1, 1)], [], [(1, 3), (3, 2)]]  # the same tokens of the student, cut elsewhere
OTHER_WIDTH, OTHER_LAYERS = 5, 2
OTHER = worlds.Tokenizer(size=11, shared=((1, 4), (2, 0), (3, 7), (6, 2), (9, 10)), doubles={8: 3}, end=(12, 9))
SHARES = (0.3, 0.7)


class World:
    """The same three examples as two teachers have them, and everything that is trained as leaves."""

    def __init__(self, variant: str) -> None:
        self.options = SRAOptions(**VARIANTS[variant])
        self.heads = [
            worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH),
            worlds.make_head(21, OTHER.size, OTHER_WIDTH, bias=True, softcap=4.0),
        ]
        self.first = [worlds.make_example(place, sizes=sizes) for place, sizes in enumerate(SIZES)]
        form = {"teacher_width": OTHER_WIDTH, "teacher_layers": OTHER_LAYERS}
        self.second = [
            worlds.another_teacher(one, 50 + place, sizes=sizes, **form)
            for place, (one, sizes) in enumerate(zip(self.first, OTHER_SIZES, strict=True))
        ]
        for rows, head in zip((self.first, self.second), self.heads, strict=True):
            worlds.add_top_k(rows, head, k=5)
        self.student_head = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
        self.student_head.weight.requires_grad_(True)
        self.totals = worlds.totals_of(self.first)

    def method(self, *chosen: int, shares: tuple[float, ...]) -> SRA:
        known = [
            {"layers": worlds.TEACHER_LAYERS},
            {"layers": OTHER_LAYERS, "tokenizer": OTHER},
        ]
        teachers = [
            worlds.teacher_setting(self.heads[which], name=f"teacher-{place}", weight=share, **known[which])
            for place, (which, share) in enumerate(zip(chosen, shares, strict=True))
        ]
        return worlds.make_method(self.options, None, teachers=teachers)

    def run(self, method: SRA, *rows: list[worlds.Example | None]) -> tuple[LossTerms, list[torch.Tensor]]:
        """Losses, and the gradients of the student's states, its head and the projectors."""
        likes = [next((one for one in known if one is not None), self.second[0]) for known in rows]
        batch, hidden, attention = worlds.make_batch(self.first, teachers=rows, likes=likes)
        states = [one.requires_grad_(True) for one in hidden.values()]
        found = method(StudentOutput(hidden, attention, self.student_head.live()), batch, self.totals)
        leaves = [*states, self.student_head.weight, *method.parameters()]
        gradients = torch.autograd.grad(found.total, leaves, allow_unused=True)
        return found, [torch.zeros_like(a) if b is None else b for a, b in zip(leaves, gradients, strict=True)]


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shares", [(0.5, 0.5), SHARES])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_two_teachers_are_the_weighted_mean_of_each_alone(variant: str, shares: tuple[float, float]) -> None:
    world = World(variant)
    alone = [
        world.run(world.method(which, shares=(1.0,)), rows) for which, rows in enumerate((world.first, world.second))
    ]
    together, gradients = world.run(world.method(0, 1, shares=shares), world.first, world.second)
    close(together.total, sum(share * found.total for share, (found, _) in zip(shares, alone, strict=True)))
    for name in ("cos", "geo", "kd"):
        values = [found.per_example[name] for found, _ in alone]
        close(together.per_example[name], sum(s * v for s, v in zip(shares, values, strict=True)))
        for place, one in enumerate(values):
            close(together.per_example[f"{name}[teacher-{place}]"], one)
            close(together.terms[f"{name}[teacher-{place}]"], alone[place][0].terms[name])
    close(together.per_example["ce_sum"], alone[0][0].per_example["ce_sum"])
    for student in range(worlds.STUDENT_LAYERS + 1):  # states of every layer, and the head
        close(gradients[student], sum(s * found[student] for s, (_, found) in zip(shares, alone, strict=True)))
    for place, share in enumerate(shares):  # a projector learns from its own teacher
        close(gradients[worlds.STUDENT_LAYERS + 1 + place], share * alone[place][1][-1])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_two_copies_of_one_teacher_equal_it_alone(variant: str) -> None:
    world = World(variant)
    expected, gradients = world.run(world.method(0, shares=(1.0,)), world.first)
    found, twice = world.run(world.method(0, 0, shares=SHARES), world.first, world.first)
    close(found.total, expected.total)
    for name in expected.per_example:
        close(found.per_example[name], expected.per_example[name])
    for one, other in zip(gradients[:-1], twice, strict=False):
        close(other, one)
    close(twice[-1] + twice[-2], gradients[-1])


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_row_that_one_teacher_lacks_keeps_everything_else(variant: str, lacking: int) -> None:
    world = World(variant)
    method, rows = world.method(0, 1, shares=SHARES), [world.first, world.second]
    whole, _ = world.run(method, *rows)
    rows[lacking] = [*rows[lacking][:2], None]
    found, gradients = world.run(method, *rows)
    for name in ("ce_sum", "labels", *(f"{term}[teacher-{1 - lacking}]" for term in ("cos", "geo", "kd"))):
        close(found.per_example[name], whole.per_example[name])
    for name in ("cos", "geo", "kd"):
        own = f"{name}[teacher-{lacking}]"
        close(found.per_example[own][:2], whole.per_example[own][:2])
        assert float(found.per_example[own][2]) == 0
        assert float(whole.per_example[own][2]) > 0
    for place in (0, 1):
        assert int(found.counts[f"rows_without_teacher[teacher-{place}]"]) == (place == lacking)
        assert int(found.counts[f"examples_without_span[teacher-{place}]"]) == 1  # the row it lacks is none of them
    assert int(whole.counts["spans"]) == sum(len(sizes) for sizes in SIZES + OTHER_SIZES)
    assert int(found.counts["spans"]) == int(whole.counts["spans"]) - len((SIZES, OTHER_SIZES)[lacking][2])
    # a row that is lacking still counts in what the terms are divided by
    terms, alpha = found.terms, world.options.alpha
    distilled = sum(
        share * (terms[f"cos[{name}]"] + world.options.lambda_geo * terms[f"geo[{name}]"] + terms[f"kd[{name}]"])
        for name, share in zip(("teacher-0", "teacher-1"), SHARES, strict=True)
    )
    close(found.total.detach(), alpha * terms["ce"] + (1 - alpha) * distilled)
    # to the lacking row's last states speak the labels and the other teacher alone
    kept, share, last = (world.first, world.second)[1 - lacking], SHARES[1 - lacking], worlds.STUDENT_LAYERS - 1
    _, alone = world.run(world.method(1 - lacking, shares=(1.0,)), kept)
    world.options = world.options.model_copy(update={"alpha": 1.0})
    _, of_labels = world.run(world.method(1 - lacking, shares=(1.0,)), kept)
    close(gradients[last][2], share * alone[last][2] + (1 - share) * alpha * of_labels[last][2])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_batch_that_one_teacher_lacks_altogether_is_the_others_share(variant: str) -> None:
    world = World(variant)
    found, gradients = world.run(world.method(0, 1, shares=SHARES), world.first, [None, None, None])
    alone, _ = world.run(world.method(0, shares=(1.0,)), world.first)
    ce = world.options.alpha * alone.terms["ce"]
    close(found.total.detach(), ce + SHARES[0] * (alone.total.detach() - ce))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert float(gradients[-1].abs().max()) == 0


def test_which_teacher_comes_first_changes_nothing_but_names() -> None:
    for variant in VARIANTS:
        world = World(variant)
        one, gradients = world.run(world.method(0, 1, shares=SHARES), world.first, world.second)
        other, swapped = world.run(world.method(1, 0, shares=SHARES[::-1]), world.second, world.first)
        close(other.total, one.total)
        for name in ("ce_sum", "cos", "geo", "kd"):
            close(other.per_example[name], one.per_example[name])
        for a, b in zip(gradients[: worlds.STUDENT_LAYERS + 1], swapped, strict=False):
            close(b, a)


def test_teachers_have_their_own_projectors_from_the_same_seed() -> None:
    world = World("default")
    same = world.method(0, 0, shares=(0.5, 0.5))
    first, second = same.parameters()
    assert torch.equal(first, second)
    assert first is not second
    shapes = [tuple(one.shape) for one in world.method(0, 1, shares=(0.5, 0.5)).parameters()]
    assert shapes == [(worlds.STUDENT_WIDTH, worlds.TEACHER_WIDTH), (worlds.STUDENT_WIDTH, OTHER_WIDTH)]


def test_every_teacher_is_asked_for_its_own_last_layer() -> None:
    needs = World("default").method(0, 1, shares=SHARES).needs
    assert [one.hidden for one in needs] == [(worlds.TEACHER_LAYERS,), (OTHER_LAYERS,)]


def test_a_layer_that_one_of_the_teachers_does_not_have_is_refused() -> None:
    options = SRAOptions(layer_pairs=("1:3",))
    teachers = (
        worlds.teacher_setting(World("default").heads[0]),
        worlds.teacher_setting(World("default").heads[1], name="short", layers=OTHER_LAYERS, tokenizer=OTHER),
    )
    shape = ModelShape(worlds.STUDENT_LAYERS, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    with pytest.raises(ConfigError, match="teacher layer 3; the teacher has layers 1 to 2 \\(short\\)"):
        SRA(options, MethodSetting(shape, teachers))
