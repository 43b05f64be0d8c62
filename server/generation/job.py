"""From a parsed HTTP request to the engine's requests: prompts, seeds, limits, one engine request a choice."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import cast

import msgspec

from engine.errors import RequestError
from engine.request import MAX_SEED, Decoding, DecodingParams, Grammar, Request, SamplingParams
from engine.validate import check_request
from server.api.fields import Endpoint, check_decoding_fields
from server.api.requests import ChatRequest, CompletionRequest, GenerationParams
from server.api.structured_outputs import check_grammar_mode, choose_grammar
from server.http.errors import BadRequest, from_request_error
from server.text.served_model import Echo, ServedModel

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for completions."""


def derive_seed(seed: int, kind: str, index: int) -> int:
    """The seed of choice `index` of `n` (kind "choice") or of prompt `index` of a batch (kind "prompt").

    Index 0 has the seed itself; any other the first 53 bits of SHA-256 of "kind:seed:index". So the j-th prompt of a
    batch with seed s equals that prompt sent alone with seed derive_seed(s, "prompt", j).
    """
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{kind}:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


@dataclass(frozen=True)
class ChoicePlan:
    """One choice to generate."""

    request: Request
    prompt_index: int
    echo: Echo
    """What stands before the answer."""


@dataclass(frozen=True)
class Job:
    """One HTTP generation request, ready to run."""

    id: str
    endpoint: Endpoint
    model: str
    """The name the client used."""
    created: int
    choices: list[ChoicePlan]
    stops: tuple[str, ...]
    end_token_ids: frozenset[int]
    grammar: Grammar | None
    """The form the answers must have; not yet known to be one that can be followed."""
    grammar_field: str
    """The request's field it comes from."""
    seed: int
    decoding: Decoding
    logprobs: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    include_drafts: bool
    diffusing: bool

    @property
    def requests(self) -> list[Request]:
        """The engine's part of it, in the order of the choices."""
        return [choice.request for choice in self.choices]


async def completion_job(params: CompletionRequest, model: ServedModel, max_choices: int) -> Job:
    """A completion as a job. Raises BadRequest or NotFound."""
    decoding = model.choose_decoding(params.model, params.decoding)
    prompts = _split_prompt(params)
    _check_choices(len(prompts), params.n, max_choices)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = await model.encode_prompts(texts) if texts else cast(list[list[int]], prompts)
    suffix = None
    if params.suffix is not None:
        if params.stop_token_ids:
            raise BadRequest("'stop_token_ids' cannot end an answer of given length before a 'suffix'.",
                             "stop_token_ids", "unsupported_parameter")  # fmt: skip
        [suffix] = await model.encode_prompts([params.suffix], add_bos=False, param="suffix")
    echoes = [Echo()] * len(prompts)
    builder = _Builder(params, model, decoding, "completions", params.logprobs, suffix)
    if params.echo and (params.logprobs is not None or params.max_tokens == 0):
        builder.prompt_logprobs = params.logprobs or 0
    requests = [builder.request(ids, COMPLETION_MAX_TOKENS) for ids in encoded]
    if params.echo:  # after the door: ids are known to be of the vocabulary
        echoes = [
            await model.echo(cast(str | list[int], prompt), ids, offsets=params.logprobs is not None)
            for prompt, ids in zip(prompts, encoded, strict=True)
        ]
    return builder.job(requests, echoes)


async def chat_job(params: ChatRequest, model: ServedModel, max_choices: int) -> Job:
    """A chat as a job. Raises BadRequest or NotFound."""
    decoding = model.choose_decoding(params.model, params.decoding)
    _check_choices(1, params.n, max_choices)
    prompt = await model.encode_chat(params.messages)
    logprobs = (params.top_logprobs or 0) if params.logprobs else None
    builder = _Builder(params, model, decoding, "chat", logprobs, None)
    if params.max_tokens is None and params.max_completion_tokens is not None:
        builder.max_tokens = params.max_completion_tokens
    rest = max(1, model.info.max_model_len - len(prompt))
    return builder.job([builder.request(prompt, rest)], [Echo()])


def _split_prompt(params: CompletionRequest) -> list[str] | list[list[int]]:
    prompt = params.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _check_choices(prompts: int, n: int, max_choices: int) -> None:
    if prompts * n > max_choices:
        raise BadRequest(
            f"The request asks for {prompts * n} answers ({prompts} prompts times n = {n}); at most {max_choices} are "
            "allowed.",
            "n" if n > 1 else "prompt",
            "invalid_value",
        )


