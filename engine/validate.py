"""The rules that every request must meet. The API process and the engine check the same ones. No torch.

Each function checks one group of rules and raises RequestError naming the field. It costs no memory that grows with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.config import EngineInfo
from engine.errors import RequestError
from engine.request import (
    CONFIDENT,
    MAX_FACTOR,
    MAX_REFINING_STEPS,
    MAX_REGEX_LENGTH,
    MAX_REPETITION_PENALTY,
    MAX_SCHEMA_BYTES,
    MAX_SEED,
    MAX_STRUCTURE_BYTES,
    MIN_REPETITION_PENALTY,
    WHOLE_ANSWER,
    DecodingParams,
    Grammar,
    Request,
    SamplingParams,
)


def check_request(request: Request, info: EngineInfo) -> None:
    """Raises RequestError for a request that could never be served."""
    # Where a request breaks several rules, clients are told of the first: the order of these lines is part of the API.
    _check_stop_tokens(request.stop_token_ids, info.vocab_size)
    _check_denoising_steps(request, info)
    _check_prompt(request.prompt_token_ids, info)
    _check_max_tokens(request, info)
    _check_length(request, info)
    _check_decoding(request.decoding, info)
    if info.sees_whole_text:
        _check_whole_text(request, info)
    _check_sampling(request, info)
    fault = request.editing_fault(info.family, can_edit=bool(info.edit_settings))
    fault = fault or request.restriction_fault(info.vocab_size, info.end_token_ids, info.banned_token_ids)
    fault = fault or request.prediction_fault(info.vocab_size, info.banned_token_ids)
    fault = fault or request.gap_fault(scores="ar" in info.decodings)
    if fault is not None:
        raise RequestError(fault.message, fault.param, "unsupported_parameter" if fault.of_mode else "invalid_value")
    _check_infill(request, info)
    if info.refines and (field := request.ordered_field) is not None:
        message = f"The model family {info.family} does not support '{field}': tokens of a canvas settle together."
        raise RequestError(message, field, "unsupported_parameter")
    if request.grammar is not None:
        check_grammar_mode(request.decoding.mode)
        check_grammar_size(request.grammar)


def _check_stop_tokens(token_ids: Iterable[int], vocab_size: int) -> None:
    """Stop tokens are ids of the vocabulary."""
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise RequestError(f"stop_token_ids names token id {token}, outside the vocabulary.", "stop_token_ids")


def _check_denoising_steps(request: Request, info: EngineInfo) -> None:
    """A block, or the gap of an infill, has at least as many tokens as it may take denoising steps."""
    steps = request.decoding.max_denoising_steps
    most = MAX_REFINING_STEPS if info.refines else request.block_length
    if steps is not None and steps > most:
        limit = f"{most}" if info.refines else f"the block's length ({most}): every step settles at least one token"
        raise RequestError(f"max_denoising_steps ({steps}) must not be greater than {limit}.", "max_denoising_steps")


def check_grammar_mode(mode: str, field: str = "grammar") -> None:
    """A grammar binds answers that settle from their beginning on, up to an end that is theirs to choose.

    field: the name of the request's field that asks for the grammar.
    """
    if mode == "infill":
        message = f"'{field}' cannot be used with a 'suffix': the length of what is filled in is given."
        raise RequestError(message, field, "unsupported_parameter")


def check_grammar_size(grammar: Grammar) -> None:
    """A grammar is short enough to be compiled. Whether it means anything is found out by compiling it."""
    if grammar.kind == "regex":
        if not 1 <= len(grammar.source) <= MAX_REGEX_LENGTH:
            raise RequestError(f"A regular expression must have 1 to {MAX_REGEX_LENGTH} characters.", "grammar")
    elif grammar.kind == "structure":
        if len(grammar.source.encode(errors="replace")) > MAX_STRUCTURE_BYTES:
            raise RequestError(f"The schemas together must not exceed {MAX_STRUCTURE_BYTES} bytes.", "grammar")
    elif len(grammar.source) > MAX_SCHEMA_BYTES or len(grammar.source.encode(errors="replace")) > MAX_SCHEMA_BYTES:
        raise RequestError(
            f"A grammar, JSON schema or list of choices must not exceed {MAX_SCHEMA_BYTES} bytes.", "grammar"
        )


def _check_prompt(prompt: list[int], info: EngineInfo) -> None:
    if not prompt:
        raise RequestError("The prompt is empty: it must have at least one token.", "prompt")
    _check_ids(prompt, "prompt", info)


def _check_ids(token_ids: list[int], param: str, info: EngineInfo) -> None:
    """Token ids are of the vocabulary, and none is reserved."""
    if min(token_ids) < 0 or max(token_ids) >= info.vocab_size:
        bad = next(token for token in token_ids if not 0 <= token < info.vocab_size)
        raise RequestError(
            f"Token id {bad} in {param} is outside the vocabulary [0, {info.vocab_size}).", param, "invalid_token_id"
        )
    for banned in info.banned_token_ids:
        if banned in token_ids:
            raise RequestError(
                f"Token id {banned} in {param} is reserved (mask or padding) and cannot be sent.",
                param,
                "invalid_token_id",
            )


def _check_max_tokens(request: Request, info: EngineInfo) -> None:
    """An answer has at least one token, unless the prompt's scores are all that is wanted."""
    least = 1 if request.prompt_logprobs is None else 0
    if request.max_tokens < least:
        raise RequestError(f"max_tokens must be at least {least}, not {request.max_tokens}.", "max_tokens")
    if request.prompt_logprobs is not None and "ar" not in info.decodings:
        raise RequestError(
            f"The model family {info.family} cannot score a prompt: it has no causal head, which that needs.",
            "prompt_logprobs",
            "unsupported_parameter",
        )
    if request.prompt_logprobs is not None and request.prompt_logprobs < 0:
        raise RequestError(f"prompt_logprobs must be at least 0, not {request.prompt_logprobs}.", "prompt_logprobs")


