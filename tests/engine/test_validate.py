"""The rules of a request: what can never be served is refused at once, naming the field, and nothing else is.

If one fails, a client waits for ever instead of reading what is wrong, or is refused what the server can do.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.config import EngineInfo
from engine.errors import RequestError
from engine.request import (
    MAX_POST_STEPS,
    MAX_REGEX_LENGTH,
    MAX_SCHEMA_BYTES,
    MAX_SEED,
    EditSetting,
    Grammar,
)
from engine.validate import check_request
from tests.engine.driving import ask
from tests.reference.grammars import regex, schema

INFO = EngineInfo(
    family="some_family", vocab_size=96, max_model_len=128, mask_token_id=5, banned_token_ids=(5, 0), bos_token_id=1,
    end_token_ids=(2,), decodings=("ar", "diffusion", "speculative", "auto"), default_decoding="auto", block_length=8,
    max_block_length=32, max_infill_window=24, page_size=16, num_pages=64, dtype="float32", device="cpu",
    num_parameters=1,
)  # fmt: skip
PROMPT = [7, 8, 9]


def refusal(prompt: list[int] = PROMPT, info: EngineInfo = INFO, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        check_request(ask("r", prompt, **fields), info)
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -5}, "max_tokens", "-5"),
        ({"block_length": 1}, "block_length", "between 2 and 32"),
        ({"block_length": 33}, "block_length", "33"),
        ({"threshold": 0.0}, "threshold", "greater than 0"),
        ({"threshold": 1.01}, "threshold", "1.01"),
        ({"threshold": float("nan")}, "threshold", "nan"),
        ({"max_denoising_steps": 0}, "max_denoising_steps", "at least 1"),
        ({"max_denoising_steps": 9}, "max_denoising_steps", "(9) must not be greater than the block's length (8)"),
        (
            {"mode": "infill", "suffix_token_ids": [7], "max_denoising_steps": 17},
            "max_denoising_steps",
            "(17) must not be greater than the block's length (16)",
        ),
        ({"stop_token_ids": (7, 96)}, "stop_token_ids", "96"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids", "-1"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": MAX_SEED + 1}, "seed", "2**53"),
        ({"repetition_penalty": 1e-3}, "repetition_penalty", "between 0.01 and 10.0, not 0.001"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty", "nan"),
        ({"min_tokens": 17}, "min_tokens", "17"),
        ({"logit_bias": {96: 1.0}}, "logit_bias", "96"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias", "-1"),
        ({"mode": "infill", "suffix_token_ids": [96]}, "suffix", "96"),
        ({"mode": "infill", "suffix_token_ids": [5]}, "suffix", "reserved"),
        ({"mode": "ar", "suffix_token_ids": [7]}, "suffix", "'ar'"),
        ({"mode": "speculative", "suffix_token_ids": [7]}, "suffix", "'speculative'"),
        ({"mode": "infill", "suffix_token_ids": [7] * 9}, "suffix", "24"),
        ({"mode": "auto", "suffix_token_ids": [7]}, "suffix", "'infill', not 'auto'"),
        ({"mode": "diffusion", "suffix_token_ids": [7]}, "suffix", "'infill', not 'diffusion'"),
        ({"mode": "infill"}, "suffix", "needs a suffix"),
        ({"mode": "diffusion", "unmasking": "cumulative", "threshold": None}, "threshold", "'cumulative'"),
        ({"mode": "diffusion", "factor": 0.0}, "factor", "greater than 0"),
        ({"mode": "diffusion", "factor": float("nan")}, "factor", "nan"),
        ({"mode": "diffusion", "bound": 1.5}, "bound", "1.5"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, part: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert part in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {"block_length": 2},
        {"block_length": 32},
        {"threshold": 1.0},
        {"threshold": None, "max_denoising_steps": 1},
        {"max_denoising_steps": 8},
        {"mode": "infill", "suffix_token_ids": [7], "max_denoising_steps": 16},
        {"stop_token_ids": (0, 95)},
        {"seed": MAX_SEED},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 10.0},
        {"min_tokens": 16},
        {"logit_bias": {0: 1.0, 95: -1.0}},
        {"max_tokens": 125},
        {"mode": "infill", "suffix_token_ids": []},
        {"mode": "infill", "suffix_token_ids": [7] * 8},
    ],
)
def test_what_is_just_inside_the_limits_is_let_in(fields: dict[str, Any]) -> None:
    check_request(ask("r", PROMPT, **fields), INFO)


@pytest.mark.parametrize("token", [96, 10**9, -1])
def test_a_prompt_token_outside_the_vocabulary(token: int) -> None:
    """It would index past the embeddings: a crash, or on a GPU somebody else's memory."""
    error = refusal([7, token])
    assert (error.param, error.code) == ("prompt", "invalid_token_id")
    assert str(token) in str(error)


