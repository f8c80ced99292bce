"""Advice that looks at little of a model when it predicts, which takes less time."""

from collections.abc import Iterator

import pytest

from calibrant.lab.mixtures import Effort, Sample

EFFORT = Effort(Sample(1, 8), 8, Sample(1, 8), Sample(1, 8))


@pytest.fixture(scope="module")
def effort() -> Iterator[Effort]:
    with pytest.MonkeyPatch.context() as patched:
        for place in ("lab.mixtures.mixing", "lab.choose.asking"):
            patched.setattr(f"calibrant.{place}.effort_of", lambda _: EFFORT)
        yield EFFORT
