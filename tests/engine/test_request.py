"""Requests as messages. If one fails, the engine runs something else than the client asked for."""

from __future__ import annotations

import msgspec

from engine.request import MAX_SEED, DecodingParams, Request, SamplingParams
from tests.engine.driving import ask

PROMPT = [7, 8, 9]


def test_requests_survive_the_wire() -> None:
    """What a client asked for would differ from what is run."""
    request = ask(
        "r", PROMPT, "infill", temperature=0.3, top_k=4, top_p=0.9, min_p=0.1, seed=MAX_SEED,
        logit_bias={9: -2.5}, allowed_token_ids=(9, 10), banned_sequences=((9, 10),),
        presence_penalty=0.1, frequency_penalty=-0.2, repetition_penalty=1.1, min_tokens=2, logprobs=3, block_length=4,
        threshold=None, max_denoising_steps=2, remasking="sequential", unmasking="bound",
        factor=1.5, bound=0.3, logprob_token_ids=(5, 6), edit_threshold=0.5, max_post_steps=3,
        stop_token_ids=(7,), ignore_eos=True, priority=-3, cache_salt="ä",
        suffix_token_ids=[11], include_drafts=True, prompt_logprobs=2, passes_ends=True, trace_unmasking=True,
        score_from=2, finds_gap=True, prediction_token_ids=[12],
    )  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
    defaults = Request(request_id="r", prompt_token_ids=PROMPT, max_tokens=1)
    for before, after in (
        (request, defaults),
        (request.sampling, SamplingParams()),
        (request.decoding, DecodingParams()),
    ):
        same = [name for name in before.__struct_fields__ if getattr(before, name) == getattr(after, name)]
        assert set(same) <= {"request_id", "prompt_token_ids", "grammar"}, (
            "a field of the request above is left at its default"
        )
