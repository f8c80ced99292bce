import json
import math
from dataclasses import replace

import numpy as np
import pytest

from calibrant.compare import Similarity
from calibrant.foreign import visible
from calibrant.report.page.network import MOST_EDGES, Effect, Network, Node, network
from calibrant.report.page.rendering import digest, embedded, vega_bundle
from calibrant.report.plots.theme import FAMILIES

from tests.report.page.browser import HOSTILE, data_in, similar


def page(data: Network) -> str:
    return network(data)


def hand(**changes: object) -> Network:
    """Three sets, of which the first two are most alike; a and b by what they say only."""
    words = np.array([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]])
    statistics = np.array([[1, math.nan, 0.5], [math.nan, 1, math.nan], [0.5, math.nan, 1]])
    nodes = [
        Node("set-1", "a", "corpus", 2.0, "+2.000"),
        Node("set-2", "b", "code", 1.0, "+1.000"),
        Node("set-3", "c", "control", None, ""),
    ]
    given = {
        "nodes": nodes,
        "similarity": Similarity(("a", "b", "c"), {"words": words, "statistics": statistics, "masks": np.full((3, 3), math.nan)}),
        "measured": [],
        "effects": [],
        "baseline": "",
        **changes,
    }
    return Network(**given)


def test_edges_are_the_pairs_that_are_known_strongest_first():
    told = data_in(page(hand()), "network-data")
    assert told["measures"]["words"]["edges"] == [[0, 1, 0.9], [1, 2, 0.4], [0, 2, 0.2]]
    assert told["measures"]["statistics"]["edges"] == [[0, 2, 0.5]]
    assert "masks" not in told["measures"]


def test_the_threshold_spans_what_is_observed_and_holds_every_edge_at_its_end():
    for data in (hand(), similar(6), similar(60)):
        for measure in data_in(page(data), "network-data")["measures"].values():
            values = [value for _, _, value in measure["edges"]]
            assert measure["low"] <= min(values) < measure["low"] + measure["step"]
            assert max(values) <= measure["high"] < max(values) + measure["step"]
            assert measure["low"] <= measure["start"] <= measure["high"]


def test_at_first_there_are_some_lines_and_not_all():
    (words, statistics) = data_in(page(similar(60)), "network-data")["measures"].values()
    for measure in (words, statistics):
        assert 60 < sum(value >= measure["start"] for _, _, value in measure["edges"]) < 300


def test_only_the_strongest_edges_are_embedded():
    data = similar(80)
    known = data.similarity.by["words"][np.triu_indices(80, 1)]
    edges = data_in(page(data), "network-data")["measures"]["words"]["edges"]
    assert len(edges) == MOST_EDGES < len(known)
    assert edges[-1][2] == pytest.approx(np.sort(known)[-MOST_EDGES], abs=1e-4)


def test_a_measure_that_nothing_is_known_of_is_disabled_with_the_reason():
    html = page(hand())
    assert 'value="masks" disabled> <span>the masks that they lead to <em>(not in this store)</em>' in html
    assert 'value="words" checked>' in html


def test_the_better_the_larger_and_without_a_result_small_and_hollow():
    first, second, third = data_in(page(hand()), "network-data")["nodes"]
    assert second["size"] > first["size"] > third["size"]
    assert (third["fill"], third["stroke"], third["text"]) == ("var(--card)", "var(--f-control)", "no result")
    assert [n["place"] for n in (first, second, third)] == [1, 0, 2], "the keyboard follows the ranking"
    assert "small and hollow: no result" in page(hand())


def test_a_control_that_is_many_times_worse_leaves_the_others_apart():
    nodes = [Node(f"set-{i}", n, f, v, "") for i, (n, f, v) in enumerate([("a", "corpus", 1.0), ("b", "code", 1.2), ("c", "control", 90.0)])]
    first, second, third = (n["size"] for n in data_in(page(hand(nodes=nodes)), "network-data")["nodes"])
    assert first > 3 * second
    assert second == third


def test_families_differ_in_shape_and_the_legend_has_those_present():
    assert len({style.shape for style in FAMILIES.values()}) == len(FAMILIES)
    html = page(hand())
    assert ">running text</li>" in html
    assert ">a control without content</li>" in html
    assert "your own data" not in html


def test_effects_beyond_noise_are_drawn_and_no_others():
    effects = [Effect(0, 0, -0.5, "better", "t0"), Effect(1, 1, 0.2, "worse", "t1"), Effect(2, 0, 0.1, "not significant", "t2")]
    html = page(hand(effects=effects, measured=similar(2).measured[:2], baseline="a"))
    told = data_in(html, "network-data")
    assert told["effects"] == [[0, 3, "better", "t0"], [1, 4, "worse", "t1"]]
    assert [n["page"] for n in told["nodes"]] == ["set-1", "set-2", "set-3", "", ""]
    assert 'id="network-effects">' in html
    assert "than on <bdi>a</bdi>" in html
    assert html.count("<td>-0.500</td>") == 1
    assert "0.100" not in html


@pytest.mark.parametrize(("baseline", "reason"), [("", "no set to compare with"), ("a", "no difference is significant")])
def test_effects_that_cant_be_shown_say_why(baseline: str, reason: str):
    html = page(hand(baseline=baseline, effects=[Effect(0, 0, 0.1, "not significant", "")], measured=similar(2).measured[:1]))
    assert 'id="network-effects" disabled' in html
    assert reason in html


def test_the_table_holds_the_most_alike_pairs_of_each_measure_side_by_side():
    html = page(hand())
    first, second, third = html.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:3]
    assert "<bdi>a</bdi> and <bdi>b</bdi></td><td>0.900" in first
    assert "<bdi>a</bdi> and <bdi>c</bdi></td><td>0.500" in first
    assert second.endswith("0.400</td><td></td><td></td>")
    assert "0.200" in third
    assert "<caption>" in html
    assert html.count('scope="col"') == 5


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_sets_make_a_sentence(count: int):
    html = page(similar(count))
    assert "needs two calibration sets" in html
    assert "<script" not in html


def test_a_store_without_facts_says_what_to_do():
    nothing = hand(similarity=Similarity((), {}))
    assert "computed again" in page(nothing)
    assert "<script" not in page(nothing)
    effects = replace(nothing, effects=[Effect(0, 0, -0.5, "better", "")], measured=similar(2).measured[:1], baseline="b")
    assert 'id="network-effects" checked' in page(effects), "what is known is drawn"


def test_names_are_text_and_nothing_ends_the_script():
    html = page(similar(6, names=[f"{HOSTILE}{i}" for i in range(6)]))
    assert html.count("<script") == html.count("</script>") == 1
    assert "<img" not in html
    assert "\x00" not in html
    told = html.partition('id="network-data">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(told)
    assert json.loads(told)["nodes"][0]["name"] == visible(f"{HOSTILE}0")
    assert len(json.loads(told)["nodes"][0]["label"]) == 26


def test_layouts_start_alike():
    assert page(similar(60)) == page(similar(60))


def test_data_that_json_lacks_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded("x", [math.nan])


def test_the_bundle_is_made_once_and_ends_no_script():
    assert vega_bundle() is vega_bundle()
    assert "</script" not in vega_bundle().lower()
    assert "<!--" not in vega_bundle()
    assert "window.vegaEmbed" in vega_bundle()


def test_a_digest_is_what_a_policy_asks_for():
    assert digest("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
