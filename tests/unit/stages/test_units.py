"""`--units a:b` and `i/n`: the same words for every command, and what is no range is refused."""

import pytest

from sra_data.errors import ConfigError
from sra_data.stages.units import said_of, unit_range


@pytest.mark.parametrize(
    ("said", "meant"), [("0:8", (0, 8)), ("3:", (3, None)), (":4", (None, 4)), (":", (None, None)), ("07:8", (7, 8))]
)
def test_a_range_is_half_open_and_its_ends_may_be_left_out(said: str, meant: tuple[int | None, int | None]) -> None:
    assert unit_range(said) == meant


@pytest.mark.parametrize("said", ["", "3", "a:b", "1:2:3", "-1:2", "²:³", "0:" + "9" * 5000, " 1:2", "1.5:2"])
def test_what_is_no_range_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match="not of the form a:b"):
        unit_range(said)


@pytest.mark.parametrize("said", ["5:2", "2:2", ":0", "0:0"])
def test_a_range_of_no_unit_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match=rf"--units {said}: holds no unit"):
        unit_range(said)


@pytest.mark.parametrize(("num_units", "num_tasks"), [(32, 4), (7, 3), (3, 8), (1, 1), (0, 2), (1000, 999)])
def test_the_tasks_of_an_array_do_every_unit_once_and_about_as_many_each(num_units: int, num_tasks: int) -> None:
    shares = [range(*unit_range(f"{task}/{num_tasks}", num_units)) for task in range(num_tasks)]
    assert [unit for share in shares for unit in share] == list(range(num_units))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("said", ["16/16", "3/0", "0/0"])
def test_a_task_that_is_none_of_its_array_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match=rf"--units {said}: no such task"):
        unit_range(said, 8)


@pytest.mark.parametrize("said", ["-1/4", "1/", "/4", "1/2/3", "a/b"])
def test_what_is_no_share_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match="not of the form a:b; write, say, 0:8, or 3/16"):
        unit_range(said, 8)


def test_a_job_says_which_units_it_does() -> None:
    assert said_of([6, 7], 32) == "units 6:8 of 0:32"
    assert said_of([], 3) == "none of the units of 0:3"
