"""One request for a response: it is prepared as a chat, whose errors are told in the names that responses have."""

from __future__ import annotations

import re
from typing import Any

from server.api.call import Call
from server.api.chat.messages import Message
from server.api.chat.prepare import prepare
from server.api.chat.request import ChatRequest
from server.api.common import renamed
from server.api.prepare import Limits
from server.api.requests import parse_generation
from server.api.responses_api.items import AssistantTurn, to_messages
from server.api.responses_api.objects import FunctionCallItem, ModelResponse, ReasoningItem
from server.api.responses_api.request import ResponsesRequest, to_chat
from server.api.responses_api.response import ResponseWriter
from server.api.responses_api.store import ResponseStore, StoredResponse
from server.generation.job import Job
from server.http.errors import BadRequest
from server.http.json_codec import encode_json
from server.text.served_model import ServedModel
from server.text.tokenizer import Tokenizer


class Exchange:
    """One request for a response, from its fields to the store."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._fields: ResponsesRequest | None = None  # until the request has been read
        self._messages: list[Message] = []

    def parse(self, data: Any) -> ChatRequest:
        """The chat that a request asks for. Raises BadRequest."""
        fields = parse_generation(ResponsesRequest, data)
        if fields.store and not self._store.can_keep:
            text = "'store' is not supported: this server stores no responses (option max_stored_bytes)."
            raise BadRequest(text, "store", "unsupported_parameter")
        messages = [*self._previous(fields.previous_response_id), *to_messages(fields.input)]
        chat = to_chat(fields, messages)
        self._fields, self._messages = fields, messages
        return chat

    async def prepare(self, call: Call[ChatRequest], model: ServedModel, limits: Limits) -> Job:
        """The chat as a job. Raises BadRequest."""
        if call.fields.logprobs and model.reasoning is not None:
            text = "'include' asks for log-probabilities, which are not told of a model that reasons between tags."
            raise BadRequest(text, "include", "unsupported_parameter")
        return await prepare(call, model, limits)

    def writer(self, job: Job, tokenizer: Tokenizer) -> ResponseWriter:
        """The writer of the response."""
        if self._fields is None:
            raise ValueError("the request has not been read")
        return ResponseWriter(job, tokenizer, self._fields, self._keep)

    def renamed(self, error: BadRequest) -> BadRequest:
        """An error of the chat in the names of the request."""
        return error if self._fields is None else renamed(error, _NAMES)

    # -- inside -------------------------------------------------------------------------------------------------

    def _previous(self, response_id: str | None) -> tuple[Message, ...]:
        if response_id is None:
            return ()
        stored = self._store.get(response_id)
        if stored is None:
            # A 400, as with OpenAI: routers take a model that answers 404 for one that is gone.
            raise BadRequest(not_found(response_id), "previous_response_id", "previous_response_not_found")
        return stored.messages

    def _keep(self, response: ModelResponse) -> None:
        if response.store:
            stored = StoredResponse(encode_json(response), (*self._messages, *_said(response)))
            self._store.keep(response.id, stored)


def not_found(response_id: str) -> str:
    """The message about an id under which nothing is stored."""
    return (
        f"No response '{response_id[:64]}' is stored: only those with 'store': true are, in memory, until newer ones "
        "take their place or the server restarts."
    )


_NAMES = (
    (re.compile(r"'tools\[(\d+)\]\.function\b"), r"'tools[\1]"),
    (re.compile(r"'messages(?:\[[^']*)?'"), "'input'"),
    (re.compile(r"\bthe messages has\b"), "the input has"),
    (re.compile(r"'response_format'"), "'text.format'"),
    (re.compile(r"'(?:max_tokens|max_completion_tokens)'"), "'max_output_tokens'"),
    (re.compile(r"'reasoning_effort'"), "'reasoning.effort'"),
    (re.compile(r"'logprobs'"), "'include'"),
)
"""How chats call what a response was asked for, and how responses do."""


def _said(response: ModelResponse) -> list[Message]:
    """The assistant's message that a response is."""
    turn = AssistantTurn()
    for item in response.output:
        if isinstance(item, FunctionCallItem):
            turn.call(item.call_id, item.name, item.arguments)
        elif isinstance(item, ReasoningItem):
            turn.thoughts += "".join([part.text for part in item.content])
        else:
            turn.content = f"{turn.content or ''}{''.join([part.text for part in item.content])}"
    return turn.messages()
