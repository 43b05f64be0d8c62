"""The model being served: its facts, its tokenizer, its chat template, and the names clients may call it by."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import anyio.to_thread

from engine.config import EngineInfo
from engine.errors import ModelLoadError
from engine.grammar.structure import Chain, Exact, Node, Token
from engine.models.files import is_present
from engine.request import Decoding
from server.formats.reasoning import TAGS, ReasoningTags, recognise_reasoning
from server.formats.registry import format_named, recognise_format
from server.formats.tool_format import ToolFormat
from server.http.errors import BadRequest, NotFound
from server.text.chat_template import Chat, ChatPrompt, ChatTemplate
from server.text.template_examples import Message
from server.text.tokenizer import EncodingError, Tokenizer, TokenizerFiles

logger = logging.getLogger("lightcone.server")

ALIASED = ("ar", "diffusion", "speculative")
"""Decoding modes that have an alias of the model's name: `name:ar` and so on."""
LONG_TEXT = 20_000
"""Characters from which text is encoded in a thread, so that no other request waits for it."""

_T = TypeVar("_T")


class Parsers(NamedTuple):
    """How answers are taken apart: the options `tool_call_parser` and `reasoning_parser`."""

    tools: str = "auto"
    reasoning: str = "auto"


AUTOMATIC = Parsers()


