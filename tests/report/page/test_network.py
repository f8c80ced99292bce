import json
import math
from dataclasses import replace

import numpy as np
import pytest

from calibrant.lab.report.page.layers import layers
from calibrant.lab.report.page.network import MOST_EDGES, Effect, Network, Node, network
from calibrant.lab.report.page.rendering import digest, embedded, vega_bundle
from calibrant.lab.stats import Similarity
from calibrant.spec.foreign import visible

from tests.report.page.browser import HOSTILE, data_in, layered, similar


def hand(**changes: object) -> Network:
    """Three sets, of which the first two are most alike; a and b by what they say only."""
    words = np.array([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]])
    statistics = np.array([[1, math.nan, 0.5], [math.nan, 1, math.nan], [0.5, math.nan, 1]])
    nodes = [
        Node("set-1", "a", "corpus", 2.0, "+2.000"),
        Node("set-2", "b", "code", 1.0, "+1.000"),
        Node("set-3", "c", "control", None, ""),
    ]
    alike = Similarity(
        ("a", "b", "c"),
        {"words": words, "statistics": statistics, "masks": np.full((3, 3), math.nan)},
    )
    return Network(
        **{
            "nodes": nodes,
            "similarity": alike,
            "measured": [],
            "effects": [],
            "baseline": "",
            **changes,
        }
    )


def test_edges_are_the_pairs_that_are_known_strongest_first():
    html = network(hand())
    told = data_in(html, "network-data")
    assert told["measures"]["words"]["edges"] == [[0, 1, 0.9], [1, 2, 0.4], [0, 2, 0.2]]
    assert told["measures"]["statistics"]["edges"] == [[0, 2, 0.5]]
    assert "masks" not in told["measures"]
    assert 'value="masks" disabled>' in html
    first, second, *_ = html.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")
    assert "<bdi>a</bdi> and <bdi>b</bdi></td><td>0.900" in first
    assert "<bdi>a</bdi> and <bdi>c</bdi></td><td>0.500" in first
    assert second.endswith("0.400</td><td></td><td></td>")
    many = similar(80)
    known = many.similarity.by["words"][np.triu_indices(80, 1)]
    edges = data_in(network(many), "network-data")["measures"]["words"]["edges"]
    assert len(edges) == MOST_EDGES < len(known)
    assert edges[-1][2] == pytest.approx(np.sort(known)[-MOST_EDGES], abs=1e-4), (
        "of many the strongest"
    )


def test_effects_beyond_noise_are_drawn_and_no_others():
    effects = [
        Effect(0, 0, -0.5, "better", "t0"),
        Effect(1, 1, 0.2, "worse", "t1"),
        Effect(2, 0, 0.1, "not significant", "t2"),
    ]
    measured = similar(2).measured[:2]
    html = network(hand(effects=effects, measured=measured, baseline="a"))
    told = data_in(html, "network-data")
    assert told["effects"] == [[0, 3, "better", "t0"], [1, 4, "worse", "t1"]]
    assert [n["page"] for n in told["nodes"]] == ["set-1", "set-2", "set-3", "", ""]
    assert 'id="network-effects">' in html
    assert (html.count("<td>-0.500</td>"), "0.100" in html) == (1, False)
    for baseline in ("", "a"):
        html = network(hand(effects=effects[2:], measured=measured, baseline=baseline))
        assert 'id="network-effects" disabled' in html
        assert ("no set to compare with" in html) is (baseline == "")


@pytest.mark.parametrize("part", ["network", "layers"])
def test_names_are_text_and_nothing_ends_the_script(part: str):
    names = [f"{HOSTILE}{i}" for i in range(6)]
    html = (
        network(similar(6, names=names))
        if part == "network"
        else layers([replace(layered(names), model=HOSTILE)], {})
    )
    assert html.count("<script") == html.count("</script>") == 1
    assert not any(text in html for text in ("<img", "\x00"))
    embedded_data = html.partition(f'id="{part}-data">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(embedded_data)
    told = json.loads(embedded_data)
    assert (told["nodes"][0]["name"] if part == "network" else told["names"][0]) == visible(
        names[0]
    )


def test_scripts_are_what_the_policy_asks_for_and_end_no_script():
    assert digest("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    bundle = vega_bundle()
    assert "</script" not in bundle.lower()
    assert "<!--" not in bundle
    assert "window.vegaEmbed" in bundle
    with pytest.raises(ValueError, match="JSON"):
        embedded("x", [math.nan])
