"""What lm-evaluation-harness asks of a model, answered by the engine. Texts become token ids
exactly as in the harness's own `hf` model.

Spaces at the end of a context belong to the continuation; the ids of both together are split; an
empty context is the start token, or the end token where there is none; what is too long loses its
beginning. The harness itself isn't imported here: `calibrant.evaluators.harness` mixes `Answering`
into its `LM`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import templated
from calibrant.decoding import Decoder
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import Steps
from calibrant.evaluators._scoring import Request, Scored, score_named
from calibrant.models import open_model
from calibrant.models.reading import end_tokens
from calibrant.results.outcomes import Journal
from calibrant.system.progress import Progress, silent

LONGEST: Final = 2048
"""The context of a model whose configuration and tokenizer don't say how long it is, as the
harness has it.
"""
NEW_TOKENS: Final = 256
"""Tokens that are generated where a task doesn't say, as the harness has it."""
TOKENS_PER_PASS: Final = 512
"""Tokens whose states are held at once; the result doesn't depend on it beyond rounding."""

_LENGTHS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_HARMLESS: Final = {"until", "do_sample", "temperature", "top_p", "top_k", *_LENGTHS}
"""Options that may be asked of a greedy generation without changing what it gives."""


@dataclass(frozen=True)
class Ending:
    """When a generation ends: at any of these texts, or after so many tokens."""

    until: tuple[str, ...]
    room: int


@dataclass(frozen=True)
class _Prompt:
    """What a generation begins with and how it ends; `name` is its name in the journal."""

    name: str
    ids: tuple[int, ...]
    ending: Ending