class ServedModel:
    """The loaded model, as far as requests are checked against it and encoded for it."""

    def __init__(self, name: str, info: EngineInfo, tokenizer: Tokenizer, parsers: Parsers = AUTOMATIC) -> None:
        self.name = name
        self.info = info
        self.tokenizer = tokenizer
        self.chat: ChatTemplate | None = None
        self.no_chat = "This model has no chat template: use /v1/completions."
        if tokenizer.chat_template is not None:
            try:
                self.chat = ChatTemplate(tokenizer)
            except ModelLoadError as exc:  # completions work all the same
                self.no_chat = f"This model cannot chat, since {exc}: use /v1/completions."
                logger.warning("chats are refused: %s", exc)
        self.tool_format = self._choose_tool_format(parsers.tools)
        """How the model writes calls of tools; None where it calls none, or in a way that is not known."""
        self.reasoning = self._choose_reasoning(parsers.reasoning)
        """The tags around the model's reasoning; None where it has none."""

    @classmethod
    def load(
        cls, name: str, info: EngineInfo, directory: Path, *, dummy: bool = False, parsers: Parsers = AUTOMATIC
    ) -> ServedModel:
        """Reads the tokenizer of a model directory; a dummy model may lack one. Blocking. Raises ModelLoadError."""
        lacking = dummy and not is_present(directory / "tokenizer.json")
        files = TokenizerFiles.dummy(info) if lacking else TokenizerFiles.read(directory)
        try:
            return cls(name, info, Tokenizer(files, info), parsers)
        except ModelLoadError:
            raise
        except Exception as exc:  # the tokenizers library raises bare Exception for whatever it cannot read
            raise ModelLoadError(f"cannot load the tokenizer in {directory}: {' '.join(str(exc).split())}") from None

    # -- names --------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The name, then its aliases."""
        return [self.name, *(f"{self.name}:{mode}" for mode in ALIASED if mode in self.info.decodings)]

    def choose_decoding(self, model: str | None, decoding: str | None) -> Decoding:
        """The decoding mode of a request that names this model and mode.

        Raises NotFound for an unknown model, BadRequest if the model's alias and the mode disagree.
        """
        aliased = None
        if model is not None and model != self.name:
            self.check_name(model)
            aliased = model.rpartition(":")[2]
        if aliased and decoding and decoding != aliased:
            raise BadRequest(
                f"The model alias '{model}' means decoding '{aliased}', but 'decoding' is '{decoding}'. Leave one out.",
                "decoding",
                "invalid_value",
            )
        return cast(Decoding, aliased or decoding or self.info.default_decoding)

    def check_name(self, model: str | None) -> None:
        """Raises NotFound unless the name is left out, the model's, or one of its aliases."""
        if model is None or model in self.names:
            return
        shown = "".join(char if char.isprintable() else "?" for char in model[:100])
        near = difflib.get_close_matches(shown, self.names, 1)
        raise NotFound(
            f"The model '{shown}' does not exist. {'Did you mean' if near else 'This server serves'} "
            f"'{near[0] if near else self.name}'{'?' if near else '.'}",
            "model",
            "model_not_found",
        )

    # -- what answers are made of -------------------------------------------------------------------------------

    def spell(self, marker: str) -> Node:
        """A marker as an answer's tokens: control tokens where the model has them, else text."""
        pieces = self.tokenizer.split_control(marker)
        nodes = tuple(Exact(piece) if isinstance(piece, str) else Token(piece) for piece in pieces)
        return nodes[0] if len(nodes) == 1 else Chain(nodes)

    def _choose_tool_format(self, wanted: str) -> ToolFormat | None:
        if self.chat is None or wanted == "none":
            return None
        return (
            recognise_format(self.chat.call_example)
            if wanted == "auto"
            else format_named(wanted, self.chat.call_example)
        )

    def _choose_reasoning(self, wanted: str) -> ReasoningTags | None:
        if self.chat is None or wanted == "none":
            return None
        return recognise_reasoning(self.chat.source) if wanted == "auto" else TAGS[wanted]

    # -- text to tokens -----------------------------------------------------------------------------------------

    async def encode_prompts(
        self, texts: list[str], *, add_bos: bool = True, param: str = "prompt", bounded: bool = True
    ) -> list[list[int]]:
        """Token ids of completion prompts, or of other text without BOS.

        param: the request's field that a refusal names. bounded: BadRequest is raised for text that cannot fit the
        context.
        """
        for text in texts if bounded else ():
            self._check_length(len(text), param)
        encode = self.tokenizer.encode_prompt
        try:
            return await run_encoding(lambda: [encode(text, add_bos=add_bos) for text in texts], sum(map(len, texts)))
        except EncodingError as exc:
            raise BadRequest(str(exc), param, "invalid_value") from None

    async def encode_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of messages, up to where the assistant speaks. Raises as `chat_prompt` does."""
        return (await self.chat_prompt(Chat(messages))).token_ids

    async def chat_prompt(self, asked: Chat, *, bounded: bool = True) -> ChatPrompt:
        """The prompt of a chat, up to where the assistant speaks.

        Raises BadRequest where the model has no template, the template refuses, or, if bounded, the text cannot fit the
        context.
        """
        chat = self.chat
        if chat is None:
            raise BadRequest(self.no_chat, "messages", "unsupported_parameter")

        def check_length(characters: int) -> None:
            if bounded:
                self._check_length(characters, "messages")

        check_length(sum(_characters(message.get("content", "")) for message in asked.messages))
        try:
            size = _characters(list(asked.messages)) + _characters(list(asked.tools))
            return await run_encoding(lambda: chat.prompt(asked, check_length), size)
        except EncodingError as exc:
            raise BadRequest(str(exc), "messages", "invalid_value") from None

    def _check_length(self, characters: int, param: str) -> None:
        """Refuses text that cannot fit, however it is cut into tokens, before any work is spent on it."""
        at_least = -(-characters // self.tokenizer.longest_token)
        if at_least > self.info.max_model_len:
            raise BadRequest(
                f"This model's maximum context length is {self.info.max_model_len} tokens. However, the {param} has "
                f"{characters} characters, which are at least {at_least} tokens. Please reduce its length.",
                param,
                "context_length_exceeded",
            )


def _characters(value: object) -> int:
    """Characters of all strings in a message, or in a part of one, but for the names of its fields."""
    if isinstance(value, str):
        return len(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, items))


async def run_encoding(encode: Callable[[], _T], characters: int) -> _T:
    """The result of `encode`, which runs in a thread where it has many characters to work on."""
    return encode() if characters < LONG_TEXT else await anyio.to_thread.run_sync(encode)
