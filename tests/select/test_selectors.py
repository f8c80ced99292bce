"""What holds of every selector: odd candidates, the model that it may need, and what it refuses."""

import pytest

from calibrant.data import CalibrationSet
from calibrant.data.select import Picking, selectors
from calibrant.errors import DataError, SpecError

from tests.select.contexts import TROUBLE, check_order, context

READING = [
    "cluster(source=python_docs)",
    "cola(source=python_docs)",
    "igsp(source=python_docs)",
    "least_perplexity(source=python_docs)",
    "similar(source=python_docs, to=python_code, candidates=20, embed=model)",
]
COUNTING = [
    "cluster(source=python_docs, embed=tfidf)",
    "longest(source=python_docs)",
    "similar(source=python_docs, to=python_code, candidates=20)",
    "zipcal(source=python_docs)",
]
WRITING = ["selfcal", "selfgen(prefix=python_docs)", "answers(source=arithmetic)"]


@pytest.mark.parametrize("spec", [*READING, *COUNTING])
def test_odd_candidates(spec: str) -> None:
    selector = selectors.build(spec)
    assert isinstance(selector, Picking)
    for candidates in TROUBLE.values():
        check_order(selector, candidates, context(model=spec in READING))


@pytest.mark.parametrize("spec", [*READING, *WRITING])
def test_without_the_model_that_it_needs_it_says_so(spec: str) -> None:
    selector = selectors.build(spec)
    assert selector.needs_model
    with pytest.raises(DataError) as caught:
        selector.select(context(model=False))
    assert caught.value.subject == str(selector)


REFUSED = [
    *(
        (f"{name}(source=python_docs, candidates=0)", "candidates")
        for name in ("cluster", "cola", "igsp", "least_perplexity", "longest", "zipcal")
    ),
    ("longest(sauce=python_docs)", "sauce"),
    ("longest(source=random_tokens)", "random_tokens"),
    ("longes(source=python_docs)", "longes"),
    ("cluster(source=python_docs, k=0)", "k"),
    ("cluster(source=python_docs, embed=words)", "words"),
    ("cola(source=python_docs, k=0)", "k"),
    ("igsp(source=python_docs, strata=0)", "strata"),
    ("zipcal(source=python_docs, pool=0)", "pool"),
    ("similar(source=python_docs, to=python_code, candidates=0)", "candidates"),
    ("similar(source=python_docs, to=random_tokens)", "random_tokens"),
    (
        "similar(source=python_docs, to='longest(source=python_docs)')",
        "longest(source=python_docs)",
    ),
    ("similar(source=python_docs)", "to"),
    ("similar(source=python_docs, to=nowhere)", "nowhere"),
    ("selfcal(t_initial=0.0)", "t_initial"),
    ("selfcal(repetition_penalty=0.0)", "repetition_penalty"),
    ("selfcal(batch=0)", "batch"),
    ("selfcal(max_tokens=0)", "max_tokens"),
    ("selfcal(prefix=wikipedia)", "prefix"),
    ("selfgen(prefix_tokens=0)", "prefix_tokens"),
    ("selfgen(drop=1.0)", "drop"),
    ("selfgen(loops=maybe)", "loops"),
    ("selfgen(max_tokens=2)", "max_tokens"),
    ("selfgen(prefix='c4 + pile')", "c4 + pile"),
    ("selfgen(prefix=random_tokens)", "random_tokens"),
    ("selfgen(prefix='selfcal')", "selfcal"),
    ("selfgen(prefix=wikipeda)", "wikipeda"),
    ("answers(n=0)", "n"),
    ("answers(n=2, temperature=0)", "n"),
    ("answers(temperature=-1)", "temperature"),
    ("answers(keep=best)", "best"),
    ("answers(thinking=maybe)", "maybe"),
    ("answers(source=wikitext)", "wikitext"),
    ("answers(source=random_tokens)", "random_tokens"),
    ("answers(source='gsm8k:cot')", "gsm8k:cot"),
    ("answers(source='gsm8k + svamp')", "gsm8k + svamp"),
    ("answers(source='longest(source=gsm8k)')", "longest(source=gsm8k)"),
]


@pytest.mark.parametrize(("spec", "subject"), REFUSED)
def test_what_can_t_be_is_refused(spec: str, subject: str) -> None:
    with pytest.raises(SpecError) as caught:
        CalibrationSet(spec)
    assert caught.value.subject == subject
    assert subject in str(caught.value)