class Answering:
    """Answers the three kinds of requests. Mixed in before the harness's `LM`, whose other parts
    are left as they are.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel = "smollm2",
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        tokens_per_pass: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        progress: Progress = silent,
        journal: Journal | None = None,
        measured: str = "a request of the harness",
    ) -> None:
        """`pretrained` is whatever `open_model` opens, or a model with its `tokenizer`.

        Batch sizes are taken and not used: the engine fills passes of `tokens_per_pass` tokens,
        `TOKENS_PER_PASS` if none are given.
        """
        super().__init__()
        if isinstance(pretrained, str):
            opened = open_model(pretrained, dtype, _device_that_is_there(device))
            pretrained = opened.model
            tokenizer = tokenizer or opened.tokenizer
        if tokenizer is None:
            raise SpecError(
                f"a model that is open already ({type(pretrained).__name__}) needs its tokenizer "
                f"beside it",
                subject="tokenizer",
            )
        self.model = pretrained
        self.tokenizer = tokenizer
        # The harness's `LM` reads it.
        self._device = pretrained.device
        self._length = max_length
        self._adds_start = add_bos_token
        self._prefix = prefix_token_id
        self._tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS
        self._progress = progress
        self._measured = measured
        self._journal = Journal() if journal is None else journal
        # The text of the last context, and its tokens.
        self._last_context: tuple[str | None, list[int]] = (None, [])

    @property
    def max_length(self) -> int:
        """The longest sequence of tokens that the model is shown."""
        if self._length:
            return int(self._length)
        config = getattr(self.model.config, "text_config", None) or self.model.config
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            length = getattr(config, name, None)
            if length:
                return int(length)
        limit = getattr(self.tokenizer, "model_max_length", None)
        # A tokenizer that knows no limit says 10³⁰.
        if limit and limit < 10**9:
            return int(limit)
        return LONGEST

    @property
    def max_gen_toks(self) -> int:
        """The tokens that are generated where a task doesn't say."""
        return NEW_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise DataError(
                f"the tokenizer {self.tokenizer_name!r} has no eos_token_id, "
                f"and the harness needs one",
                subject="eos_token_id",
            )
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it: the start token, or the end token
        where there is none.
        """
        token = self._prefix
        if token is None:
            token = self.tokenizer.bos_token_id
        if isinstance(token, int):
            return int(token)
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps prompts that were put into this tokenizer's chat
        template.
        """
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that is used: the tokenizer's own, or the one of several that is
        named. `SpecError` if it has none.
        """
        if chat_template is False or chat_template is None:
            return None
        templates = self.tokenizer.chat_template
        if templates and not isinstance(templates, dict):
            return templates
        name = "default"
        if isinstance(chat_template, str):
            name = chat_template
        if templates and name in templates:
            return templates[name]
        names = f"only {', '.join(templates)}" if templates else "none"
        raise SpecError(
            f"there is no chat template {name!r}: "
            f"the tokenizer {self.tokenizer_name!r} has {names}",
            subject=name,
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the tokenizer's template writes it; without the system's turn
        if the template refuses one.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return templated(self.tokenizer, chat_history, **options)
        except DataError:
            without_system = [turn for turn in chat_history if turn["role"] != "system"]
            return templated(self.tokenizer, without_system, **options)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the ids of a text, with what the tokenizer puts around it unless the text
        begins with the start token already.
        """
        if add_special_tokens is not None:
            return self._ids(string, add_special_tokens)
        start = str(self.tokenizer.decode(self.prefix_token_id))
        special = False if string.startswith(start) else self._adds_start
        return self._ids(string, special)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log likelihood of each continuation after its context, and whether greedy
        decoding would give it.
        """
        wanted: list[Request] = []
        for request in requests:
            context, continuation = self.pair(*request.args)
            wanted.append(self._fitted_request(context, continuation))
        return [(-scored.nats, scored.greedy) for scored in self._scored(wanted)]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log likelihood of each whole text, every token predicted once; of texts too
        long for the model in windows that see all they can.
        """
        windows: list[Request] = []
        counts: list[int] = []
        for request in requests:
            before = len(windows)
            windows += self._windows(self.tok_encode(request.args[0]))
            counts.append(len(windows) - before)
        scored = self._scored(windows)
        likelihoods: list[float] = []
        begin = 0
        for count in counts:
            windows_of_text = scored[begin : begin + count]
            nats = sum((window.nats for window in windows_of_text), 0.0)
            likelihoods.append(-nats)
            begin += count
        return likelihoods

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what greedy decoding gives after each prompt, up to the first text that ends
        it. `SpecError` for sampling.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        by_ending: dict[Ending, dict[str, _Prompt]] = {}
        for prompt in prompts:
            by_ending.setdefault(prompt.ending, {})[prompt.name] = prompt
        names = {prompt.name for prompt in prompts}
        done = sum(name in self._journal for name in names)
        steps = Steps(self._progress, "generating", len(names), done)
        for ending, by_name in by_ending.items():
            self._generate(list(by_name.values()), ending, steps)
        return [self._text(self._journal[prompt.name], prompt.ending) for prompt in prompts]

    def _generate(self, prompts: Sequence[_Prompt], ending: Ending, steps: Steps) -> None:
        """Put into the journal what follows prompts that end alike; what it has already stays."""
        ids = [prompt.ids for prompt in prompts]
        decoder = Decoder(self.model, ids, ending.room, self._ended(ending), self._measured)
        for batch in decoder.batches():
            names = [prompts[place].name for place in batch]
            if all(name in self._journal for name in names):
                continue
            entries: dict[str, list[int]] = {}
            # In the same company as ever, so that a run that was killed ends as one that wasn't.
            for name, answer in zip(names, decoder.run(batch), strict=True):
                if name not in self._journal:
                    entries[name] = list(answer.ids)
            self._journal.add(entries)
            steps.add(len(entries))

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of what is scored after it, split as the harness
        splits them.
        """
        if context == "":
            prefix = [self.prefix_token_id]
            ids = self.tok_encode(continuation, add_special_tokens=False)
            if ids[:1] == prefix:
                return prefix, ids[1:]
            return prefix, ids
        bare = context.rstrip()
        whole = self.tok_encode(context + continuation)
        # The choices of an item follow one another, so its context is tokenized once.
        if bare != self._last_context[0]:
            self._last_context = (bare, self.tok_encode(bare))
        before = self._last_context[1]
        return before, whole[len(before) :]

    def _ids(self, text: str, special: bool | None) -> list[int]:
        if special is None:
            return list(self.tokenizer.encode(text, verbose=False))
        return list(self.tokenizer.encode(text, verbose=False, add_special_tokens=special))

    def _fitted_request(self, context: list[int], continuation: list[int]) -> Request:
        """Return a request with as much of the context as there is room for; the last token is
        predicted and not shown.
        """
        # The last token of the continuation isn't shown, so there is room for one more.
        room = self.max_length + 1 - len(continuation)
        if not continuation or not context or room < 1:
            raise DataError(
                f"a continuation of {len(continuation)} tokens after {len(context)} can't be "
                f"scored: both need at least one, and the model is shown at most "
                f"{self.max_length}",
                subject="continuation",
            )
        return Request(tuple(context[-room:]), tuple(continuation))

    def _windows(self, ids: list[int]) -> Iterator[Request]:
        before = [self.prefix_token_id]
        for begin in range(0, len(ids), self.max_length):
            # A short last window is filled with what stands before it.
            end = min(begin + self.max_length, len(ids))
            if begin:
                first = max(0, end - self.max_length - 1)
                before = ids[first:begin]
            yield Request(tuple(before), tuple(ids[begin:end]))

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        """Return what the engine says of each; the same request is scored once."""
        names = [_name("likelihood", request.context, request.continuation) for request in requests]
        distinct = {name: [request] for name, request in zip(names, requests, strict=True)}
        scored = score_named(
            self.model,
            distinct,
            self._journal,
            steps=Steps(self._progress, "scoring", len(distinct)),
            tokens_per_pass=self._tokens_per_pass,
            measured=self._measured,
        )
        return [scored[name][0] for name in names]

    def _ending(self, options: Mapping[str, Any]) -> Ending:
        """Return what the options of a generation ask for; all ways of writing its length are
        known to the harness.
        """
        self._check_greedy(options)
        until = options.get("until") or []
        texts = [until] if isinstance(until, str) else list(until)
        end = str(self.tokenizer.decode(self.eot_token_id))
        if end not in texts:
            texts.append(end)
        room = self.max_gen_toks
        # Of several names for the length the first one counts.
        for name in reversed(_LENGTHS):
            if options.get(name) is not None:
                room = int(options[name])
        if not 0 < room < self.max_length:
            raise DataError(
                f"{room} new tokens don't fit: the model's whole context is {self.max_length}",
                subject="max_gen_toks",
            )
        return Ending(tuple(text for text in texts if text), room)

    def _check_greedy(self, options: Mapping[str, Any]) -> None:
        """Raise `SpecError` for options that ask for anything but greedy decoding."""
        temperature = float(options.get("temperature") or 0)
        sample = options.get("do_sample")
        others: list[str] = []
        for name, value in options.items():
            if name not in _HARMLESS and value is not None:
                others.append(f"{name}={value!r}")
        sampled = sample or (sample is None and temperature > 0)
        if not sampled and not others:
            return
        setting = ", ".join(others) or f"do_sample={sample}, temperature={temperature}"
        raise SpecError(
            f"generation is greedy here, and {setting} asks for something else; "
            f"take a task without it",
            subject=setting,
        )

    def _prompt(self, text: str, options: Mapping[str, Any]) -> _Prompt:
        """Return a prompt, its beginning cut off where there would be no room for the answer."""
        ending = self._ending(options)
        start = self.tokenizer.bos_token
        has_start = bool(start) and text.startswith(str(start))
        special = False if has_start else self._adds_start
        ids = self._ids(text, special) or [self.prefix_token_id]
        most = self.max_length - ending.room
        shown = tuple(ids[-most:])
        name = _name("generate", shown, ending.until, ending.room)
        return _Prompt(name, shown, ending)

    def _ended(self, ending: Ending) -> Callable[[Sequence[int]], bool]:
        """Return what says whether an answer is whole: at a token that ends texts, or where one of
        the ending's texts stands in its last tokens.
        """
        end_ids = {self.eot_token_id, *end_tokens(self.model, self.tokenizer)}
        # A text can be written in other tokens than the tokenizer's, so two more are looked at, as
        # the harness does.
        sizes = {text: len(self._ids(text, False)) + 2 for text in ending.until}
        return partial(self._is_whole, end_ids, sizes)

    def _is_whole(self, end_ids: set[Any], sizes: Mapping[str, int], ids: Sequence[int]) -> bool:
        if ids[-1] in end_ids:
            return True
        for text, size in sizes.items():
            last = list(ids[-size:])
            if text in str(self.tokenizer.decode(last)):
                return True
        return False

    def _text(self, tokens: list[int], ending: Ending) -> str:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        for end in ending.until:
            text = text.split(end)[0]
        return text


def _device_that_is_there(device: str | None) -> str:
    # The harness's command line says cuda:0 where nobody said anything, and its own model takes
    # what there is.
    missing = str(device).startswith("cuda") and not torch.cuda.is_available()
    if device is None or missing:
        return "auto"
    return str(device)


def _name(kind: str, *parts: Any) -> str:
    """Return what a request is called in the journal: a hash, of ids and never of text."""
    content = json.dumps([kind, *parts], allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
