"""Words by sets on the page: what stands in a cell, and hostile names."""

import re
from dataclasses import replace

from calibrant.lab.report.page import Contents, page
from calibrant.lab.report.page.parts import language_maps, word_maps
from calibrant.lab.stats import Results
from calibrant.results import Measurement
from calibrant.spec.foreign import visible

from tests.report.made import ACCOUNT, EVERYTHING
from tests.report.page.test_page import Reader
from tests.stats.test_words import results, score

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e"


def contents(given: Results) -> Contents:
    return Contents(EVERYTHING, ACCOUNT, given)


def test_cells_have_their_share_and_colour_and_the_best_set_is_named() -> None:
    made = contents(results(c0=score({"onion": 0.5, HOSTILE: 0.9}), g0=score({"onion": 0.75})))
    ((key, of),) = word_maps(made).items()
    assert (key, of.sets, [(row.word, row.best) for row in of.rows]) == (
        "words-0",
        ("c", "g"),
        [("onion", "g"), (HOSTILE, "c")],
    )
    assert [row.cells[1] and row.cells[1][0] for row in of.rows] == [0.75, None]
    colours = [cell[1] for row in of.rows for cell in row.cells if cell]
    assert colours[0] < colours[1] < colours[2], "0.5, 0.75 and 0.9"
    text = page(made)
    assert 'href="#words"' in text
    assert re.search(
        r'<th scope="row"><bdi>onion</bdi></th><td>5</td><td class="heat-\d">0.500</td><td '
        r'class="heat-\d">0.750</td>',
        text,
    )
    assert not any(part in text for part in ("<img src=x", "\x1b", "\u202e"))
    assert visible(HOSTILE) in "".join(Reader(text).text)


def test_neurons_of_languages_have_a_part_of_their_own() -> None:
    def staying(kept: dict[str, float]) -> Measurement:
        columns = {"language": list(kept), "count": [40] * len(kept), "kept": list(kept.values())}
        return replace(
            one := score({}),
            score=replace(
                one.score, measured="language-specific neurons", facts={"languages": columns}
            ),
        )

    made = contents(
        results(c0=staying({"en": 0.5, HOSTILE: 0.3}), g0=staying({"en": 0.7, HOSTILE: 0.2}))
    )
    ((key, of),) = language_maps(made).items()
    assert key == "languages-0"
    assert [(row.word, row.best) for row in of.rows] == [(HOSTILE, "c"), ("en", "g")]
    text = page(made)
    assert 'href="#languages"' in text
    assert 'href="#languages"' not in page(contents(results()))
    assert 'href="#words"' not in text
    assert re.search(
        r'<th scope="row"><bdi>en</bdi></th><td>40</td><td class="heat-\d">0.500</td><td '
        r'class="heat-\d">0.700</td>',
        text,
    )
    assert "<img src=x" not in text
