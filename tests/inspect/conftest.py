"""The tokenizers, files and mirrors that the tests of data have."""

from tests.data.conftest import forgetful, jsonl, letters, no_mirror, real_mirror, started

__all__ = ["forgetful", "jsonl", "letters", "no_mirror", "real_mirror", "started"]
