"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache_of_packed_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what tests pack out of the user's cache, and what an earlier state of the code packed out of tests."""
    directory = tmp_path_factory.mktemp("packed-weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toprl_engines.ort.packing.default_cache", lambda: directory)
        yield
