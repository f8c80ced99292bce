"""Pages opened headless in the Chromium of this machine, watched for whatever goes wrong in
them; and the smallest page that holds our sections.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from calibrant.lab.report.page.layers import layers
from calibrant.lab.report.page.network import Effect, Network, Node, network
from calibrant.lab.report.page.rendering import colours, digest, vega_bundle
from calibrant.lab.stats import Layers, Similarity
from calibrant.spec.families import Family
from calibrant.spec.foreign import visible

FAMILIES = get_args(Family)
HOSTILE = (
    "</script><img src=x onerror=\"alert('x')\"><b>\u202ename\x00\u2028javascript:alert(1) =cmd()"
    + "x" * 230
)


def _browser() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def _playwright() -> bool:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return True


needs_browser = pytest.mark.skipif(
    not (_browser() and _playwright()), reason="needs playwright, and a Chromium on the PATH"
)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs rights that containers don't give; the pages are our own.
        started = playwright.chromium.launch(
            executable_path=_browser(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@dataclass
class Watched:
    """A page, and what went wrong in it: messages of the console, uncaught errors, dialogs,
    requests but for the page itself.
    """

    page: Any
    wrong: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.page.on(
            "console",
            lambda m: (
                self.wrong.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None
            ),
        )
        self.page.on("pageerror", lambda e: self.wrong.append(f"uncaught: {e}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda r: self.requests.append(r.url))

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path) -> "Watched":
        """Open a file, and wait until its network and layers are drawn."""
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".symbols path", state="attached")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.strip')].every((strip) => "
            "strip.querySelector('svg'))"
        )
        return self

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{v['id']}: {[n['html'][:120] for n in v['nodes']]}"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]


@contextmanager
def opened(started: Any, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Watched]:
    """A new page of that size; `options` are those of Playwright's contexts (`color_scheme`,
    `reduced_motion`, …).
    """
    context = started.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(8000)
    yield Watched(context.new_page())
    context.close()


def similar(count: int, seed: int = 0, names: Sequence[str] = ()) -> Network:
    """A network of `count` sets in some clusters, measured on three things; of more than three
    sets the last has no result.
    """
    random = np.random.default_rng(seed)
    kinds = [FAMILIES[i % len(FAMILIES)] for i in range(count)]
    sets = tuple(names) or tuple(
        f"{kind}_{i}:{('text', 'icl', 'cot')[i % 3]}@{('many', 'crop')[i % 2]}"
        for i, kind in enumerate(kinds)
    )
    centres = random.normal(size=(max(2, count // 8), 4))
    spots = centres[np.arange(count) % len(centres)] + 0.55 * random.normal(size=(count, 4))
    apart = np.linalg.norm(spots[:, None] - spots[None], axis=-1)
    by = {
        "words": np.exp(-apart / 2),
        "statistics": np.where(np.eye(count) > 0, 1.0, np.exp(-apart / 5) * 0.4 + 0.5),
        "masks": np.full((count, count), math.nan),
    }
    np.fill_diagonal(by["masks"], 1.0)
    values = np.sort(1.5 + random.random(count))
    results = [None if count > 3 and i == count - 1 else float(values[i]) for i in range(count)]
    said = [f"+{value:.3f} ± 0.037 nats/token, rank {i + 1}" for i, value in enumerate(values)]
    nodes = [Node(f"set-{i + 1}", sets[i], kinds[i], results[i], said[i]) for i in range(count)]
    gaps = random.normal(size=(count, 3)) * 0.2
    verdicts = np.select([gaps < -0.12, gaps > 0.2], ["better", "worse"], "not significant")
    effects = [
        Effect(i, m, float(gaps[i, m]), str(verdicts[i, m]), f"{gaps[i, m]:+.3f} nats/token")
        for i in range(count)
        for m in range(3)
    ]  # pyright: ignore[reportArgumentType]
    return Network(
        nodes,
        Similarity(sets, by),
        ["python_docs", "python_code", "arithmetic"],
        effects,
        sets[0] if sets else "",
    )


def layered(sets: Sequence[str], blocks: int = 12, seed: int = 0, method: str = "wanda") -> Layers:
    """Layers of some sets: masks part more, and errors grow, in deeper blocks."""
    random, count = np.random.default_rng(seed), len(sets)
    slope = np.linspace(0.02, 0.2, blocks)
    masks, statistics = np.ones((count, count, blocks)), np.zeros((count, count, blocks))
    for i in range(count):
        for j in range(i):
            masks[i, j] = masks[j, i] = 1 - slope * (0.6 + 0.8 * random.random(blocks))
            statistics[i, j] = statistics[j, i] = slope * 4 * (0.6 + 0.8 * random.random(blocks))
    error = slope * (0.5 + random.random((count, blocks)))
    return Layers(
        "smollm2",
        method,
        "0.6",
        "arrival",
        tuple(sets),
        tuple(f"model.layers.{i}" for i in range(blocks)),
        masks,
        statistics,
        error,
    )


def small(data: Network, found: Sequence[Layers]) -> str:
    """A page with our two sections and one article a set, under the policy of the report's page."""
    style, script, vega = (
        colours() + _file("page.css") + _file("interactive.css"),
        _file("page.js"),
        vega_bundle(),
    )
    policy = (
        f"default-src 'none'; script-src '{digest(vega)}' '{digest(script)}'; style-src "
        "'unsafe-inline'; img-src data:; base-uri 'none'"
    )
    ids = {node.name: node.id for node in data.nodes}
    articles = "".join(
        f'<article id="{n.id}" class="view set"><p><a href="#runs">all</a></p>'
        f"<h2>{escape(visible(n.name))}</h2><p>{escape(n.result)}</p></article>"
        for n in data.nodes
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta '
        f'http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>Report</title><style>{style}</style></head><body>'
        '<header><h1 tabindex="-1">Report</h1></header><main><div id="overview" '
        f'class="view">{network(data)}'
        f'{layers(found, ids)}<section id="runs"><h2>Runs</h2></section></div>{articles}</main>'
        f"<script>{vega}</script><script>{script}</script></body></html>"
    )


def _file(name: str) -> str:
    return files("calibrant.lab.report.page").joinpath(name).read_text("utf-8")


def data_in(page: str, key: str) -> Mapping[str, Any]:
    """What a page embeds under that id, as a browser would read it."""
    return json.loads(page.partition(f'id="{key}">')[2].partition("</script>")[0])
