# SPDX-License-Identifier: GPL-2.0-only
"""How many distinct keys a HyperLogLog has seen.

The estimator is the improved one of Ertl, "New cardinality estimation algorithms for
HyperLogLog sketches" (2017), section 4: without thresholds, and unbiased from one key on. The
standard error is 1.04 / sqrt(registers). What fills the registers is cgstat_hll_see() in
bpf/cgstat_update.h.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence

__all__ = ("estimate",)

# Ranks go from 1 to one more than this; 0 is a register that nothing fell to.
_Q = 50


def _sigma(x: float) -> float:
    if x == 1:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y *= 2
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3


def estimate(elements: Sequence[int]) -> int:
    """The number of distinct keys.

    :param elements: of 8 registers each, one to a byte
    """
    counts = Counter(struct.pack(f"={len(elements)}Q", *elements))
    registers = 8 * len(elements)
    z = registers * _tau(1 - counts[_Q + 1] / registers)
    for rank in range(_Q, 0, -1):
        z = 0.5 * (z + counts[rank])
    z += registers * _sigma(counts[0] / registers)
    return round(registers * registers / (2 * math.log(2) * z))
