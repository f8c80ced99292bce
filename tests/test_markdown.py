"""Cards are made to be shown: they have no folders of whoever made them."""

import pytest

from calibrant.system.markdown import without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/model", "…/model"),
        ("/home/o'neil/s/x", "…/x"),
        ('"/home/o\'neil/s/x"', '"…/x"'),
        ("'/home/me/x' + \"/home/you/y\"", "'…/x' + \"…/y\""),
        (r"\\server\share\me\x", "…/x"),
        (r"'\\\\server\\share\\x'", "'…/x'"),
        (r"C:\Users\me\x", "…/x"),
        ("mix(a=/home/me/x, b='/home/me/y')", "mix(a=…/x, b='…/y')"),
        ("see https://hub/me/x", "see https://hub/me/x"),
        ("gsm8k:cot", "gsm8k:cot"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text: str, shown: str) -> None:
    assert without_folders(text) == shown
