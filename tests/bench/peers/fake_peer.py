"""A server that answers like another one would, for `lightcone bench peers`: words that are no model's."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD = " t400"


class Handler(BaseHTTPRequestHandler):
    """/health, /v1/models and /v1/completions, streamed or not."""

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "random"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "random" or not body["ignore_eos"] or "decoding" in body:
            self.send_error(400)
            return
        count = body["max_tokens"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count, "total_tokens": 0}
        if not body.get("stream"):
            self.answer({"choices": [{"index": 0, "text": WORD * count, "finish_reason": "length"}], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for index in range(count):
            reason = "length" if index == count - 1 else None
            self.event({"choices": [{"index": 0, "text": WORD, "finish_reason": reason}]})
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, chunk: dict[str, Any]) -> None:
        """One event of a stream."""
        self.wfile.write(b"data: " + json.dumps({"model": "random", **chunk}).encode() + b"\n\n")

    def answer(self, value: dict[str, Any]) -> None:
        """A whole answer."""
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    words = sys.argv[1:]
    if "--dtype" in words and words[words.index("--dtype") + 1] == "bfloat16":
        sys.exit("no bfloat16 here")
    ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
