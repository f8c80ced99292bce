"""Decoding of batches against one prompt, one token and one whole forward at a time."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from calibrant import decoding
from calibrant.decoding import Decoder, Generated, check_fit, remembers
from calibrant.errors import DataError
from calibrant.models import ModelShape, view
from calibrant.models.beside import BesideDevice
from calibrant.models.readable import rope_alike_up_to
from calibrant.testing import FAMILIES, pretended_device, tiny_model

from tests.models.families import small_model
from tests.usual import usually

MOST = 7


def tokens(number: int, seed: int) -> list[int]:
    return torch.randint(3, 259, (number,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompts(shared: int) -> list[list[int]]:
    """Six prompts with `shared` tokens in common, two of one length, one far longer than
    another.
    """
    beginning = tokens(shared, 0)
    return [
        beginning + tokens(length, 1 + number) for number, length in enumerate((5, 9, 1, 30, 17, 9))
    ]


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_a_cache_holds_as_many_numbers_a_token_as_the_shape_says(family: str) -> None:
    model = tiny_model(family)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6]]), cache=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    assert ModelShape.of(view(model)).cached == held / 2


def ended(ids: Sequence[int]) -> bool:
    return len(ids) >= 3 and ids[-1] % 3 == 0


def by_hand(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], bool]:
    """What the model writes, every token from a forward over everything before it."""
    written: list[int] = []
    while len(written) < MOST:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + written]), use_cache=False).logits[
                0, -1
            ]
        written.append(max(range(len(logits)), key=lambda i: float(logits[i])))
        if len(written) >= 3 and written[-1] % 3 == 0:
            return written, False
    return written, True


def decoded(model: PreTrainedModel, given: list[list[int]]) -> list[Generated]:
    decoder = Decoder(model, given, MOST, ended, "a test")
    found = {
        number: answer
        for batch in decoder.batches()
        for number, answer in zip(batch, decoder.run(batch), strict=True)
    }
    return [found[number] for number in range(len(given))]


@pytest.mark.parametrize("shared", [pytest.param(0, marks=pytest.mark.slow), 3, 40])
@pytest.mark.parametrize("family", usually(FAMILIES))
def test_a_batch_writes_what_each_prompt_gets_alone(family: str, shared: int) -> None:
    model, given = tiny_model(family, torch.float64), prompts(shared)
    expected = [by_hand(model, prompt) for prompt in given]
    assert remembers(model)
    assert [(list(answer.ids), answer.cut) for answer in decoded(model, given)] == expected


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_single_precision_it_writes_the_same(family: str) -> None:
    model, given = tiny_model(family, torch.float32), prompts(20)
    expected = [by_hand(model, prompt) for prompt in given]
    assert [(list(answer.ids), answer.cut) for answer in decoded(model, given)] == expected


def test_blocks_that_stay_beside_a_device_write_the_same() -> None:
    model, given = tiny_model("llama", torch.float32), prompts(20)
    expected = decoded(model, given)
    with pretended_device() as device:
        BesideDevice(model, torch.device(device.name))
        assert decoded(model, given) == expected


def test_the_result_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny_model("llama", torch.float64), prompts(20)
    together = decoded(model, given)
    assert len({len(answer.ids) for answer in together}) > 1, (
        "some should end before others, or this shows little"
    )
    for size in (1, 100, 150):
        monkeypatch.setattr(decoding, "TOKENS_PER_BATCH", size)
        assert decoded(model, given) == together
    monkeypatch.setattr(decoding, "TOKENS_PER_BATCH", 1)
    assert decoded(model, given[:1]) == together[:1], "nor on what else is asked"


@pytest.mark.parametrize("family", usually(FAMILIES, {"llama", "gemma3"}))
def test_tokens_that_are_chosen_are_those_that_each_prompt_gets_alone(family: str) -> None:
    """The choice: of the eight likeliest the one whose rank is the prompt's number and the step."""
    model, given = tiny_model(family, torch.float64), prompts(3)

    def choose(logits: torch.Tensor, numbers: Sequence[int], step: int) -> torch.Tensor:
        ranks = torch.tensor([(number + step) % 8 for number in numbers])
        return logits.topk(8).indices.gather(1, ranks[:, None])[:, 0]

    decoder = Decoder(model, given, MOST, ended, "a test", choose)
    together = decoder.run(range(len(given)))
    assert len({len(answer.ids) for answer in together}) > 1
    for number, prompt in enumerate(given):
        written: list[int] = []
        while len(written) < MOST and not (written and ended(written)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + written]), use_cache=False).logits[0, -1]
            likely = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
            written.append(likely[(number + len(written)) % 8])
        assert list(together[number].ids) == written


