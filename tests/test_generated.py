"""What is made from the folders is up to date, and a new file in one of them needs nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import freeze, generate
from tools.generate import PAGES, filled, lacking, ours, stale

import calibrant

from tests.frozen import masks

PROJECT = Path(__file__).parents[1]


def test_the_pages_say_what_the_folders_hold():
    assert [page.name for page in stale()] == [], "run make generate"


def test_every_source_was_tried():
    assert lacking() == [], "run python -m tools.generate --survey"


def test_every_table_stands_somewhere():
    text = "\n".join(page.read_text() for page in PAGES)
    for kind in ("families", "formats", "packings", "selectors", "tasks", "survey"):
        assert f"<!-- {kind} -->\n|" in text


def test_what_stands_between_other_marks_is_left_alone():
    page = (
        "<!-- something -->\nwords\n<!-- /something -->\nThere are <!-- count of formats -->99 formats.\n<!-- formats -->\nold\n<!-- /formats -->\n"
    )
    found = filled(page)
    assert found.startswith(f"<!-- something -->\nwords\n<!-- /something -->\nThere are <!-- count of formats -->{len(ours('formats'))} formats.")
    assert "| `qa` |" in found
    assert "old" not in found
    assert filled(found) == found


def test_a_check_says_nothing_where_all_is_up_to_date(capsys: pytest.CaptureFixture[str]):
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_check_names_what_is_stale_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    page, survey = tmp_path / "page.md", tmp_path / "survey.json"
    page.write_text("There are <!-- count of sources -->1 sources.\n")
    known = freeze.read(generate.MASKS)
    del known[masks.key_of("wanda")]
    tried = [one for one in generate.surveyed() if one["source"] != "python_docs"]
    survey.write_text(json.dumps(tried))
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", (page,))
    monkeypatch.setattr(generate, "SURVEY", survey)
    monkeypatch.setattr(freeze, "read", lambda name: known)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().err.splitlines()
    names = [line.split()[0] for line in told]
    assert names == ["page.md", "tests/frozen/masks.json", "survey.json"]
    assert "python_docs" in told[2]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


SOURCE = '''
"""Questions about elements."""

from dataclasses import dataclass

from calibrant.data._base import Row, SourceRows, StoredSource, divide


@dataclass(frozen=True, repr=False)
class Chemistry(StoredSource):
    """The symbols of elements that there aren't."""

    kind, family, licence, homepage = "questions", "reading", "CC0 1.0", ""
    fields = ("question", "answer")

    def read(self) -> SourceRows:
        return SourceRows(divide(Row(question=f"What is the symbol of element {i}?", answer=f"E{i}") for i in range(400)), "made here")
'''
METHOD = '''
"""Half of magnitude."""

from dataclasses import dataclass

from calibrant.methods._base import Compressed, MatrixMethod


@dataclass(frozen=True, repr=False)
class Largest(MatrixMethod):
    """Removes the largest weights."""

    def compress(self, weight, seen, target) -> Compressed:
        return Compressed(weight * target.keep(-weight.abs().float(), "matrix"))
'''
USE = """
import json
from pathlib import Path
from calibrant import Study
from calibrant.compare import read
from calibrant.store import Store
from calibrant.testing import tiny_folder
from calibrant.testing.sources import check_source
from calibrant.data import sources
from tools.generate import PAGES, filled, lacking, ours, stale

check_source(sources.build("chemistry"))
tiny_folder("model")
sets = ["chemistry:icl", "random_tokens"]
Study("model", sets, ["wanda", "largest"], 0.5, evaluate=["loss(source=chemistry, tokens=200, length=32)"], samples=2, length=32).run("out")
with Store("out", create=False) as store:
    reading = read(store)
    records = [r.data_facts["parts"][0]["family"] for r in store.records() if r.run.data == "chemistry:icl"]
    (Path("out") / "index.json").rename("index.json")
    copied = read(store)
readme = filled(PAGES[0].read_text())
print(json.dumps({
    "failures": len(reading.failures),
    "methods": sorted({cell.method for cell in reading.cells}),
    "label": [reading.label("chemistry:icl").family, reading.label("chemistry:icl").format],
    "copied": copied.label("chemistry:icl").family,
    "records": records,
    "stale": [page.name for page in stale()],
    "lacking": lacking(),
    "count": readme[readme.index("<!-- count of sources -->") :][:len("<!-- count of sources -->") + 2][-2:],
}))
"""


def test_a_file_in_a_folder_is_all_that_a_source_or_a_method_needs(tmp_path: Path):
    """In a copy of the package: the new names run in a study, are compared by their own family, and the tables say what is stale."""
    root = tmp_path / "src/calibrant"
    shutil.copytree(Path(calibrant.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data/sources/chemistry.py").write_text(SOURCE.lstrip())
    (root / "methods/largest.py").write_text(METHOD.lstrip())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), str(PROJECT)]), "CALIBRANT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "failures": 0,
        "methods": ["largest", "none", "wanda"],
        "label": ["reading", "icl"],
        "copied": "reading",
        "records": ["reading"],
        "stale": ["README.md", "data.md"],
        "lacking": ["chemistry"],
        "count": str(len(ours("sources")) + 1),
    }


@pytest.mark.parametrize("kind", ["source", "method"])
def test_what_must_be_done_for_a_new_one_is_one_command(kind: str):
    assert "make generate" in (PROJECT / "docs/architecture.md").read_text().partition(f"- **A {kind}**")[2]
