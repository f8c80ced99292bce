from calibrant.lab.report.sentences import ONLY_MEASURED, finding
from calibrant.lab.report.tables.sections import sections
from calibrant.lab.stats import Comparison, compare

from tests.stats.stores import LOSSES, results_of


def test_models_that_were_only_measured_are_shown_and_not_ranked():
    measured = compare(results_of({"dense": [[3.0, 2.0]]}))
    first, table, *_ = sections(measured)
    assert first.sentences == (ONLY_MEASURED,)
    assert table.table is not None
    (row,) = table.table.rows
    assert measured.unranked[0].dense is not None
    losses = [f"{loss.value:.3f}" for loss in measured.unranked[0].dense.losses.values()]
    assert (row.name, [figure.value for figure in row.figures][1:]) == ("dense", losses)
    assert finding(measured.unranked[0]) == ONLY_MEASURED
    assert [one.only_measured for one in (measured, compare(results_of(LOSSES)), Comparison())] == [
        True,
        False,
        False,
    ]
