"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import pytest

from mmsa.foundation.sizes import bytes_of, size_in_words


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    assert [bytes_of(text) for text in ("64MB", "1.5GiB", "500 kB", "7", "2T", "12B")] == [
        *[64_000_000, 1_610_612_736, 500_000, 7, 2 * 10**12, 12]
    ]


@pytest.mark.parametrize("other", ["", "MB", "1 XB", "-1MB", "1e3MB", "1.MB", None, 5, 2.5])
def test_what_is_no_size_stays_what_it_is(other: object) -> None:
    assert bytes_of(other) is other


def test_sizes_for_people() -> None:
    assert [size_in_words(size) for size in (0, 999, 100_000, 1_700_000_000, 10**15)] == [
        *["0 bytes", "999 bytes", "100 kB", "1.7 GB", "1e+03 TB"]
    ]