def _check_length(request: Request, info: EngineInfo) -> None:
    """Prompt, suffix and answer together fit into the model's context."""
    prompt = len(request.prompt_token_ids)
    given = prompt + len(request.suffix_token_ids or ())
    total = given + request.max_tokens
    if total > info.max_model_len:
        raise RequestError(
            f"This model's maximum context length is {info.max_model_len} tokens. However, you requested "
            f"{total} tokens ({given} in the prompt, {request.max_tokens} in the completion). "
            "Please reduce the prompt or max_tokens.",
            "max_tokens" if prompt < info.max_model_len else "prompt",
            "context_length_exceeded",
        )


def _check_whole_text(request: Request, info: EngineInfo) -> None:
    """Prompt, answer in whole blocks, and suffix fit into the context, and into every pass."""
    total = request.text_length
    what = f"prompt and answer, in whole blocks of {request.block_length} tokens, are {total} tokens"
    if total > info.max_model_len:
        raise RequestError(
            f"This model's maximum context length is {info.max_model_len} tokens. However, {what}. "
            "Please reduce the prompt or max_tokens.",
            "max_tokens",
            "context_length_exceeded",
        )
    if total > info.max_pass_tokens:
        raise RequestError(
            f"This model sees the whole text in every pass, and a pass of this server holds {info.max_pass_tokens} "
            f"tokens (max_batch_tokens). However, {what}. Please reduce the prompt or max_tokens.",
            "max_tokens",
            "context_length_exceeded",
        )


def _check_decoding(decoding: DecodingParams, info: EngineInfo) -> None:
    """The model supports the mode; blocks, threshold and steps are within their ranges."""
    if decoding.mode != "infill" and decoding.mode not in info.decodings:
        raise RequestError(
            f"The model family {info.family} does not support decoding '{decoding.mode}'. "
            f"Valid values: {', '.join(info.decodings)}.",
            "decoding",
            "unsupported_parameter",
        )
    _check_block_length(decoding, info)
    if decoding.threshold is not None and not 0.0 < decoding.threshold <= 1.0:
        raise RequestError(f"threshold must be greater than 0 and at most 1, not {decoding.threshold}.", "threshold")
    _check_steps(decoding, info)
    _check_remasking(decoding, info)
    _check_unmasking(decoding)


def _check_block_length(decoding: DecodingParams, info: EngineInfo) -> None:
    """Blocks have a length that the model can refine."""
    if info.fixed_block_length and decoding.block_length != info.block_length:
        raise RequestError(
            f"The model family {info.family} has blocks of {info.block_length} tokens, as it was trained: block_length "
            f"cannot be {decoding.block_length}. Leave it out.",
            "block_length",
            "unsupported_parameter",
        )
    if decoding.block_length == WHOLE_ANSWER and info.sees_whole_text:
        return
    if not 2 <= decoding.block_length <= info.max_block_length:
        raise RequestError(
            f"block_length must be between 2 and {info.max_block_length}, not {decoding.block_length}.", "block_length"
        )


