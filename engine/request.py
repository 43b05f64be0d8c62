"""Request: one answer to generate, already tokenised. A leaf: no torch. engine.validate checks what it may say.

Requests cross the process boundary as msgspec messages, so every field is plain data. Text, several prompts and `n`
answers to one prompt are handled by the API process: it sends one Request for each answer.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

Decoding = Literal["ar", "diffusion", "speculative", "auto"]
"""Modes that a client can name, in the API's field `decoding`."""
Mode = Literal["ar", "diffusion", "speculative", "auto", "infill"]
"""Ways to decode. `infill` fills the gap before a suffix; it is the mode of every request that has one."""

Remasking = Literal[
    "low_confidence", "sequential", "random", "origin", "maskgit_plus", "topk_margin", "entropy", "entropy_bound"
]
"""Orders of unmasking, by the published loops' names: see engine.decoding.orders. `entropy_bound` is the sampler of
models that refine random tokens: see engine.decoding.policies.refine."""
CONFIDENT: tuple[Remasking, ...] = ("low_confidence", "maskgit_plus")
"""Orders by confidence: those that a threshold has a meaning for."""
WHOLE_ANSWER = 0
"""The block length that makes the whole answer one block, for models that see the whole text."""

Unmasking = Literal["threshold", "factor", "bound", "cumulative"]
"""Rules by which confidence unmasks positions: see engine.decoding.unmask."""

Editing = Literal["quality", "speed", "off"]
"""Settings of a model that edits what it has unmasked: see EditSetting."""
MAX_POST_STEPS = MAX_REFINING_STEPS = 1024
"""Most denoising steps that a request may ask for: once a block holds no mask; of a canvas of random tokens."""
MAX_FACTOR = 1024
"""Largest factor of an unmasking rule; every confidence is enough long before."""

MAX_SEED = 2**53 - 1
"""The largest seed. A JSON number holds every integer up to it exactly."""

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "structure"]

MAX_SCHEMA_BYTES = 64 * 1024
"""Longest JSON schema, and longest list of choices, in bytes of UTF-8."""
MAX_REGEX_LENGTH = 4096
"""Longest regular expression, in characters."""
MAX_STRUCTURE_BYTES = 512 * 1024
"""Longest structure, in bytes of UTF-8: the schemas of many tools, and what stands around them."""

MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
"""Logits are multiplied and divided by it: beyond these bounds they would leave the range of their type."""
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by them would leave the range of float32."""


class EditSetting(NamedTuple):
    """Thresholds that the authors of a model that edits publish together, under a name."""

    name: Editing
    threshold: float
    """Of a mask: see DecodingParams."""
    edit_threshold: float | None
    """Of an unmasked token; None: it stays."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """The form that an answer must have, as text that engine.grammar.compiler compiles."""

    kind: GrammarKind
    source: str = ""
    """`json_schema`: the schema, as JSON. `regex`: the expression the whole answer must match. `choice`: the possible
    answers, as a JSON list of strings. `json_object`: empty. `lark`: rules in the library's form of Lark, or in GBNF.
    `structure`: what engine.grammar.structure writes."""
    compact: bool = False
    """JSON without any white space. Otherwise a model may write one space between two JSON tokens."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters that choose a token from logits. The defaults change nothing and sample at temperature 1."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """In [0, MAX_SEED]. The noise is a pure function of (seed, absolute position, token id)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """In [MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY]; 1: off."""
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    """End and stop tokens are banned while fewer tokens than this have been generated."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Only these are chosen, so that an end token has to be among them to end the answer. None: any."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Tokens in a row that the answer never holds. Those of several tokens need a mode that
    chooses one after another."""
    logprobs: int | None = None
    """None: no log-probabilities. k: those of the chosen token and of the k most likely ones."""
    logprob_token_ids: tuple[int, ...] = ()
    """With `logprobs`: the log-probabilities of these tokens are told, in place of the most likely ones'."""

    @property
    def penalises(self) -> bool:
        """Any penalty changes the logits."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def edits(self) -> bool:
        """Logits are changed before temperature, filters and noise."""
        restricted = self.allowed_token_ids is not None or self.banned_sequences
        return bool(self.penalises or self.logit_bias or self.min_tokens or restricted)

    @property
    def plain(self) -> bool:
        """The likeliest token is chosen, whatever came before it."""
        return not (self.temperature >= GREEDY_BELOW or self.edits)


class DecodingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters that decide how many tokens a pass refines and when they settle."""

    mode: Mode = "auto"
    block_length: int = 32
    threshold: float | None = 0.9
    """Diffusion: unmask at this confidence or above. None: an even schedule over `max_denoising_steps`."""
    unmasking: Unmasking = "threshold"
    """Diffusion: what a confidence must reach beside, or instead of, the threshold."""
    factor: float = 2.0
    """Of the rules `factor` and `bound`: the larger, the more positions a step unmasks."""
    bound: float = 0.45
    """Of the rule `bound`: no lower confidence is enough."""
    remasking: Remasking = "low_confidence"
    """Diffusion: which masked positions a step unmasks first, and on which schedule."""
    max_denoising_steps: int | None = None
    """Most denoising steps a block may take, at most its length (for infill `max_tokens`); of a canvas of random tokens
    at most MAX_REFINING_STEPS. None: its length; of such a canvas the model's own number."""
    edit_threshold: float | None = None
    """Diffusion: until its block settles an unmasked token gives way to another one of more confidence than this. None:
    it stays."""
    max_post_steps: int = 16
    """Of editing: most denoising steps that a block takes once it holds no mask."""


