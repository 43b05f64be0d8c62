"""Asks one endpoint in one decoding mode."""

from __future__ import annotations

from typing import Any

import httpx

from tests.clients.conftest import STORY, TALE
from tests.http_helpers import ask


class Asker:
    """Asks one endpoint in one mode, for 20 tokens of a story, greedily, unless told otherwise."""

    def __init__(self, http: httpx.Client, endpoint: str, mode: str) -> None:
        self.http, self.endpoint, self.mode = http, endpoint, mode

    def send(self, **fields: Any) -> httpx.Response:
        body: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": TALE}]
        else:
            body["prompt"] = STORY
        if self.mode != "auto" and "suffix" not in fields:
            body["decoding"] = self.mode
        return ask(self.http, {**body, **fields})

    def answer(self, **fields: Any) -> dict[str, Any]:
        response = self.send(**fields)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def text(self, **fields: Any) -> str:
        choice = self.answer(**fields)["choices"][0]
        text: str = choice["text"] if "text" in choice else choice["message"]["content"]
        return text

    def usage(self, **fields: Any) -> dict[str, Any]:
        usage: dict[str, Any] = self.answer(**fields)["usage"]
        return usage

    def ids(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        ids: list[int] = self.http.post("/tokenize", json=body).json()["tokens"]
        return ids

    def decoded(self, ids: list[int]) -> str:
        text: str = self.http.post("/detokenize", json={"tokens": ids}).json()["prompt"]
        return text

    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt that `send` asks with."""
        messages = [{"role": "user", "content": TALE}]
        body = {"messages": messages} if self.endpoint == "chat" else {"prompt": STORY}
        ids: list[int] = self.http.post("/tokenize", json=body).json()["tokens"]
        return ids
