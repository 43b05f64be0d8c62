"""From a valid completion call to a job: prompts to tokens, the suffix, and the prompts that are echoed."""

from __future__ import annotations

from server.api.call import Call
from server.api.completions.request import CompletionRequest
from server.api.prepare import check_num_choices, make_job, request_template, with_prompt
from server.generation.job import Echo, Job
from server.http.errors import BadRequest
from server.text.served_model import ServedModel, run_encoding

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


async def prepare(call: Call[CompletionRequest], model: ServedModel, max_choices: int) -> Job:
    """A completion as a job. Raises BadRequest."""
    fields, prompts = call.fields, call.fields.prompts
    check_num_choices(len(prompts), fields.n, max_choices)
    encoded = await _encode(prompts, model)
    template = request_template(
        call,
        model,
        max_tokens=DEFAULT_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens,
        suffix=await _encode_suffix(fields, model),
        prompt_logprobs=_prompt_logprobs(fields),
    )
    requests = [with_prompt(template, ids, call, model) for ids in encoded]
    # Only now are the prompts' ids known to be of the vocabulary.
    echoes = [await _echo(fields, index, ids, model) for index, ids in enumerate(encoded)]
    return make_job(call, model, list(zip(requests, echoes, strict=True)))


async def _encode(prompts: list[str] | list[list[int]], model: ServedModel) -> list[list[int]]:
    if isinstance(prompts[0], str):
        return await model.encode_prompts(prompts)
    return prompts


async def _encode_suffix(fields: CompletionRequest, model: ServedModel) -> list[int] | None:
    if fields.suffix is None:
        return None
    if fields.stop_token_ids:
        message = "'stop_token_ids' cannot end an answer of given length before a 'suffix'."
        raise BadRequest(message, "stop_token_ids", "unsupported_parameter")
    [suffix] = await model.encode_prompts([fields.suffix], add_bos=False, param="suffix")
    return suffix


def _prompt_logprobs(fields: CompletionRequest) -> int | None:
    """Likeliest tokens to list beside each token of an echoed prompt; None: the prompt is not scored."""
    if fields.echo and (fields.logprobs is not None or fields.max_tokens == 0):
        return fields.logprobs or 0
    return None


async def _echo(fields: CompletionRequest, index: int, ids: list[int], model: ServedModel) -> Echo:
    """Prompt `index` as it stands before its answer. ids: what it was encoded as."""
    if not fields.echo:
        return Echo()
    prompt, tokenizer = fields.prompts[index], model.tokenizer
    text = prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip_special_tokens=False)
    if fields.logprobs is None:
        return Echo(text)
    if isinstance(prompt, str):
        return Echo(text, await run_encoding(lambda: tokenizer.text_offsets(text), len(text)))
    return Echo(text, await run_encoding(lambda: tokenizer.id_offsets(ids), len(text)))
