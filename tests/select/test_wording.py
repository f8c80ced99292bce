"""What the errors of selectors say: the sentences that a user most likely meets."""

import pytest

from calibrant.errors import DataError, SpecError
from calibrant.select import selectors

from tests.select.contexts import built, context

REFUSED = [
    ("longes(source=python_docs)", "there is no selector called 'longes', did you mean 'longest'?"),
    ("cola(source=python_docs, k=0)", "cola(k=0): k must be at least 1"),
    ("cluster(source=python_docs, embed=words)", "cluster(embed='words'): it must be one of model, tfidf, sentence"),
    ("longest(source=random_tokens)", "longest(source='random_tokens'): a control has nothing to choose"),
    ("similar(source=python_docs)", "similar needs to, as in similar(to=…)"),
    ("selfgen(top_p=0.0)", "top_p=0.0): it must be between 0.001 and 1"),
    ("selfgen(prefix='c4 + pile')", "prefixes come from one source, such as wikipedia"),
]


@pytest.mark.parametrize(("spec", "said"), REFUSED)
def test_what_can_t_be(spec: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        selectors.build(spec)
    assert said in str(caught.value)


def test_a_model_that_is_needed() -> None:
    with pytest.raises(DataError) as caught:
        built("igsp(source=python_docs)").order(["a"], context(model=False))
    assert str(caught.value) == "igsp(source='python_docs') needs the model, and there is only a tokenizer here; name one with --model"
