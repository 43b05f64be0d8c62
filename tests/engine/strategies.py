"""Hypothesis strategies: requests of every mode, and the company they keep."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from engine.request import Request
from tests.engine.driving import Visit, ask

MODEL_LEN = 88
"""Longest prompt plus answer drawn here."""
MODES = ("ar", "diffusion", "speculative", "auto", "infill")
NARROW = dict.fromkeys((20, 30, 40), 30.0)
"""A random model's drafts are never what it would say next, unless little else is left to say."""


def prompt_of(family: int, shared: int, tail: int) -> list[int]:
    """Ordinary tokens. Prompts of one family begin alike, for `shared` tokens, so that prefix-cache entries meet."""
    common, own = random.Random(family), random.Random(f"{family}/{shared}/{tail}")
    return [common.randrange(6, 96) for _ in range(shared)] + [own.randrange(6, 96) for _ in range(tail)]


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    """Sampling fields: greedy or sampled, with any filters and penalties."""
    fields: dict[str, Any] = {"temperature": draw(st.sampled_from((0.0, 0.0, 0.7, 1.0, 1.5)))}
    fields["seed"] = draw(st.integers(0, 3)) * 2**33
    options: dict[str, st.SearchStrategy[Any]] = {
        "logit_bias": st.just(NARROW), "top_k": st.integers(2, 12), "top_p": st.sampled_from((0.5, 0.9)),
        "min_p": st.just(0.05), "presence_penalty": st.just(0.7), "frequency_penalty": st.sampled_from((-0.4, 0.6)),
        "repetition_penalty": st.sampled_from((0.8, 1.3)), "min_tokens": st.integers(1, 4),
        "logprobs": st.integers(0, 2),
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(sorted(options)), unique=True, max_size=4)):
        fields[name] = draw(options[name])
    return fields


@st.composite
def requests(draw: st.DrawFn, request_id: str) -> Request:
    """One request that fits into MODEL_LEN."""
    mode = draw(st.sampled_from(MODES))
    prompt = prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 0, 3, 16, 33))), draw(st.integers(1, 12)))
    fields: dict[str, Any] = draw(samplings())
    fields["max_tokens"] = draw(st.integers(4, 40))
    fields["block_length"] = draw(st.integers(2, 16))
    fields["ignore_eos"] = draw(st.booleans())
    fields["stop_token_ids"] = draw(st.sampled_from(((), (20,), (7, 8, 9))))
    fields["cache_salt"] = draw(st.sampled_from(("", "", "salt")))
    fields["priority"] = draw(st.sampled_from((0, 0, 0, -1, 1)))
    fields["include_drafts"] = draw(st.booleans())
    if draw(st.booleans()):
        fields["threshold"] = draw(st.sampled_from((None, 0.3, 0.6)))
        fields["max_denoising_steps"] = draw(st.sampled_from((None, 1, min(3, fields["block_length"]))))
    if mode in ("ar", "speculative", "auto") and draw(st.booleans()):
        fields["prediction_token_ids"] = draw(st.lists(st.sampled_from((20, 30, 40, 50)), max_size=40))
    if mode == "infill":
        fields["max_tokens"] = min(fields["max_tokens"], 16)
        fields["suffix_token_ids"] = prompt_of(9, 0, draw(st.integers(1, 8)))
    return ask(request_id, prompt, mode, **fields)


@st.composite
def companies(draw: st.DrawFn, most: int = 8) -> list[Visit]:
    """Requests that come at different times; some leave before they are done."""
    visits = []
    for i in range(draw(st.integers(2, most))):
        abort_after = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)))
        visits.append(Visit(draw(requests(f"r{i}")), draw(st.integers(0, 12)), abort_after))
    return visits


def pools() -> st.SearchStrategy[dict[str, Any]]:
    """EngineConfig fields of engines that are short of everything, down to a pool that holds one request at a time."""
    return st.fixed_dictionaries(
        {
            "page_size": st.sampled_from((1, 4, 8, 16)),
            "kv_cache_tokens": st.sampled_from((MODEL_LEN + 8, 112, 144, 512)),
            "max_batch_tokens": st.sampled_from((43, 64, 256)),
            "max_running": st.integers(1, 6),
            "prefix_caching": st.sampled_from((True, True, False)),
            "shared_verify_below": st.sampled_from((0, 2, 100)),
        }
    )
