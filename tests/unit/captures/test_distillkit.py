"""DistillKit's captures: what was packed is unpacked, and what is no such capture is refused in one line."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sra_data.captures.distillkit import DistillkitCapture
from sra_data.captures.distributions import distributions
from sra_data.errors import CaptureError
from tests.model_zoo import tiny_model
from tests.unit.captures.writers import EXACT, FITTED, distillkit_row, log_probs_of, write_distillkit

ROWS = ([1, 5, 9, 33, 60, 2], [1, 7, 7, 8], [3, 4, 5, 6, 7, 8, 9, 10, 11])
FORMS: dict[str, tuple[dict[str, Any], float]] = {
    "exact": (EXACT, 1e-6),
    "exact, without differences": ({**EXACT, "delta_encoding": False}, 1e-6),
    "exact in halves": ({**EXACT, "exact_dtype": "float16"}, 2e-2),
    "exact in doubles": ({**EXACT, "exact_dtype": "float64"}, 1e-12),
    "fitted": (FITTED, 0.15),
    "fitted, places from 0 to 1": ({**FITTED, "normalize_t": True}, 0.15),
    "residuals alone": (
        {
            **EXACT,
            "k": 9,
            "residual_bins": [{"scale_dtype": "float32", "element_bits": 12, "num_elements": 4}],
        },
        5e-3,
    ),
    "a curve through all values": (
        {
            **EXACT,
            "k": 3,
            "exact_k": 0,
            "polynomial_terms": [0, 1, 2],
            "term_dtype": "float64",
        },
        1e-9,
    ),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", seed=3).eval()


def kept(folder: Path) -> Any:
    capture = DistillkitCapture(str(folder))
    return capture.keep(np.array([row.number for row in capture.rows()]), None)


def read_whole(folder: Path) -> None:
    with closing(kept(folder)) as rows:
        for number in range(len(ROWS)):
            rows.distributions_of(number, np.arange(2), vocabulary_size=97, where="here")


def refused(folder: Path) -> str:
    """The one line that a capture is refused with, wherever in reading it."""
    with pytest.raises(CaptureError) as error:
        read_whole(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FORMS)
def test_what_was_packed_is_unpacked(model: Any, tmp_path: Path, name: str) -> None:
    """Ids exactly, values within the precision of their form, each at the position it was said at."""
    form, tolerance = FORMS[name]
    write_distillkit(tmp_path, [distillkit_row(model, ids, form) for ids in ROWS], form, rows_a_file=2)
    capture = DistillkitCapture(str(tmp_path))
    assert [(row.ids.tolist(), row.num_values) for row in capture.rows()] == [(ids, len(ids) - 1) for ids in ROWS]
    rows = kept(tmp_path)
    for number, ids in enumerate(ROWS):
        assert rows.ids_of(number).tolist() == ids
        positions = np.arange(len(ids) - 1)
        said = rows.distributions_of(number, positions, vocabulary_size=97, where="here")
        wanted = log_probs_of(model, ids)
        for position in positions:
            best = np.argsort(-wanted[position], kind="stable")[: form["k"]]
            assert set(said.ids[position]) == set(best)
            found = dict(zip(said.ids[position], said.values[position], strict=True))
            values = np.array([found[one] for one in best])
            np.testing.assert_allclose(values, wanted[position][best], atol=tolerance)
            outside = np.exp(np.delete(wanted[position], best)).sum()
            # The model's own float32 probabilities add up to 1 within 1e-7.
            assert np.exp(said.log_tails[position]) == pytest.approx(outside, abs=max(tolerance, 1e-6))
    rows.close()


def test_files_are_read_in_the_order_of_their_numbers(model: Any, tmp_path: Path) -> None:
    rows = [distillkit_row(model, [1, 2, 3 + number], EXACT) for number in range(12)]
    write_distillkit(tmp_path, rows, EXACT, rows_a_file=1)
    assert [row.ids[2] for row in DistillkitCapture(str(tmp_path)).rows()] == list(range(3, 15))


def test_a_row_is_named_by_its_file(model: Any, tmp_path: Path) -> None:
    rows = [distillkit_row(model, [1, 2, 3 + number], EXACT) for number in range(5)]
    capture = DistillkitCapture(str(write_distillkit(tmp_path, rows, EXACT, rows_a_file=2)))
    assert [capture.where(row.number) for row in capture.rows()] == [row.where for row in capture.rows()]
    assert capture.where(3).endswith("data_1.parquet, row 1")


def test_rows_are_kept_that_were_asked_for_alone(model: Any, tmp_path: Path) -> None:
    write_distillkit(tmp_path, [distillkit_row(model, ids, EXACT) for ids in ROWS], EXACT)
    with closing(DistillkitCapture(str(tmp_path)).keep(np.array([0, 2]), None)) as rows:
        assert [number in rows for number in range(4)] == [True, False, True, False]
        assert rows.ids_of(2).tolist() == ROWS[2]


# ------------------------------------------------------------------------------------------------ distributions


def test_a_sum_above_one_is_scaled_down_and_counted() -> None:
    values = np.log(np.array([[0.7, 0.4], [0.5, 0.25]]))
    said = distributions(np.array([[4, 5], [4, 5]]), values, vocabulary_size=97, where="here")
    np.testing.assert_allclose(np.exp(said.values[0]), [7 / 11, 4 / 11])
    assert (said.num_rescaled, said.largest_sum) == (1, pytest.approx(1.1))
    np.testing.assert_allclose(np.exp(said.log_tails), [0, 0.25])


def test_an_id_that_stands_twice_counts_once() -> None:
    values = np.log(np.array([[0.4, 0.2, 0.2, 0.1]]))
    said = distributions(np.array([[9, 5, 5, 7]]), values, vocabulary_size=97, where="here")
    assert said.num_repeated == 1
    np.testing.assert_allclose(np.exp(said.values[0]), [0.4, 0.2, 0, 0.1])
    assert np.exp(said.log_tails[0]) == pytest.approx(0.3)


def test_values_of_a_curve_that_turns_are_put_in_order() -> None:
    values = np.log(np.array([[0.4, 0.1, 0.2]]))
    said = distributions(np.array([[9, 5, 6]]), values, vocabulary_size=97, where="here")
    assert said.ids.tolist() == [[9, 6, 5]]
    np.testing.assert_allclose(np.exp(said.values[0]), [0.4, 0.2, 0.1])


def test_a_top_k_of_the_whole_vocabulary_leaves_nothing_outside() -> None:
    values = np.log(np.array([[0.5, 0.3, 0.1999]]))
    assert distributions(np.array([[0, 1, 2]]), values, vocabulary_size=3, where="here").log_tails == [-np.inf]


@pytest.mark.parametrize(
    ("ids", "probabilities", "words"),
    [
        ([[5, 97]], [[0.5, 0.2]], "id 97 at position 0"),
        ([[5, 6]], [[0.5, np.nan]], "is no number"),
        ([[5, 6]], [[1.9, 1.5]], "add up to 3.4"),
        ([[5, 5, 5, 5]], [[0.3, 0.2, 0.1, 0.1]], "stand there twice"),
    ],
)
def test_what_is_no_distribution_is_refused(ids: Any, probabilities: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as error:
        distributions(np.array(ids), np.log(np.array(probabilities)), vocabulary_size=97, where="data_0, row 3")
    assert str(error.value).startswith("data_0, row 3: ")


# ----------------------------------------------------------------------------------------------------- refusals


def test_what_is_no_capture_is_refused(model: Any, tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no .parquet file" in refused(tmp_path)
    folder = write_distillkit(tmp_path / "one", [distillkit_row(model, ids, EXACT) for ids in ROWS], EXACT)
    (folder / "compression_config.yaml").rename(tmp_path / "aside.yaml")
    assert "no compression_config.yaml" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 4, "exact_k": 4}, "positions with 20 bytes, 6 ids and k=4 make 5 with 16"),
        ({"k": 3}, "k=3 with exact_k=5"),
        ({"exact_k": 2}, "nothing says the 3 values"),
        ({"d": 400}, "positions with 5 bytes, 6 ids and k=5 make 5 with 6"),
        ({"polynomial_terms": ["cbrt"]}, "polynomial_terms"),
        ({"exact_dtype": "int8"}, "exact_dtype"),
        ({"surprise": 1}, "surprise: a setting that is not known here"),
        ({"k": "many"}, "k: Input should be a valid integer"),
        ({"k": 1 << 40}, "k: Input should be less"),
        ({"polynomial_degree": 3}, "before `residual_bins`"),
    ],
)
def test_a_configuration_that_is_none_is_refused(model: Any, tmp_path: Path, change: Any, words: str) -> None:
    write_distillkit(tmp_path, [distillkit_row(model, ids, EXACT) for ids in ROWS], EXACT)
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump({**EXACT, **change}))
    assert words in refused(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2", "!!python/object/apply:os.system ['true']", "- 1\n", ""])
def test_a_configuration_that_is_no_mapping_is_refused(model: Any, tmp_path: Path, text: str) -> None:
    write_distillkit(tmp_path, [distillkit_row(model, ids, EXACT) for ids in ROWS], EXACT)
    (tmp_path / "compression_config.yaml").write_text(text)
    assert "compression_config.yaml" in refused(tmp_path)


def test_bits_in_another_order_are_no_ids(model: Any, tmp_path: Path) -> None:
    rows = [distillkit_row(model, ids, EXACT) for ids in ROWS]
    for row in rows:
        row["bytepacked_indices"] = [[int(f"{one:08b}"[::-1], 2) for one in one] for one in row["bytepacked_indices"]]
    assert "the teacher's vocabulary has 97 ids" in refused(write_distillkit(tmp_path, rows, EXACT))


def test_a_file_that_is_no_parquet_is_refused(model: Any, tmp_path: Path) -> None:
    folder = write_distillkit(tmp_path, [distillkit_row(model, ids, EXACT) for ids in ROWS], EXACT)
    whole = (folder / "data_0.parquet").read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole[:4] + bytes(60) + whole[64:]):
        (folder / "data_0.parquet").write_bytes(damaged)
        assert "data_0.parquet" in refused(folder)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"packed_indices": [[1]], "exact_values": [[1.0]], "coeffs": [[1.0]], "input_ids": [[1]]}, "format before"),
        ({"text": ["a"]}, "no column input_ids"),
        ({"input_ids": ["a"], "compressed_logprobs": [[[1]]], "bytepacked_indices": [[[1]]]}, "column input_ids holds"),
        ({"input_ids": [[1]], "compressed_logprobs": [[1]], "bytepacked_indices": [[[1]]]}, "lists of lists of uint8"),
    ],
)
def test_a_table_of_something_else_is_refused(model: Any, tmp_path: Path, table: Any, words: str) -> None:
    folder = write_distillkit(tmp_path, [distillkit_row(model, ROWS[0], EXACT)], EXACT)
    pq.write_table(pa.table(table), folder / "data_0.parquet")
    assert words in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": [1, 5, 1 << 40, 33, 60, 2]}, "token id 1099511627776 is none"),
        ({"input_ids": []}, "without ids"),
        ({"compressed_logprobs": None}, "with an empty place"),
        ({"input_ids": [1, 5, 9]}, "5 positions with 20 bytes, 3 ids"),
        ({"bytepacked_indices": [[1], [1, 2], [1], [1], [1]]}, "not all of one size"),
    ],
)
def test_a_row_that_does_not_fit_is_named(model: Any, tmp_path: Path, change: Any, words: str) -> None:
    rows = [distillkit_row(model, ids, EXACT) for ids in (ROWS[1], ROWS[0])]
    rows[1] |= change
    said = refused(write_distillkit(tmp_path, rows, EXACT))
    assert words in said
    assert "data_0.parquet, row 1: " in said
