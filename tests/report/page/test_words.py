"""Words by sets on the page: what stands in a cell, hostile names, and how large it gets."""

import re
from dataclasses import replace

from calibrant.report.page import Contents, page
from calibrant.report.page.words import MOST, language_maps, word_maps
from calibrant.store import Measurement

from tests.compare.test_words import results, score
from tests.report.made import ACCOUNT, EVERYTHING
from tests.report.page.test_page import Reader

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e"


def test_cells_have_their_share_and_colour_and_the_best_set_is_named() -> None:
    contents = Contents(EVERYTHING, ACCOUNT, results(c0=score({"onion": 0.5, "peel": 0.9}), g0=score({"onion": 0.75})))
    ((key, of),) = word_maps(contents).items()
    assert (key, of.sets, [(row.word, row.best) for row in of.rows]) == ("words-0", ("c", "g"), [("onion", "g"), ("peel", "c")])
    assert [row.cells[1] and row.cells[1][0] for row in of.rows] == [0.75, None]
    colours = [cell[1] for row in of.rows for cell in row.cells if cell]
    assert colours[0] < colours[1] < colours[2], "0.5, 0.75 and 0.9"
    text = page(contents)
    assert '<a href="#words">Words</a>' in text
    assert "2 of 2 groups of words; colours change at" in text
    assert re.search(r'<th scope="row"><bdi>onion</bdi></th><td>5</td><td class="heat-\d">0.500</td><td class="heat-\d">0.750</td>', text)


def test_without_words_there_is_no_such_part() -> None:
    text = page(Contents(EVERYTHING, ACCOUNT, results()))
    assert 'id="words"' not in text
    assert 'href="#words"' not in text


def test_hostile_words_and_sets_stay_text() -> None:
    text = page(Contents(EVERYTHING, ACCOUNT, results(c0=score({HOSTILE: 0.5, "peel": 0.9}), g0=score({HOSTILE: 0.6}))))
    reader = Reader(text)
    assert "<img src=x" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<img src=x onerror=alert(1)>\\x1b[31m\\u202e" in "".join(reader.text)


def test_twenty_sets_stay_small() -> None:
    words = {f"word{number}": (number * 7919 % 997) / 997 for number in range(400)}
    many = results(**{f"set_{letter}{draw}": score(words) for letter in "abcdefghijklmnopqrst" for draw in range(3)})
    contents = Contents(EVERYTHING, ACCOUNT, many)
    (of,) = word_maps(contents).values()
    assert (len(of.rows), of.words) == (MOST, 400)
    assert len(page(contents).encode()) - len(page(Contents(EVERYTHING, ACCOUNT, results())).encode()) < 500_000


def test_neurons_of_languages_have_a_part_of_their_own() -> None:
    def staying(kept: dict[str, float]) -> Measurement:
        columns = {"language": list(kept), "count": [40] * len(kept), "kept": list(kept.values())}
        return replace(one := score({}), score=replace(one.score, measured="language-specific neurons", facts={"languages": columns}))

    contents = Contents(EVERYTHING, ACCOUNT, results(c0=staying({"en": 0.5, HOSTILE: 0.3}), g0=staying({"en": 0.7, HOSTILE: 0.2})))
    ((key, of),) = language_maps(contents).items()
    assert (key, of.title) == ("languages-0", "small, wanda at 50\u00a0% sparsity, arrival: language-specific neurons")
    assert [(row.word, row.best) for row in of.rows] == [(HOSTILE, "c"), ("en", "g")]
    text = page(contents)
    assert '<a href="#languages">Languages</a>' in text
    assert "2 of 2 languages; colours change at" in text
    assert 'href="#words"' not in text
    assert re.search(r'<th scope="row"><bdi>en</bdi></th><td>40</td><td class="heat-\d">0.500</td><td class="heat-\d">0.700</td>', text)
    assert "<img src=x" not in text
