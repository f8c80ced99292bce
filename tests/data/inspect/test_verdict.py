"""Rules are silent where all is well, and speak in order."""

from copy import deepcopy

import pytest

from calibrant.data.inspect.verdict import verdict

from tests.data.inspect.sound import LEGACY, Change, both, chat, energy, found, leaks, part, whole

CONTROL = part(kind="control")
SILENT: dict[str, Change] = {
    "nothing to fix": whole(),
    "no model was run": whole(model=None),
    "a model without experts": lambda facts: facts["model"].pop("experts"),
    "no kind of token but content": lambda facts: facts["model"]["energy"].update(kinds={}),
    "a control has no end": whole(disjoint_draws=None),
    "each draw of a control is like the one before": both(
        CONTROL, part(overlap=1.0), whole(disjoint_draws=None)
    ),
    "a control repeats itself": both(
        CONTROL, whole(repeated_windows=99, vocabulary={"size": 49152, "even": 1.0})
    ),
    "nonsense is hard to guess": both(
        CONTROL, lambda facts: facts["model"]["loss"].update(value=11.2)
    ),
    "drawing with replacement shares rows": both(
        LEGACY, whole(disjoint_draws=1), part(overlap=0.5)
    ),
    "the next window goes on with a text": part(truncated=4),
    "the last window of a budget in tokens is partly empty": part(padding=0.6),
    "a few near-duplicates": whole(near_duplicates={"examined": 1000, "rows": 50, "pairs": []}),
    "no rows to compare": whole(near_duplicates={"examined": 0, "rows": 0, "pairs": []}),
    "a tokenizer of bytes": whole(vocabulary={"size": 259, "even": 12.0}),
    "conversations of which nothing is lost": chat(),
    "a chat's own template": both(chat(), energy("template", median=0.7)),
    "the end of one window in reasoning": both(
        chat(cut_reasoning=1), part(windows=40, truncated=1, fills=False)
    ),
    "only the budget cuts a conversation, and leaves its window half empty": both(
        chat(cut_reasoning=2),
        part(packing="whole", fills=False, truncated=2, fitting_length=128, padding=0.6),
    ),
    "words in common are no leak": lambda facts: facts["overlap_checks"][0].update(slight=50),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_rules_are_silent_where_all_is_well(change: Change):
    assert verdict(found(change)) == ()


def test_what_spoils_a_comparison_is_said_before_what_wastes_tokens():
    said = verdict(found(both(leaks(1), part(weight=5.0), whole(disjoint_draws=2, enough=5))))
    assert [sentence.partition(" ")[0] for sentence in said] == ["only", "1", "each"]


def test_the_same_sentence_is_said_once():
    twice = both(part(weight=5.0), lambda facts: facts["parts"].append(deepcopy(facts["parts"][0])))
    assert len(verdict(found(twice))) == 1
