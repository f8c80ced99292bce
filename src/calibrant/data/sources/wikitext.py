"""WikiText-2: articles of the English Wikipedia."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, train_and_test
from calibrant.data.hub import HubDataset, records

_TITLE: Final = re.compile(r" = [^=].* = \n?")
HUB: Final = HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1")


@dataclass(frozen=True, repr=False)
class WikiText(StoredSource):
    """Merity et al. 2016 (arXiv:1609.07843). The lines of the files are put together into articles:
    a document is an article.

    The raw form's train part calibrates and its test part measures. A mirror without
    `wikitext2_raw/train` calibrates on `wikitext2/validation` instead, which is the *tokenised*
    form, rare words replaced by `<unk>`; the record's `origin` says which it was.
    """

    kind = "corpus"
    licence = "CC BY-SA 3.0 and GFDL"
    homepage = "https://huggingface.co/datasets/Salesforce/wikitext"
    hub = HUB
    fields = ("text",)

    def read(self) -> SourceRows:
        train, origin = records(
            HUB, "train", [("wikitext2_raw", "train"), ("wikitext2", "validation")]
        )
        test, measured = records(HUB, "test", [("wikitext2_raw", "test")])
        return SourceRows(
            train_and_test(articles(train), articles(test)), f"{origin}; measured on {measured}"
        )


def articles(lines: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Yield articles, each begun by a line ` = Title = ` that stands between empty lines."""
    article: list[str] = []
    texts = [record["text"] for record in lines]
    for before, line, after in zip(["", *texts], texts, [*texts[1:], ""], strict=False):
        if _TITLE.fullmatch(line) and not before.strip() and not after.strip():
            yield from _article(article)
            article = []
        # An empty line may come without its line end.
        article.append(line or "\n")
    yield from _article(article)


def _article(lines: list[str]) -> Iterator[Row]:
    text = "".join(lines).strip()
    if text:
        yield Row(text=text)
