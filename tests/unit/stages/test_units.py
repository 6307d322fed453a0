"""`--units a:b`: the same words for every command, and what is no range is refused."""

import pytest

from sra_data.errors import ConfigError
from sra_data.stages.units import unit_range


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
