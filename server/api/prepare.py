"""From a valid call to a job: the part of the preparation that all endpoints share.

Nothing here changes a value: a template of the engine's request is made once, and copied for each prompt and choice.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, NamedTuple, cast

import msgspec

from engine.errors import RequestError
from engine.request import (
    CONFIDENT,
    MAX_SEED,
    WHOLE_ANSWER,
    DecodingParams,
    EditSetting,
    Remasking,
    Request,
    SamplingParams,
)
from engine.validate import check_request
from server.api.call import Call, Fields
from server.api.requests import GenerationRequest, TruncatedPrompt
from server.generation.job import Choice, Echo, Job, StreamForm
from server.http.errors import BadRequest
from server.text.served_model import ServedModel
from server.text.tokenizer import EncodingError, Tokenizer

_SAMPLING = tuple(
    name for name in SamplingParams.__struct_fields__ if name in GenerationRequest.model_fields and name != "seed"
)
"""The sampling parameters that a client's field of the same name gives."""


ANSWER_LENGTH = 256
"""Longest answer to a request without `max_tokens`, where the answer's length is an input and not a bound."""


class Limits(NamedTuple):
    """The server's settings that a preparation needs."""

    max_choices: int
    """Most choices of one request."""
    clip_max_tokens: bool
    """`max_tokens` beyond what the context leaves becomes what it leaves; else it is refused."""


def derive_seed(seed: int, kind: str, index: int) -> int:
    """The seed of choice `index` of `n` (kind "choice") or of prompt `index` of a batch (kind "prompt").

    Index 0 has the seed itself; any other the first 53 bits of SHA-256 of "kind:seed:index". So the j-th prompt of a
    batch with seed s equals that prompt sent alone with seed derive_seed(s, "prompt", j).
    """
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{kind}:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def effective_seed(seed: int | None) -> int:
    """The seed of the first choice, in [0, 2**53): the client's where it fits, drawn where there is none.

    Any other is mapped to one that fits by SHA-256. The answer's usage tells it; sent back it gives the same text.
    """
    if seed is None:
        return secrets.randbelow(MAX_SEED + 1)
    return seed if 0 <= seed <= MAX_SEED else derive_seed(seed, "seed", 1)


def check_num_choices(prompts: int, n: int, limit: int) -> None:
    """Raises BadRequest for a request of more than `limit` answers: `n` for each of its prompts."""
    if prompts * n > limit:
        raise BadRequest(
            f"The request asks for {prompts * n} answers ({prompts} prompts times n = {n}); at most {limit} are "
            "allowed.",
            "n" if n > 1 else "prompt",
            "invalid_value",
        )