@pytest.mark.parametrize("token", INFO.banned_token_ids)
def test_mask_and_padding_cannot_be_sent(token: int) -> None:
    """A prompt could pretend that part of it is still to be generated."""
    error = refusal([7, token])
    assert (error.param, error.code) == ("prompt", "invalid_token_id")


def test_an_empty_prompt() -> None:
    assert refusal([]).param == "prompt"


def test_a_prompt_and_answer_that_do_not_fit() -> None:
    """Clients tell "shorten your prompt" from other errors by this code; the message must say how long both are."""
    error = refusal([7] * 100, max_tokens=29)
    assert (error.param, error.code) == ("max_tokens", "context_length_exceeded")
    for number in ("128", "129", "100", "29"):
        assert number in str(error)
    assert refusal([7] * 128).param == "prompt"
    assert refusal([7] * 100, mode="infill", suffix_token_ids=[7] * 10, max_tokens=19).code == "context_length_exceeded"
    check_request(ask("r", [7] * 100, max_tokens=28), INFO)


def test_a_decoding_the_model_does_not_support() -> None:
    """The error must name both: the user can change either."""
    error = refusal(info=msgspec.structs.replace(INFO, decodings=("diffusion",)))
    assert (error.param, error.code) == ("decoding", "unsupported_parameter")
    assert "some_family" in str(error)
    assert "'ar'" in str(error)


BLOCKS = msgspec.structs.replace(
    INFO, decodings=("diffusion",), default_decoding="diffusion", fixed_block_length=True, limits_steps=False,
    max_infill_window=0,
)  # fmt: skip
"""Of a model that knows one block length, refines blocks in parts, and has no causal head."""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"block_length": 16}, "block_length"),
        ({"block_length": 4}, "block_length"),
        ({"max_denoising_steps": 2}, "max_denoising_steps"),
        ({"remasking": "sequential", "threshold": None}, "remasking"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"mode": "ar"}, "decoding"),
        ({"mode": "infill", "suffix_token_ids": [7]}, "suffix"),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_both_names(fields: dict[str, Any], param: str) -> None:
    """A user would not learn whether the field or the model is at fault."""
    error = refusal(info=BLOCKS, **{"mode": "diffusion"} | fields)
    assert error.param == param
    assert "some_family" in str(error)
    check_request(ask("r", PROMPT, "diffusion", block_length=8), BLOCKS)


EDITS = msgspec.structs.replace(BLOCKS, edit_settings=(EditSetting("quality", 0.7, 0.5),), limits_steps=True)


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"edit_threshold": -0.1}, "edit_threshold", "between 0 and 1, not -0.1"),
        ({"edit_threshold": float("nan")}, "edit_threshold", "nan"),
        ({"max_post_steps": -1}, "max_post_steps", "-1"),
        ({"max_post_steps": MAX_POST_STEPS + 1}, "max_post_steps", "1025"),
        ({"max_denoising_steps": 2}, "max_denoising_steps", "'editing': 'off'"),
        ({"grammar": regex("a+")}, "grammar", "'editing': 'off'"),
    ],
)
def test_editing_has_its_limits(fields: dict[str, Any], param: str, part: str) -> None:
    """A block that is edited for ever, or a form that an edit breaks."""
    sound = {"mode": "diffusion", "block_length": 8, "edit_threshold": 0.0, "max_post_steps": 0}
    check_request(ask("r", PROMPT, **sound), EDITS)
    error = refusal(info=EDITS, **sound | fields)
    assert error.param == param
    assert part in str(error)
    unedited = {**sound, "edit_threshold": None}
    if param in ("grammar", "max_denoising_steps"):
        check_request(ask("r", PROMPT, **unedited | fields), EDITS)
    error = refusal(info=BLOCKS, **sound)
    assert (error.param, "some_family" in str(error)) == ("edit_threshold", True)


def test_an_order_that_looks_at_no_confidence_has_no_threshold() -> None:
    info = msgspec.structs.replace(INFO, remaskings=("low_confidence", "sequential"))
    assert refusal(info=info, mode="diffusion", remasking="sequential").param == "threshold"
    check_request(ask("r", PROMPT, "diffusion", remasking="sequential", threshold=None), info)