def test_a_prompt_that_comes_several_times_is_read_once() -> None:
    model, given = tiny_model("llama", torch.float64), prompts(4)[:3]
    several = [given[0], given[1], given[0], given[2], given[0]]
    read: list[tuple[int, ...]] = []

    def noted(module: torch.nn.Module, arguments: object, named: dict[str, torch.Tensor]) -> None:
        read.append(tuple(named["input_ids"].shape))

    model.register_forward_pre_hook(noted, with_kwargs=True)
    found = Decoder(model, several, 1, lambda ids: False, "a test").run(range(5))
    beginning = (1, 4)
    assert read[0] == beginning
    assert sum(prompts_read for prompts_read, _ in read[1:]) == len(given)
    alone = Decoder(model, given, 1, lambda ids: False, "a test").run(range(3))
    assert found == [alone[place] for place in (0, 1, 0, 2, 0)]


def test_a_recurrent_model_is_shown_everything_anew() -> None:
    config = AutoConfig.for_model(
        "mamba",
        vocab_size=259,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        intermediate_size=32,
    )
    model = AutoModelForCausalLM.from_config(config).double().eval()
    given = prompts(4)
    assert not remembers(model)
    assert [(list(answer.ids), answer.cut) for answer in decoded(model, given)] == [
        by_hand(model, prompt) for prompt in given
    ]


@pytest.mark.parametrize(
    "family", ["bart", "blenderbot", "roberta", "git", "prophetnet", "dory", "opt", "bloom"]
)
def test_families_that_count_positions_themselves_write_the_same(family: str) -> None:
    model, given = small_model(family), small_prompts()
    expected = [by_hand(model, prompt) for prompt in given]
    assert [(list(answer.ids), answer.cut) for answer in decoded(model, given)] == expected


def small_prompts() -> list[list[int]]:
    """Prompts for models with a hundred tokens, not all of one length."""
    return [[3 + token % 97 for token in prompt] for prompt in prompts(3)]


def test_a_longer_prompt_beside_it_does_not_change_how_positions_turn() -> None:
    """Of a text of more than 20 tokens, these rotary positions turn otherwise. The prompts are
    shorter, longer, and so that their answers cross this.
    """
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 9.0, 27.0],
        "original_max_position_embeddings": 20,
    }
    model = tiny_model(
        "phi3",
        torch.float64,
        rope_parameters=rope,
        max_position_embeddings=80,
        original_max_position_embeddings=20,
    )
    assert rope_alike_up_to(model) == 20
    given = prompts(3)
    assert [len(prompt) for prompt in given] == [8, 12, 4, 33, 20, 12]
    expected = [by_hand(model, prompt) for prompt in [*given, given[3][:21]]]
    answers = decoded(model, [*given, given[3][:21]])
    assert [(list(answer.ids), answer.cut) for answer in answers] == expected
    together = Decoder(model, given, MOST, ended, "a test").run(range(len(given)))
    assert together == answers[:-1]


def test_generation_settings_of_the_model_do_not_matter(recwarn: pytest.WarningsRecorder) -> None:
    model, given = tiny_model("qwen2", torch.float64), prompts(5)
    plain = decoded(model, given)
    for name, value in {
        "do_sample": True,
        "temperature": 5.0,
        "repetition_penalty": 3.0,
        "max_length": 3,
        "eos_token_id": 7,
    }.items():
        setattr(model.generation_config, name, value)
    assert decoded(model, given) == plain
    assert not recwarn.list


def test_a_model_without_an_end_of_positions_takes_any_prompt() -> None:
    """XLNet says -1."""
    check_fit([[1] * 40], 8, -1, "generation")
    check_fit([[1] * 40], 8, None, "generation")
    with pytest.raises(DataError, match="47 positions"):
        check_fit([[1] * 40], 8, 47, "generation")
