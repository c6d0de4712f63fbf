"""Every notebook runs from top to bottom, within two minutes, and shows its plots."""

from pathlib import Path

import pytest

HOST = "in_a_ray_pipeline"
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, joined):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=joined)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if path.stem != HOST:  # there the notebook itself starts Ray
        assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs), "no plot is shown"


def test_notebooks_exist_and_are_stored_with_their_outputs_of_one_run():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), path.name
        # What libraries say on standard error names folders of the machine it ran on.
        assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs), path.name