def _check_steps(decoding: DecodingParams, info: EngineInfo) -> None:
    """The number of a block's steps, where one is asked for, can be kept to."""
    if decoding.max_denoising_steps is None:
        return
    if decoding.max_denoising_steps < 1:
        raise RequestError(
            f"max_denoising_steps must be at least 1, not {decoding.max_denoising_steps}.", "max_denoising_steps"
        )
    if not info.limits_steps:
        raise RequestError(
            f"The model family {info.family} does not support max_denoising_steps: it refines a block in parts.",
            "max_denoising_steps",
            "unsupported_parameter",
        )


def _check_remasking(decoding: DecodingParams, info: EngineInfo) -> None:
    """The model's own loop offers the order, and the order can use the threshold."""
    if decoding.remasking not in info.remaskings:
        raise RequestError(
            f"The model family {info.family} does not support remasking '{decoding.remasking}'. "
            f"Valid values: {', '.join(info.remaskings)}.",
            "remasking",
            "unsupported_parameter",
        )
    if decoding.threshold is not None and decoding.remasking not in CONFIDENT:
        raise RequestError(
            f"threshold cannot be used with remasking '{decoding.remasking}', which does not go by confidence.",
            "threshold",
            "unsupported_parameter",
        )


def _check_unmasking(decoding: DecodingParams) -> None:
    """The unmasking rule has what it needs: an order by confidence, a threshold to multiply up to, its parameters."""
    rule = decoding.unmasking
    if rule != "threshold" and decoding.remasking not in CONFIDENT:
        raise RequestError(
            f"unmasking '{rule}' cannot be used with remasking '{decoding.remasking}', no order by confidence.",
            "unmasking",
            "unsupported_parameter",
        )
    if rule == "cumulative" and decoding.threshold is None:
        raise RequestError("unmasking 'cumulative' needs a threshold: leave it out or send a number.", "threshold")
    if not 0.0 < decoding.factor <= MAX_FACTOR:
        raise RequestError(f"factor must be greater than 0 and at most {MAX_FACTOR}, not {decoding.factor}.", "factor")
    if not 0.0 < decoding.bound <= 1.0:
        raise RequestError(f"bound must be greater than 0 and at most 1, not {decoding.bound}.", "bound")


def _check_sampling(request: Request, info: EngineInfo) -> None:
    """Seed, repetition penalty, minimum length, log-probabilities and biases are within their ranges."""
    sampling: SamplingParams = request.sampling
    if not 0 <= sampling.seed <= MAX_SEED:
        raise RequestError(f"seed must be in [0, 2**53), not {sampling.seed}.", "seed")
    least, most = MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
    if not least <= sampling.repetition_penalty <= most:
        message = f"repetition_penalty must be between {least} and {most}, not {sampling.repetition_penalty}."
        raise RequestError(message, "repetition_penalty")
    if sampling.min_tokens > request.max_tokens:
        raise RequestError(
            f"min_tokens ({sampling.min_tokens}) must not be greater than max_tokens ({request.max_tokens}).",
            "min_tokens",
        )
    if sampling.logprobs is not None and sampling.logprobs < 0:
        raise RequestError(f"logprobs must be at least 0, not {sampling.logprobs}.", "logprobs")
    for name, tokens in (("logit_bias", sampling.logit_bias), ("logprob_token_ids", sampling.logprob_token_ids)):
        for token in tokens:
            if not 0 <= token < info.vocab_size:
                raise RequestError(f"{name} names token id {token}, outside the vocabulary.", name)
    if sampling.logprob_token_ids and request.grammar is not None and request.decoding.mode == "diffusion":
        message = "logprob_token_ids cannot be used with a form of the answer in 'diffusion': it keeps few candidates."
        raise RequestError(message, "logprob_token_ids", "unsupported_parameter")


def _check_infill(request: Request, info: EngineInfo) -> None:
    """A suffix comes with mode `infill` and with no other; gap and suffix fit into the window."""
    suffix, mode = request.suffix_token_ids, request.decoding.mode
    if suffix is None:
        if mode == "infill":
            raise RequestError("Mode 'infill' needs a suffix: it fills the gap before one.", "suffix")
        return
    if info.max_infill_window == 0:
        raise RequestError(f"The model family {info.family} cannot fill in before a suffix.", "suffix")
    if mode in ("auto", "diffusion"):
        raise RequestError(f"A request with a suffix has mode 'infill', not '{mode}'.", "suffix")
    if mode != "infill":
        raise RequestError(
            f"suffix is filled in by diffusion: decoding must be unset, 'auto' or 'diffusion', not '{mode}'.", "suffix"
        )
    if suffix:
        _check_ids(suffix, "suffix", info)
    window = request.max_tokens + len(suffix)
    if window > info.max_infill_window:
        raise RequestError(
            f"max_tokens plus suffix is {window} tokens; the server's limit for infill is {info.max_infill_window}.",
            "suffix",
        )
