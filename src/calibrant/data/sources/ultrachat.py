"""UltraChat: conversations between two language models, filtered."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, train_and_test
from calibrant.data._messages import Message
from calibrant.data.hub import HubDataset, records
from calibrant.errors import DataError

HUB: Final = HubDataset("HuggingFaceH4/ultrachat_200k", first=20_000)


@dataclass(frozen=True, repr=False)
class UltraChat(StoredSource):
    """Ding et al. 2023 (arXiv:2305.14233), as filtered for Zephyr: a user's requests and an
    assistant's answers, both written by a model.

    It stands for what a chat model meets in use, and is the usual set to calibrate one with. The
    front of train_sft calibrates, that of test_sft measures. The hub has the fields prompt,
    prompt_id and messages, a list of {content, role}. All messages are the row's turns, the first
    request and its answer are its question and answer: `Row(question=…, answer=…,
    turns=(Message("user", …), Message("assistant", …), …))`.
    """

    kind = "questions"
    family = "instructions"
    licence = "MIT"
    homepage = "https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k"
    hub = HUB
    default = "chat"
    fields = ("question", "answer", "turns")

    def read(self) -> SourceRows:
        train, origin = records(HUB, "train_sft", [("ultrachat", "train")])
        test, measured = records(HUB, "test_sft", [("ultrachat", "test")])
        return SourceRows(
            train_and_test(conversations(train), conversations(test)),
            f"{origin}; measured on {measured}",
        )


def conversations(entries: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row for each conversation in which a request is answered."""
    for record in entries:
        try:
            messages = record["messages"]
            turns = tuple(_message(message) for message in messages)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"a record of ultrachat has no messages of role and content: {str(record)[:60]!r}",
                subject="ultrachat",
            ) from error
        # What counts is the first request, whatever stands before it, and what comes right after.
        for request, reply in pairwise(turns):
            if request.role == "user" and request.content:
                if reply.role == "assistant" and reply.content:
                    yield Row(question=request.content, answer=reply.content, turns=turns)
                break


def _message(message: dict[str, Any]) -> Message:
    return Message(message["role"], message["content"].strip())
