"""The real llama.cpp, from the optional package llama-cpp-py-sync: its quantizers, and models as
they run there. No torch here.
"""

from calibrant.llama_cpp.quantizing import file_types, quantize_file, quantize_matrix
from calibrant.llama_cpp.running import LlamaModel

__all__ = ["LlamaModel", "file_types", "quantize_file", "quantize_matrix"]
