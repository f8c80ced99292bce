"""How a refusal is tested: by its class and its subject. The sentences themselves are tested in
the files test_wording.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from calibrant.errors import CalibrantError


@contextmanager
def refused(error: type[CalibrantError], subject: object) -> Iterator[None]:
    """What happens inside is refused with this error, about this."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.subject == str(subject)
    assert "\n" not in str(caught.value)