def fit_max_tokens(
    asked: int | None, default: int, given: int, model: ServedModel, *, clip: bool, block_length: int = 1
) -> int:
    """Most tokens to generate after `given` tokens of prompt: as many as were asked for, or `default`.

    The default is never more than what the context leaves. clip: nor is what was asked for. block_length: of the
    request; where the whole text is seen an answer takes whole blocks, and its default length is ANSWER_LENGTH.
    """
    info = model.info
    left = max(1, info.max_model_len - given)
    if info.sees_whole_text:
        left, default = max(1, min(info.max_model_len, info.max_pass_tokens) - given), min(default, ANSWER_LENGTH)
        if block_length != WHOLE_ANSWER:
            left = max(1, left // block_length * block_length)
    if asked is None:
        return min(default, left)
    return min(asked, left) if clip else asked


def truncated(prompt: list[int], fields: TruncatedPrompt, max_tokens: int | None, model: ServedModel) -> list[int]:
    """The prompt, cut to as many tokens as the request allows. max_tokens: None: unset. Raises BadRequest."""
    most, context = fields.truncate_prompt_tokens, model.info.max_model_len
    if most is None:
        return prompt
    if most > context:
        message = f"'truncate_prompt_tokens' is {most}; this model's maximum context length is {context} tokens."
        raise BadRequest(message, "truncate_prompt_tokens", "invalid_value")
    if most == -1:
        most = max(1, context - (max_tokens or 1))
    if len(prompt) <= most:
        return prompt
    if fields.truncation_side == "right":
        return prompt[:most]
    kept = prompt[len(prompt) - most :]
    return [prompt[0], *kept[1:]] if most > 1 and prompt[0] == model.info.bos_token_id else kept


def request_template(
    call: Call[Fields],
    model: ServedModel,
    *,
    suffix: list[int] | None = None,
    prompt_logprobs: int | None = None,
    prediction: list[int] | None = None,
    finds_gap: bool = False,
) -> Request:
    """The engine's request of a call, without prompt and limit. Its id is the answer's, its seed the first choice's."""
    fields = call.fields
    sampling = SamplingParams(
        seed=effective_seed(fields.seed),
        logprobs=fields.wanted_logprobs,
        banned_sequences=banned_sequences(fields.bad_words, model.tokenizer),
        **{name: getattr(fields, name) for name in _SAMPLING},
    )
    return Request(
        request_id=f"{fields.id_prefix}{secrets.token_hex(12)}",
        prompt_token_ids=[],
        max_tokens=1,
        sampling=sampling,
        decoding=decoding_params(call, model),
        stop_token_ids=tuple(fields.stop_token_ids),
        ignore_eos=fields.ignore_eos,
        priority=fields.priority,
        cache_salt=fields.cache_salt,
        suffix_token_ids=suffix,
        grammar=None if call.grammar is None else call.grammar.grammar,
        include_drafts=fields.diffusing or fields.wants_drafts,
        trace_unmasking=fields.unmasking_trace,
        prompt_logprobs=prompt_logprobs,
        prediction_token_ids=prediction,
        finds_gap=finds_gap,
    )


def banned_sequences(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, without and with a space in front. Raises BadRequest.

    A spelling that ends with another one is left out: where that may not stand, neither may this.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        text = word.lstrip(" ")
        try:
            plain, spaced = (tuple(tokenizer.encode_text(spelling)) for spelling in (text, f" {text}"))
        except EncodingError as exc:
            raise BadRequest(str(exc), "bad_words", "invalid_value") from None
        found |= dict.fromkeys(ids for ids in (plain, spaced) if ids)
    return tuple(ids for ids in found if not any(ids[at:] in found for at in range(1, len(ids))))


def decoding_params(call: Call[Fields], model: ServedModel) -> DecodingParams:
    """How to decode, by the fields that were sent and the model's own settings for the others."""
    fields, info = call.fields, model.info
    remasking = fields.remasking
    if remasking is None:
        confident = fields.threshold is not None or fields.unmasking != "threshold"
        usable = [name for name in info.remaskings if not confident or name in CONFIDENT]
        remasking = cast(Remasking, (usable or info.remaskings)[0])
    default_threshold = info.default_threshold if remasking in CONFIDENT else None
    edits: dict[str, Any] = {}
    setting = edit_setting(call, model)
    if setting is not None:
        default_threshold = setting.threshold
        asked = {"edit_threshold": fields.edit_threshold, "max_post_steps": fields.max_post_steps}
        edits = {"edit_threshold": setting.edit_threshold} | {n: v for n, v in asked.items() if v is not None}
    return DecodingParams(
        mode=call.mode,
        block_length=info.block_length if fields.block_length is None else fields.block_length,
        threshold=fields.threshold if "threshold" in fields.model_fields_set else default_threshold,
        max_denoising_steps=fields.max_denoising_steps,
        remasking=remasking,
        unmasking=fields.unmasking,
        factor=fields.factor,
        bound=fields.bound,
        **edits,
    )


def edit_setting(call: Call[Fields], model: ServedModel) -> EditSetting | None:
    """The setting that a call asks for by name, or the model's first one; None: the model does not edit.

    What has a given form is not edited unless a field asks for it. Raises BadRequest for a field that means nothing.
    """
    fields, info = call.fields, model.info
    asked = [name for name in ("editing", "edit_threshold", "max_post_steps") if getattr(fields, name) is not None]
    if not info.edit_settings:
        if asked:
            message = f"'{asked[0]}' has no meaning here: the model family {info.family} does not edit what it unmasks."
            raise BadRequest(message, asked[0], "unsupported_parameter")
        return None
    settings = {setting.name: setting for setting in info.edit_settings}
    name = fields.editing or ("off" if call.grammar is not None and not asked else info.edit_settings[0].name)
    if name == "off" and asked[1:]:
        raise BadRequest(f"'{asked[1]}' has no meaning with editing 'off'.", asked[1], "unsupported_parameter")
    return settings[name]


def with_prompt(
    template: Request, prompt: list[int], max_tokens: int, call: Call[Fields], model: ServedModel
) -> Request:
    """The template with a prompt and a limit of tokens, checked as the engine checks it. Raises BadRequest."""
    request = msgspec.structs.replace(template, prompt_token_ids=prompt, max_tokens=max_tokens)
    try:
        check_request(request, model.info)
    except RequestError as exc:
        param = _param_of(exc, call)
        # The engine says "prompt" for what a chat calls "messages".
        message = str(exc).replace("prompt", param) if exc.param == "prompt" and param is not None else str(exc)
        raise BadRequest(message, param, exc.code) from None
    return request


def _param_of(error: RequestError, call: Call[Fields]) -> str | None:
    """The client's field for the field of the engine's request that an error names."""
    if error.param == "grammar" and call.grammar is not None:
        return call.grammar.param
    if error.param == "prompt_logprobs" and call.fields.prompt_logprobs is None:
        return "echo"
    return call.fields.prompt_param if error.param == "prompt" else error.param


def make_job(call: Call[Fields], model: ServedModel, prompts: list[tuple[Request, Echo]]) -> Job:
    """The job of a call: every prompt, `n` times, with derived seeds. prompts: at least one, of one template."""
    fields, template = call.fields, prompts[0][0]
    job_id, seed = template.request_id, template.sampling.seed
    choices: list[Choice] = []
    for prompt_index, (request, echo) in enumerate(prompts):
        prompt_seed = derive_seed(seed, "prompt", prompt_index)
        for index in range(fields.n):
            seeded = _with_seed(request, f"{job_id}-{len(choices)}", derive_seed(prompt_seed, "choice", index))
            choices.append(Choice(seeded, prompt_index, echo))
    model_ends = frozenset() if fields.ignore_eos else frozenset(model.info.end_token_ids)
    asked_ends = frozenset(fields.stop_token_ids)
    return Job(
        id=job_id,
        endpoint=fields.endpoint,
        model=fields.model or model.name,
        created=int(time.time()),
        choices=tuple(choices),
        stops=tuple(fields.stop),
        include_stop=fields.include_stop_str_in_output,
        end_token_ids=asked_ends | model_ends,
        told_token_ids=asked_ends - model_ends,
        grammar=call.grammar,
        seed=seed,
        decoding="diffusion" if fields.infills else call.decoding,
        logprobs=fields.wanted_logprobs,
        stream=_stream_form(fields) if fields.stream else None,
        prompt_logprobs=fields.prompt_logprobs,
        skips_control_tokens=fields.skip_special_tokens,
        tells_token_ids=fields.return_token_ids,
        tells_unmasking=fields.unmasking_trace,
        names_by_id=fields.return_tokens_as_token_ids,
    )


def _with_seed(request: Request, request_id: str, seed: int) -> Request:
    return msgspec.structs.replace(
        request, request_id=request_id, sampling=msgspec.structs.replace(request.sampling, seed=seed)
    )


def _stream_form(fields: GenerationRequest) -> StreamForm:
    options = fields.options
    return StreamForm(
        include_usage=options.include_usage,
        continuous_usage=options.include_usage and options.continuous_usage_stats,
        include_drafts=fields.wants_drafts,
        diffusing=fields.diffusing,
    )
