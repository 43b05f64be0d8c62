"""The prompts of many questions about one input, which begin alike, at the cost of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.chat.messages import Message
from server.api.chat.prepare import thinking_switches
from server.formats.reasoning import Thinking
from server.http.errors import BadRequest
from server.text.chat_template import Chat, Ending
from server.text.served_model import ServedModel

BETWEEN = "\n\n"
"""Stands between the input and a question."""


class Prompts:
    """Makes the prompts of questions about one input: the input's messages, with a question at the end of the last.

    The text is that of the chat. Input and question are made into tokens each for itself, so that a long input is
    encoded once and not once a question; where a template's text does not come apart there, each prompt is encoded as a
    whole.
    """

    def __init__(self, messages: Sequence[Message], model: ServedModel) -> None:
        """messages: the input. Its last message is gone on with if it is a user's; else the question is one."""
        self._model = model
        self._variables = thinking_switches(model, thinks=False)
        self._before = [message.for_template() for message in messages]
        self._opening = ""
        if self._before and self._before[-1]["role"] == "user":
            self._opening = _text(self._before.pop()["content"]) + BETWEEN

    async def make(self, questions: Sequence[str]) -> list[list[int]]:
        """The tokens of each question's prompt. Raises BadRequest."""
        first = await self._encode(self._asking(questions[0]))
        if len(questions) == 1:
            return [first]
        shared = await self._encode(self._asking(""), "continued")
        header = await self._encode([_user("")], "continued")
        prompts = []
        for text in questions:
            alone = await self._encode([_user(text)])
            if alone[: len(header)] != header:
                prompts.append(await self._encode(self._asking(text)))
            else:
                prompts.append(shared + alone[len(header) :])
        decode = self._model.tokenizer.decode
        if decode(prompts[0], skip_special_tokens=False) != decode(first, skip_special_tokens=False):
            return [await self._encode(self._asking(text)) for text in questions]
        return prompts

    def _asking(self, question: str) -> list[dict[str, Any]]:
        return [*self._before, _user(self._opening + question)]

    async def _encode(self, messages: list[dict[str, Any]], ending: Ending = "open") -> list[int]:
        prompt = await self._model.chat_prompt(Chat(messages, (), self._variables, ending))
        tags = self._model.reasoning
        if ending == "open" and tags is not None and tags.state_of(prompt.end) is Thinking.OPEN:
            message = "The model reasons before any answer, and its chat template cannot be told otherwise."
            raise BadRequest(message, "model", "unsupported_parameter")
        return prompt.token_ids


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join([part["text"] for part in content])
