from calibrant.compare import Layers
from calibrant.report.page.layers import layers

from tests.report.page.browser import layered


def page(*found: Layers) -> str:
    return layers(found, {"a": "set-1", "b": "set-2"})


def test_the_table_holds_the_first_pair():
    made = layered(["a", "b", "c"], blocks=3)
    html = page(made)
    rows = html.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:-1]
    assert len(rows) == 3
    assert f"<td>{100 * (1 - made.masks[0, 1, 2]):.1f} %</td><td>{made.statistics[0, 1, 2]:.3f}</td>" in rows[2]
    assert "model.layers.2" in rows[2]
    assert "<details open" in html, "without a script it stands open"
    assert '<label class="pick" hidden><span>Runs' in html, "there is one run to choose"
