"""The real llama.cpp, from the optional package llama-cpp-py-sync: its quantizers and decoders, and
models as they run there. No torch here.
"""

from calibrant.llama_cpp.decoding import can_decode, decode_blocks
from calibrant.llama_cpp.quantizing import file_types, quantize_file, quantize_matrix
from calibrant.llama_cpp.running import LlamaModel

__all__ = [
    "LlamaModel",
    "can_decode",
    "decode_blocks",
    "file_types",
    "quantize_file",
    "quantize_matrix",
]
