"""Edit distances, nearest strings and warped paths by the plainest loops there are."""

from __future__ import annotations

from collections.abc import Sequence


def distance(one: bytes, other: bytes) -> int:
    """Levenshtein's, with its whole table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
                continue
            replaced = table[i - 1][j - 1] + (one[i - 1] != other[j - 1])
            table[i][j] = min(replaced, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def nearest(source: Sequence[bytes | None], target: Sequence[bytes | None]) -> list[int]:
    """For each source string the target's number: by distance, then length's difference, length, and number."""
    found = []
    for piece in source:
        known = [
            (distance(piece, one), abs(len(one) - len(piece)), len(one), number)
            for number, one in enumerate(target)
            if piece and one
        ]
        found.append(min(known)[-1] if known else -1)
    return found


def warped_path(one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    """The path of least total distance; of equal steps back the one on both sides, then the one on the first."""
    best: dict[tuple[int, int], tuple[int, list[tuple[int, int]]]] = {}
    for i in range(len(one)):
        for j in range(len(other)):
            before = [best[at] for at in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if at in best]
            total, path = min(before, key=lambda known: known[0]) if before else (0, [])
            best[i, j] = total + distance(one[i], other[j]), [*path, (i, j)]
    return best[len(one) - 1, len(other) - 1][1] if one and other else []


def alone(path: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of a path whose two places it passes once."""
    return [
        (i, j) for i, j in path if sum(one == i for one, _ in path) == 1 and sum(other == j for _, other in path) == 1
    ]
