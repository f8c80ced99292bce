"""Says how much of a file, a set or a template is read at most, so that hostile input neither fills
the memory nor runs without end.

| constant | of what | why this much |
| --- | --- | --- |
| `MOST_COLUMNS` | columns of a table, keys of a JSON object | no table of texts has more |
| `MOST_ROWS` | rows of a file | they are held in memory |
| `MOST_GIVEN` | rows of an object with a length | they are hashed and held in memory |
| `FIRST_GIVEN` | rows of an object without one | a stream may have no end |
| `LONGEST_LINE` | bytes of a line, which is a row | 64 MiB |
| `LONGEST_WHOLE` | bytes of a file without lines (JSON, plain text) | 1 GiB, read at once |
| `SHORTEST_LINE` | bytes that a packed line counts for | empty lines take time, no memory |
| `MOST_TIMES` | unpacked bytes for each packed byte | text has 10 or 20, a bomb 1,000 |
| `ALWAYS_UNPACKED` | bytes that any packed file may unpack to | 32 MiB, however small it is |
| `LOOKED_THROUGH` | names seen in a search for files | it could be the whole machine |
| `MOST_FILES` | data files of a folder or a pattern | each is opened |
| `LONGEST_DESCRIPTION` | bytes of a description that `datasets` wrote | real ones have a few KiB |
| `MOST_TOKENS` | tokens of one draw | ids and mask: tens of GB |
| `LONGEST_WINDOW` | tokens of one window | beyond every model |
| `LAST_DRAW` | number of a draw | draw k deals k draws |
| `MOST_SHOTS` | texts of one window | beyond every study |
| `TEMPLATE_STEPS` | loops, calls, hundreds of letters of a template | real ones take dozens |
| `LONGEST_MADE` | length that a template may ask a text to have | a million |
| `LONGEST_WORD` | letters of a word, else it is divided | words are remembered |
| `LONGEST_EQUATION` | characters of an equation | its numbers grow with it |
"""

from typing import Final

MOST_COLUMNS: Final = 10_000
MOST_ROWS: Final = 50_000_000
MOST_GIVEN: Final = 1_000_000
FIRST_GIVEN: Final = 20_000
LONGEST_LINE: Final = 1 << 26
LONGEST_WHOLE: Final = 1 << 30
SHORTEST_LINE: Final = 32
MOST_TIMES: Final = 200
ALWAYS_UNPACKED: Final = 1 << 25
LOOKED_THROUGH: Final = 200_000
MOST_FILES: Final = 10_000
LONGEST_DESCRIPTION: Final = 1 << 24
MOST_TOKENS: Final = 10**9
LONGEST_WINDOW: Final = 10**7
LAST_DRAW: Final = 10_000
MOST_SHOTS: Final = 10_000
TEMPLATE_STEPS: Final = 20_000
LONGEST_MADE: Final = 1_000_000
LONGEST_WORD: Final = 64
LONGEST_EQUATION: Final = 200
