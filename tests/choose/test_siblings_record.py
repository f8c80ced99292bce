"""The page on held-out siblings says what the record says."""

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/log/2026-11-26.md").read_text()
FILES = json.loads((ROOT / "studies/siblings/record.json").read_text())["files"]


def test_each_file_is_on_the_page_with_its_figures() -> None:
    assert len(FILES) == 6
    for file in FILES:
        (line,) = [
            line
            for line in PAGE.splitlines()
            if line.startswith(f"| {file['target']} {file['family']} |")
        ]
        own = file["lost"]["the file"]
        assert f"| {own['own']:.3f} | {own['sibling']:.3f} |" in line
        for choice in file["choices"].values():
            assert choice["set"] in line
            assert choice["rank"] == 1 or f"+{choice['behind']:.3f}" in line


def test_how_often_each_figure_chose_well_and_how_wrong_it_was() -> None:
    within = {
        how: sum(file["choices"][how]["within noise"] for file in FILES)
        for how in ("own", "sibling")
    }
    assert (
        f"for {within['own']} of 6 files; chosen by the sibling, for {within['sibling']} of 6"
        in PAGE
    )
    pairs = [
        (file["lost"]["the file"], lost)
        for file in FILES
        for name, lost in file["lost"].items()
        if name != "the file"
    ]
    for how in ("own", "sibling"):
        wrong = mean(
            abs((own[how] - lost["own"]) - (own["other family"] - lost["other family"]))
            for own, lost in pairs
        )
        assert f"{wrong:.3f}" in PAGE
