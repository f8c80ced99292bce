"""The real vLLM, in a process of its own, whose Python may be another: a folder as it runs there,
and a model that is open here.
"""

from calibrant.vllm.opening import OpenInVllm
from calibrant.vllm.running import (
    RunByVllm,
    TokensInVllm,
    VllmDecoder,
    VllmSampling,
    opened_by_vllm,
)

__all__ = [
    "OpenInVllm",
    "RunByVllm",
    "TokensInVllm",
    "VllmDecoder",
    "VllmSampling",
    "opened_by_vllm",
]
