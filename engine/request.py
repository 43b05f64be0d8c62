"""What a client asks of the engine: one Request is one choice, already tokenised. A leaf: no torch.

Requests cross the process boundary as msgspec messages, so every field is plain data. `n` choices, several prompts
and text are the API process's business: it sends one Request a choice.
"""

from typing import Literal

import msgspec

from engine.config import EngineInfo
from engine.errors import RequestError

Decoding = Literal["ar", "diffusion", "speculative", "auto"]

MAX_SEED = 2**53
"""Seeds are in [0, 2**53), so that JSON numbers carry them exactly."""

GrammarKind = Literal["json_schema", "json_object", "regex", "choice"]

MAX_SCHEMA_BYTES = 64 * 1024
"""Longest JSON schema, and longest list of choices, in bytes of UTF-8."""
MAX_REGEX_LENGTH = 4096
"""Longest regular expression, in characters."""


GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by them leave float32's range."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like, as text: the engine's compiler gives it a meaning."""

    kind: GrammarKind
    source: str = ""
    """`json_schema`: the schema, as JSON. `regex`: the expression the whole answer must match. `choice`: the possible
    answers, as a JSON list of strings. `json_object`: empty."""
    compact: bool = False
    """JSON without any white space. Otherwise a model may write one space between two JSON tokens."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How a token is chosen from logits. The defaults change nothing and sample at temperature 1."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """The choice's seed: the noise is a pure function of (seed, absolute position, token id)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    """End and stop tokens are banned while fewer tokens than this have been generated."""
    logprobs: int | None = None
    """None: no log-probabilities. k: those of the chosen token and of the k most likely ones."""

    @property
    def penalises(self) -> bool:
        """Any penalty changes the logits."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def edits(self) -> bool:
        """Logits are changed before temperature, filters and noise."""
        return bool(self.penalises or self.logit_bias or self.min_tokens)

    @property
    def plain(self) -> bool:
        """The choice is the likeliest token, whatever came before it."""
        return not (self.temperature >= GREEDY_BELOW or self.edits)


class DecodingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a pass refines, and when they settle."""

    decoding: Decoding = "auto"
    block_length: int = 32
    threshold: float | None = 0.9
    """Diffusion: unmask at this confidence or above. None: an even schedule over `max_denoising_steps`."""
    max_denoising_steps: int | None = None
    """Most denoising steps a block may take. None: the block's length."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One choice to generate."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    decoding: DecodingParams = DecodingParams()
    stop_token_ids: tuple[int, ...] = ()
    """Ends the answer besides the model's own end tokens."""
    ignore_eos: bool = False
    """The model's own end tokens are ordinary tokens."""
    priority: int = 0
    """Lower is served first; equal priorities are served first come first."""
    cache_salt: str = ""
    """Prefix-cache entries are shared only between requests with equal salts."""
    suffix_token_ids: list[int] | None = None
    """Infill: the text after the gap. None: plain generation."""
    include_drafts: bool = False
    """Emit `DraftUpdated` events."""
    prompt_logprobs: int | None = None
    """Emit `PromptScored` events: the log-probability of every prompt token but the first, given those before it, and
    those of the k most likely tokens. Such a prompt is run whole, whatever the prefix cache holds, and may be all there
    is to do (`max_tokens` 0)."""
    grammar: Grammar | None = None
    """Only text of this grammar is generated. None: any text."""


