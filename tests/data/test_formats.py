"""What a model is shown, letter by letter."""

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import Message, Row, formats
from calibrant.data.formats.chat import Chat
from calibrant.data.formats.cot import CoT
from calibrant.errors import DataError, SpecError
from calibrant.testing.tiny import tiny_tokenizer

from tests.effort import quick

SUM = Row(question="What is 2 and 3?", answer="5", rationale="2+3=5.")
PICK = Row(question="Where do fish live?", answer="B", choices=("air", "water"), labels=("A", "B"))
BEST = Row(question="Fish live in", answer="water", choices=("air", "water"))
PAIR = Row(
    question="Premise: It rains.\nHypothesis: It is wet.", answer="entailment", frame=("", "Label:")
)


@pytest.mark.parametrize(
    ("name", "row", "shown"),
    [
        ("text", Row(text="as\nit is "), "as\nit is "),
        ("question", SUM, "Question: What is 2 and 3?\nAnswer:"),
        ("qa", SUM, "Question: What is 2 and 3?\nAnswer: 5"),
        ("cot", SUM, "Question: What is 2 and 3?\nAnswer: 2+3=5. The answer is 5."),
        ("question", PICK, "Question: Where do fish live?\nA. air\nB. water\nAnswer:"),
        ("qa", PICK, "Question: Where do fish live?\nA. air\nB. water\nAnswer: B"),
        ("qa", BEST, "Question: Fish live in\nAnswer: water"),
        ("qa", PAIR, "Premise: It rains.\nHypothesis: It is wet.\nLabel: entailment"),
    ],
)
def test_rendering(name: str, row: Row, shown: str):
    assert formats.build(name).render(row) == shown


@pytest.mark.parametrize("name", sorted({*formats.names()} - {"chat"}))
def test_formats_name_the_fields_that_they_read_and_refuse_a_row_without_one(name: str):
    full = {"text": "t", "question": "q", "answer": "a", "rationale": "r"}
    form = formats.build(name)
    needed = {field: full[field] for field in form.needs}
    assert form.render(Row(**needed))
    for field in form.needs:
        with pytest.raises(DataError) as caught:
            form.render(Row(**{**needed, field: None}))
        assert caught.value.subject == field


def test_cot_can_ask_for_a_number_of_steps():
    row = Row(question="q", answer="a", rationale="One.\nTwo.", steps=2)
    assert CoT(steps=2).takes(row)
    assert not CoT(steps=3).takes(row)
    assert CoT().takes(row)
    assert not CoT().takes(Row(question="q", answer="a", steps=2))
    with pytest.raises(SpecError) as caught:
        CoT(steps=0)
    assert caught.value.subject == "steps"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def test_chat_speaks_in_the_models_own_template(tokenizer: PreTrainedTokenizerBase):
    def words(*turns: tuple[str, str]) -> str:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], tokenize=False
        )

    assert Chat().render(SUM, tokenizer) == words(("user", "What is 2 and 3?"), ("assistant", "5"))
    assert Chat().render(PICK, tokenizer) == words(
        ("user", "Where do fish live?\nA. air\nB. water"), ("assistant", "B")
    )
    assert Chat().render(PAIR, tokenizer) == words(
        ("user", "Premise: It rains.\nHypothesis: It is wet."), ("assistant", "entailment")
    )
    said = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you"))
    talk = Row(turns=tuple(Message(role, content) for role, content in said))
    assert Chat().render(talk, tokenizer) == words(*said)
    assert (
        Chat(system="Be brief.").render(SUM, tokenizer).startswith(words(("system", "Be brief.")))
    )
    assert Chat().takes(talk)
    assert not Chat().takes(Row(question="q"))


def refused(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """What is said where a row can't be shown as a chat."""
    with quick(), pytest.raises(DataError) as caught:
        Chat(system="s").render(SUM, tokenizer)
    assert caught.value.subject in ("chat", SUM.key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_without_a_template_cannot_chat(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = None
    assert refused(tokenizer) == refused(None)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% for m in messages %}{{ m.content", "end of template"),
        ("{% nonsense %}", "'nonsense'"),
        ("{{ messages.__class__.__mro__ }}", "'__class__'"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(1000000000) | list }}", "too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_is_broken_is_one_sentence(
    tokenizer: PreTrainedTokenizerBase, template: str, named: str
):
    tokenizer.chat_template = template
    assert named in refused(tokenizer)


LONG = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor "
    "%}{% endfor %}{% endfor %}"
)
GROWING = (
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x JOIN n.x %}{% endfor "
    "%}"
)


@pytest.mark.parametrize(
    "template",
    [
        LONG,
        "{% set x = 'a' * 90000 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) "
        "}}",
        "{{ 'a' * 10000000000 }}",
        "{% set n = 10000000000 %}{{ ['a'] * n }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        GROWING.replace("JOIN", "~"),
        GROWING.replace("JOIN", "+"),
        "{{ 'a'.ljust(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
    ],
)
def test_a_template_that_does_not_end_is_refused(tokenizer: PreTrainedTokenizerBase, template: str):
    tokenizer.chat_template = template
    assert "chat template" in refused(tokenizer)


def test_a_template_may_do_all_that_templates_do(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = (
        "{% macro turn(m, last) %}{{ '<' ~ m.role ~ '>' + m['content'] | trim }}{% if last %}{{ "
        "eos_token }}{% endif %}{% endmacro %}"
        "{% set n = namespace(count=0) %}{% for m in messages if m.content is string %}{% set "
        "n.count = n.count + 1 %}"
        "{{ turn(m, loop.last) }}{{ loop.index0 * 2 }}{{ m | tojson | length % 7 }}{% endfor %}{{ "
        "n.count }}{{ '%s' % 'x' }}"
        "{{ messages[::-1] | length }}"
    )
    sum_ = [{"role": "user", "content": "What is 2 and 3?"}, {"role": "assistant", "content": "5"}]
    assert (
        Chat().render(SUM, tokenizer)
        == tokenizer.apply_chat_template(sum_, tokenize=False)
        == "<user>What is 2 and 3?05<assistant>5<eos>222x2"
    )
