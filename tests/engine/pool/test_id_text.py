"""Ids as text: every text means the ids that begin with it, and the decimal numbers of earlier versions."""

import numpy as np
import pytest

from raysift.pool.id_text import id_ranges, id_text, short_id

EDGES = [0, 1, -1, 2**63 - 1, -(2**63), 425225338154105439, -1153341648148542396]
IDS = EDGES + np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 50).tolist()


@pytest.mark.parametrize("digits", range(1, 17))
def test_a_beginning_means_exactly_the_ids_that_begin_with_it(digits):
    for row in IDS:
        wanted = id_text(row)[:digits]
        (low, high), *decimal = id_ranges(wanted)
        assert [low <= other <= high for other in IDS] == [id_text(other).startswith(wanted) for other in IDS]
        assert decimal == ([(int(wanted), int(wanted))] if wanted.isdigit() else [])


def test_texts_are_sixteen_digits_and_no_two_ids_share_one():
    texts = {id_text(row) for row in IDS}
    assert len(texts) == len(set(IDS)) and {len(text) for text in texts} == {16}
    assert short_id(-1) == "ffffffff"


def test_decimal_ids_of_earlier_versions_are_still_ids():
    for row in IDS:
        assert (row, row) in id_ranges(str(row))


@pytest.mark.parametrize("text", ["", "xyz", "0x12", "-", "--5", "1" * 40, "1.5", "²"])
def test_other_texts_are_no_ids(text):
    assert id_ranges(text) == []