def check_request(request: Request, info: EngineInfo) -> None:
    """The door: raises RequestError for whatever could never be served, naming the field. Cheap and allocation-free."""
    prompt, sampling, decoding = request.prompt_token_ids, request.sampling, request.decoding
    if not prompt:
        raise RequestError("The prompt is empty: it must have at least one token.", "prompt")
    _check_ids(prompt, "prompt", info)
    least = 1 if request.prompt_logprobs is None else 0
    if request.max_tokens < least:
        raise RequestError(f"max_tokens must be at least {least}, not {request.max_tokens}.", "max_tokens")
    if request.prompt_logprobs is not None and request.prompt_logprobs < 0:
        raise RequestError(f"prompt_logprobs must be at least 0, not {request.prompt_logprobs}.", "prompt_logprobs")
    suffix_length = len(request.suffix_token_ids or ())
    total = len(prompt) + suffix_length + request.max_tokens
    if total > info.max_model_len:
        raise RequestError(
            f"This model's maximum context length is {info.max_model_len} tokens. However, you requested "
            f"{total} tokens ({len(prompt) + suffix_length} in the prompt, {request.max_tokens} in the completion). "
            "Please reduce the prompt or max_tokens.",
            "max_tokens" if len(prompt) < info.max_model_len else "prompt",
            "context_length_exceeded",
        )
    if decoding.decoding not in info.decodings:
        raise RequestError(
            f"The model family {info.family} does not support decoding '{decoding.decoding}'. "
            f"Valid values: {', '.join(info.decodings)}.",
            "decoding",
            "unsupported_parameter",
        )
    if not 2 <= decoding.block_length <= info.max_block_length:
        raise RequestError(
            f"block_length must be between 2 and {info.max_block_length}, not {decoding.block_length}.", "block_length"
        )
    if decoding.threshold is not None and not 0.0 < decoding.threshold <= 1.0:
        raise RequestError(f"threshold must be greater than 0 and at most 1, not {decoding.threshold}.", "threshold")
    if decoding.max_denoising_steps is not None and decoding.max_denoising_steps < 1:
        raise RequestError(
            f"max_denoising_steps must be at least 1, not {decoding.max_denoising_steps}.", "max_denoising_steps"
        )
    if not 0 <= sampling.seed < MAX_SEED:
        raise RequestError(f"seed must be in [0, 2**53), not {sampling.seed}.", "seed")
    if sampling.min_tokens > request.max_tokens:
        raise RequestError(
            f"min_tokens ({sampling.min_tokens}) must not be greater than max_tokens ({request.max_tokens}).",
            "min_tokens",
        )
    for token in request.stop_token_ids:
        if not 0 <= token < info.vocab_size:
            raise RequestError(f"stop_token_ids names token id {token}, outside the vocabulary.", "stop_token_ids")
    if sampling.logprobs is not None and sampling.logprobs < 0:
        raise RequestError(f"logprobs must be at least 0, not {sampling.logprobs}.", "logprobs")
    for token in sampling.logit_bias:
        if not 0 <= token < info.vocab_size:
            raise RequestError(f"logit_bias names token id {token}, outside the vocabulary.", "logit_bias")
    if request.suffix_token_ids is not None:
        _check_infill(request, request.suffix_token_ids, info)
    if request.grammar is not None:
        _check_grammar(request.grammar, request, info)


def _check_ids(ids: list[int], param: str, info: EngineInfo) -> None:
    if min(ids) < 0 or max(ids) >= info.vocab_size:
        bad = next(token for token in ids if not 0 <= token < info.vocab_size)
        raise RequestError(
            f"Token id {bad} in {param} is outside the vocabulary [0, {info.vocab_size}).", param, "invalid_token_id"
        )
    for banned in info.banned_token_ids:
        if banned in ids:
            raise RequestError(
                f"Token id {banned} in {param} is reserved (mask or padding) and cannot be sent.",
                param,
                "invalid_token_id",
            )


def _check_infill(request: Request, suffix: list[int], info: EngineInfo) -> None:
    if info.max_infill_window == 0:
        raise RequestError(f"The model family {info.family} cannot fill in before a suffix.", "suffix")
    if request.decoding.decoding not in ("auto", "diffusion"):
        raise RequestError(
            f"suffix is filled in by diffusion: decoding must be unset, 'auto' or 'diffusion', "
            f"not '{request.decoding.decoding}'.",
            "suffix",
        )
    if suffix:
        _check_ids(suffix, "suffix", info)
    window = request.max_tokens + len(suffix)
    if window > info.max_infill_window:
        raise RequestError(
            f"max_tokens plus suffix is {window} tokens; the server's limit for infill is {info.max_infill_window}.",
            "suffix",
        )


def _check_grammar(grammar: Grammar, request: Request, info: EngineInfo) -> None:
    """Mode and size alone: whether the grammar means anything is the compiler's business."""
    if request.suffix_token_ids is not None:
        raise RequestError("A suffix is filled in by diffusion, which cannot follow a grammar.", "suffix")
    if request.decoding.decoding == "diffusion":
        exact = [decoding for decoding in info.decodings if decoding != "diffusion"]
        raise RequestError(
            f"Decoding 'diffusion' cannot follow a grammar. Use one of: {', '.join(exact)}."
            if exact
            else f"The model family {info.family} decodes by diffusion alone, which cannot follow a grammar.",
            "decoding",
            "unsupported_parameter",
        )
    check_grammar_size(grammar)


def check_grammar_size(grammar: Grammar) -> None:
    """Raises RequestError for a grammar too long to be looked at. Cheap."""
    if grammar.kind == "regex":
        if not 1 <= len(grammar.source) <= MAX_REGEX_LENGTH:
            raise RequestError(f"A regular expression must have 1 to {MAX_REGEX_LENGTH} characters.", "grammar")
    elif len(grammar.source) > MAX_SCHEMA_BYTES or len(grammar.source.encode(errors="replace")) > MAX_SCHEMA_BYTES:
        raise RequestError(f"A JSON schema or list of choices must not exceed {MAX_SCHEMA_BYTES} bytes.", "grammar")
