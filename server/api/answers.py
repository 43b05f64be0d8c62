"""Schemas of what the server answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_INT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_REASON: Schema = {"enum": ["stop", "length"]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _object(optional: dict[str, Schema] | None = None, **fields: Schema) -> Schema:
    """An object of exactly these fields."""
    return {
        "type": "object",
        "properties": {**fields, **(optional or {})},
        "required": list(fields),
        "additionalProperties": False,
    }


def _envelope(kind: str, choices: str, **fields: Schema) -> Schema:
    return _object(id=_TEXT, object={"const": kind}, created=_INT, model=_TEXT, choices=_list(_ref(choices)), **fields)


_SCORED = _object(token=_TEXT, logprob=_NUMBER, bytes=_maybe(_list(_INT)))

ANSWERS: dict[str, Schema] = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_maybe(_TEXT), code=_maybe(_TEXT))),
    "Usage": _object(
        prompt_tokens=_INT,
        completion_tokens=_INT,
        total_tokens=_INT,
        prompt_tokens_details=_object(cached_tokens=_INT),
        diffusion=_object(
            decoding=_TEXT,
            passes=_INT,
            denoising_steps=_INT,
            tokens_per_pass=_NUMBER,
            draft_tokens=_INT,
            accepted_draft_tokens=_INT,
            seed=_INT,
        ),
    ),
    "CompletionLogprobs": _object(
        tokens=_list(_TEXT),
        token_logprobs=_list(_maybe(_NUMBER)),
        top_logprobs=_maybe(_list(_maybe({"type": "object", "additionalProperties": _NUMBER}))),
        text_offset=_list(_INT),
    ),
    "ScoredToken": _SCORED,
    "ChatLogprobs": _object(
        content=_list(
            _object(token=_TEXT, logprob=_NUMBER, bytes=_maybe(_list(_INT)), top_logprobs=_list(_ref("ScoredToken")))
        ),
        refusal={"type": "null"},
    ),
    "Draft": _object(
        text=_TEXT,
        block=_INT,
        step=_INT,
        masked=_INT,
        length=_INT,
        tokens=_list(_object(text=_maybe(_TEXT), confidence=_maybe(_NUMBER))),
    ),
    "DiffusionMeta": _object(diffusion_content={"const": True}, diffusion_progress=_NUMBER),
    "CompletionChoice": _object(
        index=_INT, text=_TEXT, logprobs=_maybe(_ref("CompletionLogprobs")), finish_reason=_REASON
    ),
    "CompletionDelta": _object(
        {"draft": _maybe(_ref("Draft"))},
        index=_INT,
        text=_TEXT,
        logprobs=_maybe(_ref("CompletionLogprobs")),
        finish_reason=_maybe(_REASON),
    ),
    "ChatChoice": _object(
        index=_INT,
        message=_object(role={"const": "assistant"}, content=_TEXT, refusal={"type": "null"}),
        logprobs=_maybe(_ref("ChatLogprobs")),
        finish_reason=_REASON,
    ),
    "ChatDelta": _object(
        {"draft": _maybe(_ref("Draft"))},
        index=_INT,
        delta=_object({"role": {"const": "assistant"}, "content": _TEXT}),
        logprobs=_maybe(_ref("ChatLogprobs")),
        finish_reason=_maybe(_REASON),
    ),
    "Completion": _envelope("text_completion", "CompletionChoice", usage=_ref("Usage")),
    "ChatCompletion": _envelope("chat.completion", "ChatChoice", usage=_ref("Usage")),
    "CompletionChunk": _envelope("text_completion", "CompletionDelta"),
    "ChatCompletionChunk": _envelope("chat.completion.chunk", "ChatDelta"),
    "Model": _object(
        id=_TEXT,
        object={"const": "model"},
        created=_INT,
        owned_by=_TEXT,
        root=_TEXT,
        parent=_maybe(_TEXT),
        max_model_len=_INT,
        decoding=_TEXT,
        decodings=_list(_TEXT),
        block_length=_INT,
    ),
    "ModelList": _object(object={"const": "list"}, data=_list(_ref("Model"))),
    "Tokens": _object(tokens=_list(_INT), count=_INT, max_model_len=_INT),
    "Prompt": _object(prompt=_TEXT),
    "Health": _object(status=_TEXT, engine=_TEXT, restarts=_INT),
    "Ready": _object(status=_TEXT),
    "Version": _object(version=_TEXT),
}
for _name in ("CompletionChunk", "ChatCompletionChunk"):
    ANSWERS[_name]["properties"] |= {"usage": _maybe(_ref("Usage")), "diffusion_meta": _ref("DiffusionMeta")}
