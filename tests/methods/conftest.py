"""What several files of methods need."""

import pytest


@pytest.fixture
def _llama_cpp() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