class RestrictionFault(NamedTuple):
    """Why no answer can do what some fields of a request ask for together."""

    message: str
    param: str
    """The field at fault, by the name that clients know."""
    of_mode: bool = False
    """Another decoding mode, or another form of the answer, could."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate. Its properties are for models that see the whole text: the length is an input there."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    decoding: DecodingParams = DecodingParams()
    stop_token_ids: tuple[int, ...] = ()
    """Ends the answer besides the model's own end tokens."""
    ignore_eos: bool = False
    """The model's own end tokens are never chosen, unless `stop_token_ids` names them."""
    passes_ends: bool = False
    """The model's own end tokens are chosen like any others and end nothing, unless `stop_token_ids` names them."""
    priority: int = 0
    """Lower is served first; equal priorities are served first come first."""
    cache_salt: str = ""
    """Prefix-cache entries are shared only between requests with equal salts."""
    suffix_token_ids: list[int] | None = None
    """Mode `infill`: the text after the gap. None in every other mode."""
    include_drafts: bool = False
    """Emit `DraftUpdated` events."""
    trace_unmasking: bool = False
    """Report the step in which each token was unmasked. For modes that unmask."""
    prompt_logprobs: int | None = None
    """k: emit `PromptScored` events with the log-probability of every prompt token but the first, given those before
    it, and with those of the k most likely tokens. Such a prompt is run from the first of them on, whatever the prefix
    cache holds, and `max_tokens` may be 0. None: no such events."""
    score_from: int = 1
    """Index of the first prompt token whose log-probability is wanted."""
    finds_gap: bool = False
    """Mode `infill`: the gap may be shorter than `max_tokens`; its length is found (engine.scheduling.gap_search)."""
    grammar: Grammar | None = None
    """Only text of this grammar is generated. None: any text."""
    prediction_token_ids: list[int] | None = None
    """What the answer is thought to be. A matter of speed alone: what of it is right is verified several tokens a pass,
    in modes that choose one token after another. None: no guess."""

    @property
    def block_length(self) -> int:
        """Positions of a block of the answer. A gap before a suffix is one block."""
        asked = self.decoding.block_length
        return self.max_tokens if self.suffix_token_ids is not None or asked == WHOLE_ANSWER else asked

    @property
    def text_length(self) -> int:
        """Positions of the whole text: prompt, whole blocks that hold `max_tokens`, and suffix."""
        answer = -(-self.max_tokens // self.block_length) * self.block_length
        return len(self.prompt_token_ids) + answer + len(self.suffix_token_ids or ())

    def editing_fault(self, family: str, *, can_edit: bool) -> RestrictionFault | None:
        """What is wrong with `edit_threshold` and `max_post_steps`; None: nothing. can_edit: the model's family can."""
        decoding, name = self.decoding, "edit_threshold"
        if decoding.edit_threshold is None:
            return None
        if not can_edit:
            message = f"The model family {family} does not support editing: a token that it has unmasked stays."
            return RestrictionFault(message, name, of_mode=True)
        if not 0.0 <= decoding.edit_threshold <= 1.0:
            return RestrictionFault(f"{name} must be between 0 and 1, not {decoding.edit_threshold}.", name)
        if not 0 <= decoding.max_post_steps <= MAX_POST_STEPS:
            message = f"max_post_steps must be between 0 and {MAX_POST_STEPS}, not {decoding.max_post_steps}."
            return RestrictionFault(message, "max_post_steps")
        if self.grammar is not None:
            message = (
                "A form of the answer cannot be combined with editing, which could break it: send 'editing': 'off'."
            )
            return RestrictionFault(message, "grammar", of_mode=True)
        if decoding.max_denoising_steps is not None:
            message = "max_denoising_steps cannot be combined with editing, which has no quotas: send 'editing': 'off'."
            return RestrictionFault(message, "max_denoising_steps", of_mode=True)
        return None

    @property
    def ordered_field(self) -> str | None:
        """The first field that says what a token may be by those settled before it; None: there is none."""
        if self.grammar is not None:
            return "grammar"
        penalties = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
        return next((name for name, off in penalties.items() if getattr(self.sampling, name) != off), None)

    def restriction_fault(
        self, vocab_size: int, model_ends: Iterable[int], never: Iterable[int]
    ) -> RestrictionFault | None:
        """What is wrong with `allowed_token_ids` and `banned_sequences`; None: nothing.

        model_ends, never: the model's end tokens, and the tokens that it never generates. At every place of the answer
        some token has to be left, whatever was chosen before it.
        """
        allowed, banned = self.sampling.allowed_token_ids, self.sampling.banned_sequences
        if allowed is None and not banned:
            return None
        named = {"allowed_token_ids": allowed or (), "bad_words": [token for tokens in banned for token in tokens]}
        for param, tokens in named.items():
            for token in tokens:
                if not 0 <= token < vocab_size:
                    return RestrictionFault(f"{param} names token id {token}, outside the vocabulary.", param)
        param = "allowed_token_ids" if allowed is not None else "bad_words"
        if self.grammar is not None:
            message = f"'{param}' cannot be combined with a form of the answer, which says what it may hold."
            return RestrictionFault(message, param, of_mode=True)
        mode = self.decoding.mode
        if mode in ("diffusion", "infill") and any(len(tokens) > 1 for tokens in banned):
            message = (
                f"'bad_words' has a word of several tokens, which decoding '{mode}' cannot keep out: it chooses tokens "
                "side by side. Use 'ar', 'speculative' or 'auto'."
            )
            return RestrictionFault(message, "bad_words", of_mode=True)
        unusable = {*never, *(tokens[-1] for tokens in banned), *self._barred_ends(frozenset(model_ends))}
        if not set(range(vocab_size) if allowed is None else allowed) - unusable:
            return RestrictionFault(f"'{param}' leaves no token to choose.", param)
        return None

    def prediction_fault(self, vocab_size: int, never: Iterable[int]) -> RestrictionFault | None:
        """What is wrong with the prediction; None: nothing. never: the tokens that the model never generates."""
        predicted, mode = self.prediction_token_ids, self.decoding.mode
        if predicted is None:
            return None
        if mode in ("diffusion", "infill"):
            message = (
                f"'prediction' cannot be used with decoding '{mode}', which has nothing to verify it with: 'ar', "
                "'speculative' and 'auto' have the model's causal head."
            )
            return RestrictionFault(message, "prediction", of_mode=True)
        unknown = {*never}
        for token in predicted:
            if not 0 <= token < vocab_size or token in unknown:
                return RestrictionFault(f"prediction holds token id {token}, which no answer can hold.", "prediction")
        return None

    def gap_fault(self, *, scores: bool) -> RestrictionFault | None:
        """What is wrong with a gap whose length is to be found; None: nothing. scores: the model has a causal head."""
        if not self.finds_gap or (scores and self.decoding.mode == "infill"):
            return None
        message = "The length of a gap is found before a 'suffix' alone."
        if not scores:
            message = "This model cannot find the length of a gap: that takes a causal head, which it does not have."
        return RestrictionFault(message, "find_gap_length", of_mode=True)

    def _barred_ends(self, model_ends: frozenset[int]) -> frozenset[int]:
        """End tokens that some place of the answer may not hold."""
        if self.sampling.min_tokens or self.suffix_token_ids is not None:
            return model_ends | frozenset(self.stop_token_ids)
        return model_ends - frozenset(self.stop_token_ids) if self.ignore_eos else frozenset()
