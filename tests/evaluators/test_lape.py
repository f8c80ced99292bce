"""Language-specific neurons before and after compression: by hand, planted, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from calibrant.errors import SpecError
from calibrant.evaluators import Subject, evaluators
from calibrant.evaluators.lape import LanguageNeurons
from calibrant.models import Opened, view
from calibrant.results.outcomes import Journal

from tests.refusing import refused
from tests.usual import LETTERS, two_languages


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same texts to calibrate on and to measure."""
    files = two_languages(tmp_path_factory.mktemp("spoken"))
    return list(map(str, files.values()))


def task(spoken: list[str], **options: object) -> LanguageNeurons:
    return LanguageNeurons(
        **{
            "sources": tuple(spoken),
            "tokens": 100_000,
            "length": 64,
            "lowest": 0.2,
            "quantile": 0.5,
            **options,
        }
    )  # pyright: ignore[reportArgumentType]


def turned(opened: Opened) -> PreTrainedModel:
    """The model with half of its neurons answering the other way round."""
    model = copy.deepcopy(opened.model)
    with torch.no_grad():
        for block in view(model).blocks:
            block.module.mlp.gate_proj.weight[::2] *= -1
    return model


def test_the_share_is_that_of_the_library_over_all_languages(
    opened: Opened, spoken: list[str]
) -> None:
    pruned = turned(opened)
    evaluator = task(spoken)
    measured = evaluator.measure(Subject(pruned, opened.tokenizer, opened.model))
    # By hand: what each model activates on each measured text, and the neurons of the lowest
    # entropies.
    chosen: list[set[tuple[int, int]]] = []
    for model in (opened.model, pruned):
        shares = torch.stack(
            [torch.cat(active(model, opened, text)) for text in evaluator._texts.values()]
        )
        likely = shares / shares.sum(0)
        entropy = -torch.special.xlogy(likely, likely).sum(0).nan_to_num(99.0)
        flat = shares.flatten().sort().values
        above = shares > flat[round(len(flat) * 0.5) - 1]
        entropy[~above.any(0)] = float("inf")
        best = entropy.argsort(stable=True)[: round(0.2 * shares.shape[1])].tolist()
        chosen.append(
            {
                (language, neuron)
                for neuron in best
                for language in range(2)
                if above[language, neuron]
            }
        )
    before, after = chosen
    for language, outcome in enumerate(measured.outcomes):
        had = {one for one in before if one[0] == language}
        assert (outcome.item, outcome.value, outcome.weight) == (
            spoken[language],
            len(had & after),
            len(had),
        )
        assert outcome.facts["now"] == len({one for one in after if one[0] == language})
    assert measured.score.value == len(before & after) / len(before)
    assert 0 < measured.score.value < 1
    assert (measured.score.unit, measured.score.better) == ("share", "higher")
    known = measured.score.facts["languages"]
    assert known == {
        "language": spoken,
        "count": [o.weight for o in measured.outcomes],
        "kept": [o.value / o.weight for o in measured.outcomes],
    }


def active(model: torch.nn.Module, opened: Opened, text: object) -> list[torch.Tensor]:
    """The share of scored tokens at which each neuron is above zero, window by window."""
    seen: dict[int, list[torch.Tensor]] = {}
    hooks = [
        block.module.mlp.act_fn.register_forward_hook(
            lambda _, __, out, at=at: seen.setdefault(at, []).append((out[0] > 0).double())
        )
        for at, block in enumerate(view(model).blocks)  # pyright: ignore[reportArgumentType]
    ]
    kept: dict[int, list[torch.Tensor]] = {}
    with torch.no_grad():
        for window in text.windows(opened.tokenizer):  # pyright: ignore[reportAttributeAccessIssue]
            seen.clear()
            model(torch.tensor([window.ids]))
            for at, (rows,) in seen.items():
                kept.setdefault(at, []).append(rows[window.unscored :])
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept[at]).mean(0) for at in sorted(kept)]


def test_the_untouched_model_is_read_once(opened: Opened, spoken: list[str]) -> None:
    reference, calls = copy.deepcopy(opened.model), []
    hook = reference.register_forward_hook(lambda *_: calls.append(1))
    base = view(reference).base.register_forward_hook(lambda *_: calls.append(1))
    evaluator = task(spoken)
    first = evaluator.measure(Subject(opened.model, opened.tokenizer, reference))
    many = len(calls)
    assert many > 0
    assert evaluator.measure(Subject(opened.model, opened.tokenizer, reference)) == first
    assert len(calls) == many
    evaluator.limited(50).measure(Subject(opened.model, opened.tokenizer, reference))
    assert len(calls) > many
    hook.remove()
    base.remove()


def test_a_killed_one_goes_on(opened: Opened, spoken: list[str], tmp_path: Path) -> None:
    """A language that was read is kept: the second time only the other one is."""
    pruned, path = turned(opened), tmp_path / "journal.jsonl"
    whole = task(spoken).measure(Subject(pruned, opened.tokenizer, opened.model))

    def kill(what: str, done: int, total: int) -> None:
        if "late" in what.split(" for ")[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task(spoken).measure(
            Subject(pruned, opened.tokenizer, opened.model, kill, Journal(path, "q"))
        )
    read: list[str] = []
    subject = Subject(
        pruned,
        opened.tokenizer,
        opened.model,
        lambda what, *_: read.append(what.split(" for ")[1]),
        Journal(path, "q"),
    )
    assert task(spoken).measure(subject) == whole
    assert set(read) == {spoken[1]}


def test_its_name_and_its_rows(spoken: list[str]) -> None:
    evaluator = task(spoken)
    assert evaluators.build(str(evaluator)) == evaluator
    assert evaluators.build("lape(sources=[wikitext, c4])") == evaluators.build(
        "lape(sources=['wikitext', 'c4'])"
    ), "a name needs no quotes"
    rows = list(evaluator.rows())
    assert {row.text[0] in LETTERS["early"] for row in rows} == {True, False}
    assert evaluator.digest()
    assert LanguageNeurons().digest() == ""


def test_without_a_reference_nothing_is_measured(opened: Opened, spoken: list[str]) -> None:
    with refused(SpecError, task(spoken)):
        task(spoken).measure(Subject(opened.model, opened.tokenizer))
