"""Large answers are the JSON that they would be in one piece."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from shardnet.coordinator.api.large_json import SLICE, LargeJSONResponse, pieces

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)


@settings(max_examples=40)
@given(VALUES)
def test_every_value_is_written_as_in_one_piece(value: Any) -> None:
    assert b"".join(LargeJSONResponse(value).chunks) == JSONResponse(value).body


@pytest.mark.parametrize("count", [0, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 2 * SLICE + 7])
def test_long_lists_are_written_in_slices(count: int) -> None:
    value: dict[str, Any] = {
        "tokens": list(range(count)),
        "texts": [{"id": one, "piece": "é"} for one in range(count)],
        "count": count,
    }
    assert b"".join(LargeJSONResponse(value).chunks) == JSONResponse(value).body
    assert (
        b"".join(LargeJSONResponse({"one": iter(value["texts"])}).chunks) == JSONResponse({"one": value["texts"]}).body
    )
    assert max(map(len, pieces(value))) < 32 * SLICE
