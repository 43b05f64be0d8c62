"""From a valid completion call to a job: prompts to tokens, the suffix, and the prompts that are echoed."""

from __future__ import annotations

from functools import partial

from server.api.call import Call
from server.api.completions.request import DEFAULT_MAX_TOKENS, CompletionRequest
from server.api.parameters.prediction import encode_prediction
from server.api.prepare import (
    ANSWER_LENGTH,
    Limits,
    check_num_choices,
    fit_max_tokens,
    make_job,
    request_template,
    truncated,
    with_prompt,
)
from server.generation.job import Echo, Job
from server.http.errors import BadRequest
from server.text.served_model import ServedModel, run_encoding


async def prepare(call: Call[CompletionRequest], model: ServedModel, limits: Limits) -> Job:
    """A completion as a job. Raises BadRequest."""
    fields, prompts = call.fields, call.fields.prompts
    check_num_choices(len(prompts), fields.n, limits.max_choices)
    encoded = await _encode(prompts, model, add_bos=fields.add_special_tokens, bounded=not fields.truncates)
    encoded = [truncated(ids, fields, fields.max_tokens or DEFAULT_MAX_TOKENS, model) for ids in encoded]
    suffix = await _encode_suffix(fields, model)
    template = request_template(
        call,
        model,
        suffix=suffix,
        prompt_logprobs=_prompt_logprobs(call, model.info.decodings),
        prediction=await encode_prediction(fields.predicted_text, model),
        finds_gap=fields.finds_gap(possible="ar" in model.info.decodings),
    )
    clip = limits.clip_max_tokens and suffix is None  # a gap has exactly the length that was asked for
    default, block_length = DEFAULT_MAX_TOKENS, template.decoding.block_length
    if suffix is not None:
        block_length = 1
    elif model.info.sees_whole_text:
        default = ANSWER_LENGTH
    requests = []
    for ids in encoded:
        given = len(ids) + len(suffix or ())
        max_tokens = fit_max_tokens(fields.max_tokens, default, given, model, clip=clip, block_length=block_length)
        requests.append(with_prompt(template, ids, max_tokens, call, model))
    # Only now are the prompts' ids known to be of the vocabulary.
    echoes = [await _echo(fields, index, ids, model) for index, ids in enumerate(encoded)]
    return make_job(call, model, list(zip(requests, echoes, strict=True)))


async def _encode(
    prompts: list[str] | list[list[int]], model: ServedModel, *, add_bos: bool, bounded: bool
) -> list[list[int]]:
    if isinstance(prompts[0], str):
        return await model.encode_prompts(prompts, add_bos=add_bos, bounded=bounded)
    return prompts


async def _encode_suffix(fields: CompletionRequest, model: ServedModel) -> list[int] | None:
    if fields.suffix is None:
        return None
    if fields.stop_token_ids:
        message = "'stop_token_ids' cannot end an answer of given length before a 'suffix'."
        raise BadRequest(message, "stop_token_ids", "unsupported_parameter")
    [suffix] = await model.encode_prompts([fields.suffix], add_bos=False, param="suffix")
    return suffix


def _prompt_logprobs(call: Call[CompletionRequest], decodings: tuple[str, ...]) -> int | None:
    """Likeliest tokens to list beside each token of an echoed prompt; None: the prompt is not scored.

    decodings: the modes of the model.
    """
    fields = call.fields
    if not fields.echo or (fields.logprobs is None and fields.max_tokens != 0):
        return fields.prompt_logprobs
    if fields.logprobs is not None and call.decoding == "diffusion":
        other = "use 'ar', or " if "ar" in decodings else ""
        message = (
            "'echo' with 'logprobs' scores the prompt token by token, each given those before it, which is not how "
            f"decoding 'diffusion' chooses tokens: {other}leave out 'echo' or 'logprobs'."
        )
        raise BadRequest(message, "echo", "unsupported_parameter")
    return max(fields.logprobs or 0, fields.prompt_logprobs or 0)


async def _echo(fields: CompletionRequest, index: int, ids: list[int], model: ServedModel) -> Echo:
    """Prompt `index` as it stands before its answer. ids: what it was encoded as."""
    if not fields.echo:
        return Echo()
    prompt, tokenizer = fields.prompts[index], model.tokenizer
    decode = partial(tokenizer.decode, ids, skip_special_tokens=False)
    text = prompt if isinstance(prompt, str) else await run_encoding(decode, len(ids))
    if fields.logprobs is None:
        return Echo(text)
    if isinstance(prompt, str):
        return Echo(
            text, await run_encoding(lambda: tokenizer.text_offsets(text, add_bos=fields.add_special_tokens), len(text))
        )
    return Echo(text, await run_encoding(lambda: tokenizer.id_offsets(ids), len(text)))
