# SPDX-License-Identifier: GPL-2.0-only
"""The text follows the kernel's rules for cgroup v2 files."""

from __future__ import annotations

import pytest

from cgstatfs.valuetype import Element, ValueType, log2_bounds


def test_one_value_is_val() -> None:
    value_type = ValueType((Element("", 0),))
    assert value_type.format((7,)) == b"7\n"


def test_an_array_is_space_separated() -> None:
    value_type = ValueType((Element("", 0, 3),))
    assert value_type.format((7, 0, 1 << 63)) == b"7 0 9223372036854775808\n"


def test_a_struct_is_flat_keyed_in_its_order() -> None:
    value_type = ValueType((Element("b", 0), Element("a_ns", 1)))
    assert value_type.format((1, 2)) == b"b 1\na_ns 2\n"


def test_an_array_in_a_struct_is_nested_keyed() -> None:
    value_type = ValueType((Element("a", 0), Element("list", 1, 2)))
    assert value_type.format((1, 2, 3)) == b"a 1\nlist 0=2 1=3\n"


def test_a_histograms_count_is_derived() -> None:
    value_type = ValueType((Element("a", 0), Element("h", 1, 4, bounds=log2_bounds(4), histogram="log2")))
    assert value_type.format((9, 1, 2, 0, 4)) == b"a 9\nh count=7 1=1 2=2 4=0 inf=4\n"


def test_sizes_and_unpacking() -> None:
    value_type = ValueType((Element("a", 0), Element("h", 1, 4, bounds=log2_bounds(4), histogram="log2")))
    assert (value_type.elements, value_type.size) == (5, 40)
    data = b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 4, (1 << 64) - 1))
    assert value_type.unpack(data)[-1] == (1 << 64) - 1


def test_bounds_are_powers_of_two_and_the_last_has_none() -> None:
    assert log2_bounds(1) == ()
    assert log2_bounds(4) == (1, 2, 4)


@pytest.mark.parametrize(
    ("name", "unit"), [("a_ns", "ns"), ("a_bytes", "bytes"), ("pages", ""), ("ns", "")]
)
def test_units(name: str, unit: str) -> None:
    assert Element(name, 0).unit == unit