def test_infill_where_the_model_cannot() -> None:
    error = refusal(mode="infill", suffix_token_ids=[7], info=msgspec.structs.replace(INFO, max_infill_window=0))
    assert error.param == "suffix"
    assert "some_family" in str(error)


@pytest.mark.parametrize(
    ("grammar", "fields", "part"),
    [
        (regex("a"), {"mode": "infill", "suffix_token_ids": [40]}, "suffix"),
        (regex(""), {}, "1 to"),
        (regex("a" * (MAX_REGEX_LENGTH + 1)), {}, str(MAX_REGEX_LENGTH)),
        (schema({"title": "é" * (MAX_SCHEMA_BYTES // 2)}), {}, str(MAX_SCHEMA_BYTES)),
    ],
)
def test_a_grammar_that_can_never_be_followed(grammar: Grammar, fields: dict[str, Any], part: str) -> None:
    """An infill would ignore the form without a word, or a huge one would be copied about before it is refused."""
    error = refusal(grammar=grammar, **fields)
    assert error.param == "grammar"
    assert part in str(error)


WHOLE = msgspec.structs.replace(
    INFO, family="whole", decodings=("diffusion",), default_decoding="diffusion", sees_whole_text=True,
    max_pass_tokens=96, block_length=0, max_block_length=96, max_infill_window=96, default_threshold=None,
    remaskings=("entropy", "maskgit_plus"),
)  # fmt: skip


def whole(length: int = 8, **fields: Any) -> dict[str, Any]:
    """Fields of a request to a model that sees the whole text. length: of its blocks."""
    return {"mode": "diffusion", "threshold": None, "remasking": "entropy", "block_length": length} | fields


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "part"),
    [
        (81, whole(), "max_tokens", "97 tokens"),
        (83, whole(0, max_tokens=14), "max_tokens", "a pass of this server holds 96 tokens (max_batch_tokens)"),
        (120, whole(max_tokens=1), "max_tokens", "a pass of this server holds 96"),
        (120, whole(max_tokens=8, block_length=16), "max_tokens", "maximum context length is 128 tokens. However, "),
        (3, whole(0, max_denoising_steps=17), "max_denoising_steps", "(17) must not be greater"),
        (3, whole(threshold=0.5), "threshold", "remasking 'entropy', which does not go by confidence"),
        (3, whole(remasking="origin"), "remasking", "whole does not support remasking 'origin'"),
        (3, whole(mode="ar"), "decoding", "whole does not support decoding 'ar'"),
    ],
)
def test_a_text_that_is_seen_as_a_whole(prompt: int, fields: dict[str, Any], param: str, part: str) -> None:
    """Its answer takes whole blocks, and all of it a pass."""
    check_request(ask("r", [7] * 80, **whole()), WHOLE)  # 80 and two blocks of 8
    error = refusal([7] * prompt, WHOLE, **fields)
    assert error.param == param
    assert part in str(error)


def test_a_block_of_the_whole_answer_is_for_models_that_see_the_whole_text() -> None:
    check_request(ask("r", PROMPT, **whole(0)), WHOLE)
    assert refusal(mode="diffusion", block_length=0).param == "block_length"


REFINES = msgspec.structs.replace(
    INFO, family="noise", decodings=("diffusion",), default_decoding="diffusion", fixed_block_length=True,
    default_threshold=None, remaskings=("entropy_bound",), refines=True, max_infill_window=0, banned_token_ids=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -0.1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"grammar": regex("a")}, "grammar"),
        ({"threshold": 0.5}, "threshold"),
        ({"remasking": "low_confidence"}, "remasking"),
        ({"unmasking": "factor"}, "unmasking"),
        ({"mode": "ar"}, "decoding"),
        ({"max_denoising_steps": 1025}, "max_denoising_steps"),
        ({"banned_sequences": ((7, 8),)}, "bad_words"),
    ],
)
def test_what_refining_random_tokens_cannot_do(fields: dict[str, Any], param: str) -> None:
    """A parameter would be taken and do nothing, or something else than it says."""
    plain = {"mode": "diffusion", "threshold": None, "remasking": "entropy_bound"}
    check_request(
        ask("r", PROMPT, **plain, max_denoising_steps=1024, top_k=5, min_tokens=3, logit_bias={7: 1.0}), REFINES
    )
    assert refusal(info=REFINES, **plain | fields).param == param