class _Builder:
    """What all choices of one HTTP request share."""

    def __init__(
        self,
        params: GenerationParams,
        model: ServedModel,
        decoding: Decoding,
        endpoint: Endpoint,
        logprobs: int | None,
        suffix: list[int] | None,
    ) -> None:
        check_decoding_fields(params.model_fields_set, decoding, infill=suffix is not None)
        asked = choose_grammar(params.response_format, params.structured_outputs)
        self.grammar: Grammar | None = asked[0] if asked is not None else None
        self.grammar_field = asked[1] if asked is not None else ""
        if self.grammar is not None:
            check_grammar_mode(self.grammar_field, decoding, model.info.decodings, infill=suffix is not None)
        self.params, self.model, self.endpoint, self.logprobs, self.suffix = params, model, endpoint, logprobs, suffix
        self.id = f"{'chatcmpl' if endpoint == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        self.seed = params.seed if params.seed is not None else secrets.randbelow(MAX_SEED + 1)
        self.max_tokens = params.max_tokens
        self.prompt_logprobs: int | None = None
        self.label: Decoding = "diffusion" if suffix is not None else decoding
        self.decoding = self._decoding(decoding)

    def _decoding(self, decoding: Decoding) -> DecodingParams:
        params = self.params
        block_length = self.model.info.block_length if params.block_length is None else params.block_length
        threshold = params.threshold if "threshold" in params.model_fields_set else DecodingParams().threshold
        return DecodingParams(
            mode="infill" if self.suffix is not None and decoding in ("auto", "diffusion") else decoding,
            block_length=block_length,
            threshold=threshold,
            max_denoising_steps=params.max_denoising_steps,
        )

    def request(self, prompt: list[int], default_max_tokens: int) -> Request:
        """The engine's request for a prompt's first choice; checked at the door. Raises BadRequest."""
        params = self.params
        sampling = SamplingParams(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=self.seed,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            logit_bias=params.logit_bias,
            min_tokens=params.min_tokens,
            logprobs=self.logprobs,
        )
        request = Request(
            request_id=self.id,
            prompt_token_ids=prompt,
            max_tokens=default_max_tokens if self.max_tokens is None else self.max_tokens,
            sampling=sampling,
            decoding=self.decoding,
            stop_token_ids=tuple(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            priority=params.priority,
            cache_salt=params.cache_salt,
            suffix_token_ids=self.suffix,
            grammar=self.grammar,
            include_drafts=params.diffusing or params.options.include_drafts,
            prompt_logprobs=self.prompt_logprobs,
        )
        self._check(request)
        return request

    def _check(self, request: Request) -> None:
        try:
            check_request(request, self.model.info)
        except RequestError as exc:
            if exc.param == "grammar":
                raise BadRequest(str(exc), self.grammar_field, exc.code) from None
            raise from_request_error(exc) from None

    def job(self, requests: list[Request], echoes: list[Echo]) -> Job:
        """Every prompt times `n`, seeds derived, as one job."""
        params, info, options = self.params, self.model.info, self.params.options
        choices: list[ChoicePlan] = []
        for prompt_index, (request, echo) in enumerate(zip(requests, echoes, strict=True)):
            prompt_seed = derive_seed(self.seed, "prompt", prompt_index)
            for i in range(params.n):
                seeded = _with_seed(request, f"{self.id}-{len(choices)}", derive_seed(prompt_seed, "choice", i))
                choices.append(ChoicePlan(seeded, prompt_index, echo))
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(info.end_token_ids))
        return Job(
            id=self.id,
            endpoint=self.endpoint,
            model=params.model or self.model.name,
            created=int(time.time()),
            choices=choices,
            stops=tuple(params.stop),
            grammar=self.grammar,
            grammar_field=self.grammar_field,
            end_token_ids=ends,
            seed=self.seed,
            decoding=self.label,
            logprobs=self.logprobs,
            stream=params.stream,
            include_usage=options.include_usage,
            continuous_usage=options.continuous_usage_stats,
            include_drafts=options.include_drafts,
            diffusing=params.diffusing,
        )


def _with_seed(request: Request, request_id: str, seed: int) -> Request:
    return msgspec.structs.replace(
        request, request_id=request_id, sampling=msgspec.structs.replace(request.sampling, seed=seed)
    )
