"""The model being served: its facts, its tokenizer, its template, and the names clients may call it by."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import anyio.to_thread

from engine.config import EngineInfo
from engine.errors import ModelLoadError
from engine.request import Decoding
from server.api.requests import Message
from server.http.errors import BadRequest, NotFound
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer, TokenizerFiles

ALIASED = ("ar", "diffusion", "speculative")
"""Decodings that have an alias of the model's name, `name:ar` and so on."""

_T = TypeVar("_T")

LONG_TEXT = 20_000
"""Characters from which encoding is worth a thread, so that no other request waits for it."""


@dataclass(frozen=True)
class Echo:
    """A prompt as it is repeated in front of its answer."""

    text: str = ""
    offsets: tuple[int, ...] = ()
    """Where in the text each token of the prompt begins; empty unless the tokens' log-probabilities are told."""


class ServedModel:
    """Everything about the loaded model that requests are checked against and encoded with."""

    def __init__(self, name: str, info: EngineInfo, tokenizer: Tokenizer) -> None:
        self.name = name
        self.info = info
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer) if tokenizer.chat_template is not None else None

    @classmethod
    def load(cls, name: str, info: EngineInfo, directory: Path, *, dummy: bool = False) -> ServedModel:
        """Reads the tokenizer of a model directory; a dummy model may lack one. Blocking. Raises ModelLoadError."""
        lacking = dummy and not (directory / "tokenizer.json").exists()
        files = TokenizerFiles.stand_in(info) if lacking else TokenizerFiles.read(directory)
        try:
            return cls(name, info, Tokenizer(files, info))
        except ModelLoadError:
            raise
        except Exception as exc:  # the tokenizers library raises bare Exception for whatever it cannot read
            raise ModelLoadError(f"cannot load the tokenizer in {directory}: {' '.join(str(exc).split())}") from None

    @property
    def names(self) -> list[str]:
        """The name, then its aliases."""
        return [self.name, *(f"{self.name}:{mode}" for mode in ALIASED if mode in self.info.decodings)]

    def choose_decoding(self, model: str | None, decoding: str | None) -> Decoding:
        """The mode a request runs in. Raises NotFound for an unknown model, BadRequest if alias and field disagree."""
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

    async def encode_prompts(self, texts: list[str], *, add_bos: bool = True, param: str = "prompt") -> list[list[int]]:
        """Tokens of completion prompts, or of a suffix (without BOS)."""
        for text in texts:
            self._check_length(len(text), param)
        encode = self.tokenizer.encode_prompt
        return await self._encode(lambda: [encode(text, add_bos=add_bos) for text in texts], sum(map(len, texts)))

    async def echo(self, prompt: str | list[int], token_ids: list[int], *, offsets: bool) -> Echo:
        """A prompt as it stands before its answer; `token_ids` are what it was encoded as. With `offsets` it is told
        where in its text each of them begins."""
        tokenizer = self.tokenizer
        text = prompt if isinstance(prompt, str) else tokenizer.decode(token_ids, skip_special_tokens=False)
        if not offsets:
            return Echo(text)
        bos = tokenizer.bos_token_id  # in front of every prompt, whether it was spelled there or not
        unseen = isinstance(prompt, str) and token_ids[0] == bos and not prompt.startswith(tokenizer.token_text(bos))
        return Echo(text, await self._encode(lambda: tokenizer.offsets(token_ids, skip_first=unseen), len(text)))

    async def encode_chat(self, messages: list[Message]) -> list[int]:
        """A chat's tokens, up to where the assistant speaks."""
        if self.chat is None:
            raise BadRequest(
                "This model has no chat template: use /v1/completions.", "messages", "unsupported_parameter"
            )
        chat = self.chat
        plain = [_plain(message) for message in messages]
        length = sum(len(message["content"]) for message in plain)
        self._check_length(length, "messages")
        return await self._encode(lambda: chat.encode(plain), length)

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

    @staticmethod
    async def _encode(encode: Callable[[], _T], length: int) -> _T:
        return encode() if length < LONG_TEXT else await anyio.to_thread.run_sync(encode)


def _plain(message: Message) -> dict[str, str]:
    """A message as templates know it. OpenAI's `developer` is what models were trained to call `system`."""
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": message.text}
    return plain if message.name is None else {**plain, "name": message.name}
