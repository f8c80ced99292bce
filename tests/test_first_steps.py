"""The notebook for a first look: it runs without internet, and what is kept of it is small."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples/first_steps.ipynb"
LARGEST = 200_000
"""Bytes of the notebook with its outputs."""


def test_the_notebook_has_ten_cells_and_was_run_in_order() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert len(cells) == 10
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    # A warning of the machine that it was run on would tell where that keeps its files.
    assert ".venv" not in NOTEBOOK.read_text("utf-8")


@pytest.mark.slow
# A kernel is spoken to over loopback.
@pytest.mark.enable_socket
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="a notebook is run by nbclient")
    import nbformat

    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    # An error in a cell is raised here.
    nbclient.NotebookClient(notebook, timeout=1200, resources=resources).execute()
    shown = json.dumps(notebook)
    for told in ("<svg", "Recommendation", "quantized", "nats/token", "compressed_tensors"):
        assert told in shown
    assert (tmp_path / "small/compressed_tensors/config.json").is_file()
