"""Two kills of each verb; `make kills` does twenty (docs/reliability.md)."""

from __future__ import annotations

import pytest

from .__main__ import loop
from .verbs import VERBS, given


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_what_was_finished_stays_and_the_result_is_the_same(name, tmp_path):
    given(tmp_path / "given")
    assert loop(name, 2, tmp_path)["kills"] == 2
