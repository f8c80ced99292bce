"""What lm-evaluation-harness asks of a model, answered by the engine. Texts become token ids
exactly as in the harness's own `hf` model.

Where a context ends in spaces, they belong to the continuation; the split is that of the ids of
both together; an empty context is the start token, or the end token where there is none; what is
too long loses its beginning. The harness itself isn't imported here: `calibrant.evaluators.harness`
mixes `Answering` into its `LM`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import templated
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._decoding import Decoder
from calibrant.evaluators._scoring import Request, Scored, score
from calibrant.models import open_model
from calibrant.results.outcomes import Journal
from calibrant.system.progress import Progress, silent

LONGEST: Final = 2048
"""The context of a model whose configuration and tokenizer don't say how long it is, as the
harness has it.
"""

NEW_TOKENS: Final = 256
"""How much is generated where a task doesn't say, as the harness has it."""

TOKENS_PER_PASS: Final = 512
"""Tokens whose states are held at once; the result doesn't depend on it beyond rounding."""

_LENGTHS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_HARMLESS: Final = {"until", "do_sample", "temperature", "top_p", "top_k", *_LENGTHS}
"""What may be asked of a greedy generation without changing what it gives."""


@dataclass(frozen=True)
class Ending:
    """When a generation ends: at any of these texts, or after so many tokens."""

    until: tuple[str, ...]
    room: int


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
            # The harness's command line says cuda:0 where nobody said anything, and its own model
            # takes what there is.
            available = device is not None and (
                not device.startswith("cuda") or torch.cuda.is_available()
            )
            opened = open_model(pretrained, dtype, str(device) if available else "auto")
            pretrained, tokenizer = opened.model, tokenizer or opened.tokenizer
        if tokenizer is None:
            raise SpecError(
                f"a model that is open already ({type(pretrained).__name__}) needs its tokenizer beside it",
                subject="tokenizer",
            )
        self.model, self.tokenizer = pretrained, tokenizer
        self._device = pretrained.device
        self._length, self._adds, self._prefix = max_length, add_bos_token, prefix_token_id
        self._budget, self._progress, self._measured = (
            tokens_per_pass or TOKENS_PER_PASS,
            progress,
            measured,
        )
        self._journal = Journal() if journal is None else journal
        self._last: tuple[str | None, list[int]] = (None, [])

    @property
    def max_length(self) -> int:
        """The longest sequence of tokens that the model is shown."""
        config = getattr(self.model.config, "text_config", None) or self.model.config
        lengths = [
            getattr(config, name, None)
            for name in ("n_positions", "max_position_embeddings", "n_ctx")
        ]
        limit = getattr(self.tokenizer, "model_max_length", None)
        # A tokenizer that knows no limit says 10³⁰.
        return int(
            next(
                (n for n in (self._length, *lengths) if n),
                limit if limit and limit < 10**9 else LONGEST,
            )
        )

    @property
    def max_gen_toks(self) -> int:
        """How many tokens are generated where a task doesn't say."""
        return NEW_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise DataError(
                f"the tokenizer {self.tokenizer_name!r} has no eos_token_id, and the harness needs one",
                subject="eos_token_id",
            )
        return token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: the start token, or the end
        token where there is none.
        """
        token = self._prefix if self._prefix is not None else self.tokenizer.bos_token_id
        return int(token) if isinstance(token, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Under which the harness keeps prompts that were put into this tokenizer's chat
        template.
        """
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that is used: the tokenizer's own, or the one of several that is
        named. `SpecError` if it has none.
        """
        if chat_template is False or chat_template is None:
            return None
        known = self.tokenizer.chat_template
        name = chat_template if isinstance(chat_template, str) else "default"
        if not known or (isinstance(known, dict) and name not in known):
            names = f"only {', '.join(known)}" if isinstance(known, dict) and known else "none"
            raise SpecError(
                f"there is no chat template {name!r}: the tokenizer {self.tokenizer_name!r} has {names}",
                subject=name,
            )
        return known[name] if isinstance(known, dict) else known

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
            users = [turn for turn in chat_history if turn["role"] != "system"]
            return templated(self.tokenizer, users, **options)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the ids of a text, with what the tokenizer puts around it unless the text
        begins with the start token already.
        """
        special = self._adds if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(
            str(self.tokenizer.decode(self.prefix_token_id))
        ):
            special = False
        return self._ids(string, special)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log likelihood of each continuation after its context, and whether greedy decoding
        would give it.
        """
        pairs = [self.pair(*request.args) for request in requests]
        return [
            (-scored.nats, scored.greedy)
            for scored in self._scored([self._cut(*pair) for pair in pairs])
        ]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log likelihood of each whole text, every token predicted once; texts too long for the
        model in windows that see all they can.
        """
        windows = [list(self._windows(self.tok_encode(request.args[0]))) for request in requests]
        scored = iter(self._scored([window for text in windows for window in text]))
        return [-sum(next(scored).nats for _ in text) for text in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what greedy decoding gives after each prompt, up to the first text that ends
        it. `SpecError` for sampling.
        """
        endings = [self._ending(request.args[1]) for request in requests]
        prompts = [
            self._prompt(request.args[0], ending)
            for request, ending in zip(requests, endings, strict=True)
        ]
        names = [
            _name("generate", prompt, ending.until, ending.room)
            for prompt, ending in zip(prompts, endings, strict=True)
        ]
        requested = dict(zip(names, zip(prompts, endings, strict=True), strict=True))
        left = sum(name not in self._journal for name in requested)
        for ending in dict.fromkeys(endings):
            alike = [name for name, (_, one) in requested.items() if one == ending]
            decoder = Decoder(
                self.model,
                [requested[name][0] for name in alike],
                ending.room,
                self._ended(ending),
                self._measured,
            )
            for batch in decoder.batches():
                new = [at for at in batch if alike[at] not in self._journal]
                if new:  # in the same company as ever, so that a run that was killed ends as one that wasn't
                    written = dict(zip(batch, decoder.run(batch), strict=True))
                    self._journal.add({alike[at]: list(written[at].ids) for at in new})
                    left -= len(new)
                    self._progress("generating", len(requested) - left, len(requested))
        return [
            self._text(self._journal[name], ending)
            for name, ending in zip(names, endings, strict=True)
        ]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of what is scored after it, split as the harness
        splits them.
        """
        if context == "":
            ids = self.tok_encode(continuation, add_special_tokens=False)
            return (
                ([self.prefix_token_id], ids)
                if ids[:1] != [self.prefix_token_id]
                else (ids[:1], ids[1:])
            )
        bare = context.rstrip()
        whole = self.tok_encode(context + continuation)
        if bare != self._last[0]:  # the choices of an item follow one another
            self._last = (bare, self.tok_encode(bare))
        before = self._last[1]
        return before, whole[len(before) :]

    def _ids(self, text: str, special: bool | None) -> list[int]:
        options: dict[str, Any] = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer.encode(text, verbose=False, **options))

    def _cut(self, context: list[int], continuation: list[int]) -> Request:
        """As much of the context as there is room for; the last token is predicted and not
        shown.
        """
        room = self.max_length + 1 - len(continuation)
        if not continuation or not context or room < 1:
            raise DataError(
                f"a continuation of {len(continuation)} tokens after {len(context)} can't be scored: "
                f"both need at least one, and the model is shown at most {self.max_length}",
                subject="continuation",
            )
        return Request(tuple(context[-room:]), tuple(continuation))

    def _windows(self, ids: list[int]) -> Iterator[Request]:
        for begin in range(0, len(ids), self.max_length):
            end = min(begin + self.max_length, len(ids))
            before = (
                ids[max(0, end - self.max_length - 1) : begin] if begin else [self.prefix_token_id]
            )
            yield Request(tuple(before), tuple(ids[begin:end]))

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        """What the engine says of each; the same request is scored once, and what the journal
        knows only if it shares a pass with something new.
        """
        names = [_name("score", r.context, r.continuation) for r in requests]
        distinct = dict(zip(names, requests, strict=True))
        order = list(distinct)
        known = {
            at: Scored(*self._journal[name])
            for at, name in enumerate(order)
            if name in self._journal
        }
        left = len(order) - len(known)

        def keep(results: Mapping[int, Scored]) -> None:
            nonlocal left
            self._journal.add(
                {order[at]: [s.nats, s.tokens, s.greedy] for at, s in results.items()}
            )
            left -= len(results)
            self._progress("scoring", len(order) - left, len(order))

        score(
            self.model,
            list(distinct.values()),
            tokens_per_pass=self._budget,
            on_results=keep,
            known=known,
            measured=self._measured,
        )
        return [Scored(*self._journal[name]) for name in names]

    def _ending(self, options: Mapping[str, Any]) -> Ending:
        """What the options of a generation ask for; all ways of writing its length are known to
        the harness.
        """
        heat, sample = float(options.get("temperature") or 0), options.get("do_sample")
        odd = [
            f"{name}={value!r}"
            for name, value in options.items()
            if name not in _HARMLESS and value is not None
        ]
        if sample or (sample is None and heat > 0) or odd:
            setting = ", ".join(odd) if odd else f"do_sample={sample}, temperature={heat}"
            raise SpecError(
                f"generation is greedy here, and {setting} asks for something else; take a task without it",
                subject=setting,
            )
        until = options.get("until") or []
        texts = [until] if isinstance(until, str) else list(until)
        texts += (
            [end] if (end := str(self.tokenizer.decode(self.eot_token_id))) not in texts else []
        )
        room = next(
            (int(options[name]) for name in _LENGTHS if options.get(name) is not None),
            self.max_gen_toks,
        )
        if not 0 < room < self.max_length:
            raise DataError(
                f"{room} new tokens don't fit: the model's whole context is {self.max_length}",
                subject="max_gen_toks",
            )
        return Ending(tuple(text for text in texts if text), room)

    def _prompt(self, text: str, ending: Ending) -> tuple[int, ...]:
        """A prompt's ids, its beginning cut off where there would be no room for the answer."""
        written = bool(self.tokenizer.bos_token) and text.startswith(str(self.tokenizer.bos_token))
        ids = self._ids(text, False if written else self._adds) or [self.prefix_token_id]
        return tuple(ids[-(self.max_length - ending.room) :])

    def _ended(self, ending: Ending) -> Callable[[Sequence[int]], bool]:
        """Whether an answer is whole: at a token that ends texts, or where one of the ending's
        texts stands in its last tokens.
        """
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = {self.eot_token_id, *(own if isinstance(own, list) else [own])}
        # A text can be written in other tokens than the tokenizer's, so two more are looked at, as
        # the harness does.
        sizes = {text: len(self._ids(text, False)) + 2 for text in ending.until}
        return lambda ids: (
            ids[-1] in ends
            or any(
                text in str(self.tokenizer.decode(list(ids[-size:])))
                for text, size in sizes.items()
            )
        )

    def _text(self, tokens: list[int], ending: Ending) -> str:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        for end in ending.until:
            text = text.split(end)[0]
        return text


def _name(kind: str, *parts: Any) -> str:
    """What a request is called in the journal: a hash, of ids and never of text."""
    return hashlib.sha256(json.dumps([kind, *parts], allow_nan=False).encode()).hexdigest()[:32]
