"""vLLM in the tests: a pretended one, made of transformers, and the real one where it has an
environment.
"""

from pathlib import Path

import psutil
import pytest

from calibrant.errors import MissingPackageError
from calibrant.vllm.process import interpreter

PRETENDED = Path(__file__).parent / "evaluators" / "pretended"
"""A folder that has the pretended one, as if it were installed beside calibrant."""


def processes() -> list[psutil.Process]:
    """What runs vLLM now."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "vllm/serving.py" in " ".join(child.cmdline())]


def has_real_vllm() -> bool:
    """Whether there is an environment with the real one, also where CALIBRANT_TOOL_ENVS says."""
    try:
        interpreter()
    except MissingPackageError:
        return False
    return True


needs_real_vllm = pytest.mark.skipif(
    not has_real_vllm(), reason="vLLM has no environment; make vllm makes it"
)
