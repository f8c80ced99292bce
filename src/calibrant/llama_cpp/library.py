"""llama.cpp's libraries, loaded when they are first used, and silent: it writes pages to
standard error. Its last error is kept, for messages.
"""

from collections import deque
from functools import cache
from pathlib import Path
from typing import Any, Final

from calibrant.errors import OutputError
from calibrant.spec.foreign import visible_name
from calibrant.system.extras import needed_for

_DECODED: Final = (
    "q4_0 q4_1 q5_0 q5_1 q8_0 q2_K q3_K q4_K q5_K q6_K iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs "
    "iq3_s iq4_nl iq4_xs tq1_0 tq2_0 mxfp4 nvfp4"
)
"""Kinds of blocks, as the names of ggml's decoders have them."""
_DECODERS: Final = "".join(
    f"void dequantize_row_{kind}(const void * blocks, float * numbers, int64_t count);\n"
    for kind in _DECODED.split()
)
_GGML: Final = f"""{_DECODERS}
size_t ggml_quantize_chunk(int type, const float * src, void * dst, int64_t start, int64_t nrows,
    int64_t n_per_row, const float * imatrix);
size_t ggml_row_size(int type, int64_t ne);
bool ggml_quantize_requires_imatrix(int type);
"""
"""Functions of ggml that the package ships and doesn't declare: numbers and pointers alone, none
of its structures.
"""
LONGEST: Final = 200
"""Characters of an error at most."""
_ERROR: Final = 4
"""The level of errors in ggml's log."""
_errors: Final = deque[str](maxlen=8)
_kept: Final = list[Any]()
"""Callbacks that the library calls as long as the process lives."""


@cache
def llama() -> tuple[Any, Any]:
    """Return the package's own cffi object, which has all declarations of llama.h, and the
    library. Raises `MissingPackageError` without it.
    """
    with needed_for("llama.cpp"):
        from llama_cpp_py_sync import _cffi_bindings as bindings
    ffi: Any = bindings.get_ffi()
    library: Any = bindings.get_lib()

    def hear(level: int, text: Any, data: Any) -> None:
        error = ffi.string(text).decode("utf-8", "replace").strip()
        if level == _ERROR and error:
            _errors.append(error)

    silent = ffi.callback("ggml_log_callback", hear)
    library.llama_log_set(silent, ffi.NULL)
    library.llama_backend_init()
    _kept.append(silent)
    return ffi, library


@cache
def ggml() -> tuple[Any, Any]:
    """Return a cffi object and the library in which ggml's quantizers are. Raises
    `MissingPackageError` without the package.
    """
    llama()
    with needed_for("llama.cpp"):
        from cffi import FFI
        from llama_cpp_py_sync import _cffi_bindings as bindings
    ffi = FFI()
    ffi.cdef(_GGML)
    # One library of that name is loaded already, and the loader answers with the same.
    paths = sorted(Path(bindings.__file__).parent.glob("*ggml-base*"))
    if not paths:
        raise OutputError(
            "llama-cpp-py-sync has no ggml-base library here; "
            "install it anew: pip install 'calibrant[ggml]'",
            subject="ggml-base",
        )
    return ffi, ffi.dlopen(str(paths[0]))


def last_error() -> str:
    """Return llama.cpp's last error for a sentence, ` (failed to …)`, and forget it; nothing if
    there was none.
    """
    if not _errors:
        return ""
    # It begins with the name of a function.
    error = _errors.pop().partition(": ")[2]
    _errors.clear()
    return f" ({visible_name(error)[:LONGEST]})" if error else ""
