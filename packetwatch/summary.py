# SPDX-License-Identifier: Apache-2.0
"""Folded counts cut down to a bounded number of rows without losing one connection. Pure.

The largest rows keep their level; what is cut goes to the next: (source, port) -> port -> interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

LEVELS = ("source_port", "port", "interface")


class Fold(NamedTuple):
    """Connections counted together; source and dport are None where the level does not tell them apart."""

    level: str  #: one of LEVELS
    attachment: int
    source: Optional[bytes]
    dport: Optional[int]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    since_ns: int  #: CLOCK_BOOTTIME of the first


def reduce(folds: Iterable[Fold], rows: int) -> list[Fold]:
    """At most `rows` of each of the two fine levels and one per attachment; the counts add up as before."""
    result: list[Fold] = []
    rest = list(folds)
    for level, coarser in zip(LEVELS, LEVELS[1:]):
        here = sorted((f for f in rest if f.level == level), key=lambda f: -f.count)
        others = [f for f in rest if f.level != level]
        result += here[:rows]
        rest = others + [_coarser(fold, coarser) for fold in here[rows:]]
        rest = _merge(rest)
    return result + rest


def _coarser(fold: Fold, level: str) -> Fold:
    return fold._replace(level=level, source=None, dport=fold.dport if level == "port" else None)


def _merge(folds: Sequence[Fold]) -> list[Fold]:
    merged: dict[tuple[object, ...], Fold] = {}
    for fold in folds:
        key = fold[:4]
        known = merged.get(key)
        if known is not None:
            fold = fold._replace(count=known.count + fold.count, since_ns=min(known.since_ns, fold.since_ns))
        merged[key] = fold
    return list(merged.values())
