"""Hands a calibration set to other tools: a file of its tokens, a card, and a script that runs the
tool. The list of tools is the list of files.
"""

from calibrant.handover._base import IdsTool, ScriptFacts, Tool, file_stem
from calibrant.handover._writing import (
    FORMS,
    WrittenData,
    as_sum,
    tool_named,
    tools,
    write_data,
    write_over,
)

__all__ = [
    "FORMS",
    "IdsTool",
    "ScriptFacts",
    "Tool",
    "WrittenData",
    "as_sum",
    "file_stem",
    "tool_named",
    "tools",
    "write_data",
    "write_over",
]
