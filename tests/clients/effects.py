"""What each field of a request does, shown on answers: field -> a check that it does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.clients.asker import Asker
from tests.clients.conftest import QUESTION, STORY
from tests.clients.parameters.prediction_effects import prediction
from tests.clients.parameters.token_effects import TOKENS, prompt_logprobs, unmasking_trace
from tests.http_helpers import delta_of, events


def _model(asker: Asker) -> None:
    usage = asker.usage(model="builtin:ar")
    assert usage["diffusion"]["decoding"] == "ar"
    assert asker.send(model="nothing").status_code == 404


def _prompt(asker: Asker) -> None:
    assert asker.text(prompt="<|user|>Add 2 and 3.<|assistant|>") != asker.text()


def _messages(asker: Asker) -> None:
    assert asker.text(messages=[{"role": "user", "content": QUESTION}]) != asker.text()


def _max_tokens(asker: Asker) -> None:
    assert asker.usage(max_tokens=5)["completion_tokens"] == 5


def _max_completion_tokens(asker: Asker) -> None:
    assert asker.usage(max_tokens=None, max_completion_tokens=5)["completion_tokens"] == 5
    assert asker.send(max_tokens=4, max_completion_tokens=5).status_code == 400


def _temperature(asker: Asker) -> None:
    assert len({asker.text(temperature=1.5, seed=seed) for seed in range(2)}) == 2
    assert len({asker.text(temperature=0, seed=seed) for seed in range(2)}) == 1


def _seed(asker: Asker) -> None:
    hot = {"temperature": 1.5}
    assert asker.text(seed=1, **hot) == asker.text(seed=1, **hot) != asker.text(seed=2, **hot)
    assert asker.usage(seed=1)["diffusion"]["seed"] == 1
    drawn = asker.answer(**hot)
    assert asker.answer(seed=drawn["usage"]["diffusion"]["seed"], **hot)["choices"] == drawn["choices"]


def _narrowing(field: str, value: float) -> Callable[[Asker], None]:
    """A filter so narrow that only the likeliest token passes: sampling becomes greedy."""

    def check(asker: Asker) -> None:
        if asker.mode == "diffusion":  # in what order a block is unmasked depends on the temperature, too
            texts = {asker.text(temperature=1.5, seed=seed, **{field: value}) for seed in range(2)}
            assert len(texts) == 1
        else:
            assert asker.text(temperature=1.5, seed=1, **{field: value}) == asker.text()
        assert asker.text(temperature=1.5, seed=1) != asker.text(temperature=1.5, seed=1, **{field: value})

    return check


def _penalty(field: str, value: float) -> Callable[[Asker], None]:
    def check(asker: Asker) -> None:
        assert asker.text(max_tokens=60, **{field: value}) != asker.text(max_tokens=60)

    return check


def _n(asker: Asker) -> None:
    choices = asker.answer(n=3, temperature=1.5, seed=1)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({json.dumps({**choice, "index": 0}) for choice in choices}) == 3


def _stop(asker: Asker) -> None:
    whole = asker.text()
    for stop in (whole[10:14], [whole[10:14], "\x01"]):
        answer = asker.answer(stop=stop)["choices"][0]
        assert whole.startswith(asker.text(stop=stop))
        assert whole[10:14] not in asker.text(stop=stop)
        assert answer["finish_reason"] == "stop"


def _logit_bias(asker: Asker) -> None:
    comma = asker.ids(",")[0]
    assert asker.text(logit_bias={str(comma): 100}, max_tokens=6) == "," * 6
    banned = {str(token): -100 for token in asker.ids(asker.text())}
    assert asker.text(logit_bias=banned) != asker.text()


def _logprobs(asker: Asker) -> None:
    choice = asker.answer(logprobs=True if asker.endpoint == "chat" else 2)["choices"][0]
    scores = choice["logprobs"]["content" if asker.endpoint == "chat" else "tokens"]
    assert len(scores) == 20
    assert asker.answer()["choices"][0]["logprobs"] is None


def _top_logprobs(asker: Asker) -> None:
    choice = asker.answer(logprobs=True, top_logprobs=3)["choices"][0]
    assert all(len(token["top_logprobs"]) == 3 for token in choice["logprobs"]["content"])
    assert asker.send(top_logprobs=3).status_code == 400


def _echo(asker: Asker) -> None:
    assert asker.text(echo=True) == STORY + asker.text()


def _suffix(asker: Asker) -> None:
    one, other = (asker.text(suffix=suffix) for suffix in (" happily ever after.", " 12 = 30."))
    assert one != other


def _stream(asker: Asker) -> None:
    response = asker.send(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(delta_of(chunk["choices"][0]) for chunk in events(response.text)) == asker.text()


def _stream_options(asker: Asker) -> None:
    chunks = events(asker.send(stream=True, stream_options={"include_usage": True}).text)
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    assert all("usage" not in chunk for chunk in events(asker.send(stream=True).text))
    assert asker.send(stream_options={"include_usage": True}).status_code == 400


def _response_format(asker: Asker) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    assert json.loads(asker.text(response_format=form)) in ("yes", "no")


def _min_tokens(asker: Asker) -> None:
    end = {"stop_token_ids": asker.ids(asker.text(max_tokens=1))}
    assert asker.usage(**end)["completion_tokens"] < 3
    assert asker.usage(**end, min_tokens=9)["completion_tokens"] >= 9


def _stop_token_ids(asker: Asker) -> None:
    assert asker.answer(stop_token_ids=asker.ids(asker.text()))["choices"][0]["finish_reason"] == "stop"


def _ignore_eos(asker: Asker) -> None:
    asked = {"prompt": f"<|user|>{QUESTION}<|assistant|>", "max_tokens": 90}
    assert asker.usage(**asked)["completion_tokens"] < 90
    assert asker.usage(**asked, ignore_eos=True)["completion_tokens"] == 90


def _decoding(asker: Asker) -> None:
    for mode in ("ar", "speculative", "auto", "diffusion"):
        assert asker.usage(decoding=mode)["diffusion"]["decoding"] == mode


def _cache_salt(asker: Asker) -> None:
    def cached(**fields: Any) -> int:
        return int(asker.usage(prompt=STORY * 5, max_tokens=3, **fields)["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 0
    assert cached(cache_salt=f"salt of {asker.mode}") == 0
    assert cached(cache_salt=f"salt of {asker.mode}") > 0


def _passes(asker: Asker, **fields: Any) -> int:
    return int(asker.usage(max_tokens=60, **fields)["diffusion"]["passes"])


def _block_length(asker: Asker) -> None:
    assert _passes(asker, block_length=2) != _passes(asker, block_length=32)


def _threshold(asker: Asker) -> None:
    assert _passes(asker, threshold=0.3) < _passes(asker, threshold=1.0)


def _remasking(asker: Asker) -> None:
    """The built-in model has one order; what the other does is tested where a family has it."""
    assert asker.text(remasking="low_confidence") == asker.text()
    refused = asker.send(remasking="sequential")
    assert refused.status_code == 400
    assert "does not support remasking 'sequential'" in refused.json()["error"]["message"]


def _max_denoising_steps(asker: Asker) -> None:
    assert _passes(asker, max_denoising_steps=2, threshold=None) < _passes(
        asker, max_denoising_steps=16, threshold=None
    )


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("add", "look")
]
NAMED = {"type": "function", "function": {"name": "look"}}


def _calls(asker: Asker, **fields: Any) -> list[str]:
    choice = asker.answer(tools=TOOLS, max_tokens=60, **fields)["choices"][0]
    assert choice["finish_reason"] in ("tool_calls", "length")
    return [call["function"]["name"] for call in choice["message"].get("tool_calls", [])]


def _tools(asker: Asker) -> None:
    assert asker.usage(tools=TOOLS)["prompt_tokens"] > asker.usage()["prompt_tokens"]
    assert asker.usage(tools=TOOLS, tool_choice="none")["prompt_tokens"] == asker.usage()["prompt_tokens"]
    assert _calls(asker, tool_choice="required")


def _tool_choice(asker: Asker) -> None:
    assert set(_calls(asker, tool_choice=NAMED)) == {"look"}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    assert set(_calls(asker, tool_choice=some)) == {"look"}


def _parallel_tool_calls(asker: Asker) -> None:
    assert len(_calls(asker, tool_choice="required", parallel_tool_calls=False)) == 1


EFFECTS: dict[str, Callable[[Asker], None]] = {
    "model": _model, "prompt": _prompt, "messages": _messages, "max_tokens": _max_tokens,
    "max_completion_tokens": _max_completion_tokens, "temperature": _temperature, "seed": _seed,
    "top_p": _narrowing("top_p", 1e-6), "presence_penalty": _penalty("presence_penalty", 2.0),
    "frequency_penalty": _penalty("frequency_penalty", 2.0), "n": _n, "stop": _stop, "logit_bias": _logit_bias,
    "logprobs": _logprobs, "top_logprobs": _top_logprobs, "echo": _echo, "suffix": _suffix, "stream": _stream,
    "stream_options": _stream_options, "response_format": _response_format, "tools": _tools,
    "prediction": prediction, "tool_choice": _tool_choice, "parallel_tool_calls": _parallel_tool_calls,
}  # fmt: skip
"""OpenAI's fields."""


def _include_stop(asker: Asker) -> None:
    plain = asker.text(stop=[" a "])
    assert asker.text(stop=[" a "], include_stop_str_in_output=True) == plain + " a "


OF_EVERY_MODE: dict[str, Callable[[Asker], None]] = {
    **{name: EFFECTS[name] for name in ("max_tokens", "temperature", "seed", "top_p", "presence_penalty",
                                        "frequency_penalty", "n", "stop", "logit_bias", "logprobs", "echo", "stream")},
    "top_k": _narrowing("top_k", 1), "min_p": _narrowing("min_p", 1.0),
    "repetition_penalty": _penalty("repetition_penalty", 3.0), "min_tokens": _min_tokens,
    "stop_token_ids": _stop_token_ids, "include_stop_str_in_output": _include_stop,
    "ignore_eos": _ignore_eos, "cache_salt": _cache_salt, **TOKENS,
}  # fmt: skip
"""Fields that do the same in every mode."""


def _unmasking(asker: Asker) -> None:
    """A factor that is always reached unmasks a block at once; a product may not be as low as each of its factors."""
    counts = {rule: _passes(asker, unmasking=rule, threshold=0.3) for rule in ("threshold", "factor", "cumulative")}
    assert counts["threshold"] < counts["cumulative"]
    assert counts["threshold"] < counts["factor"]
    assert asker.send(unmasking="cumulative", threshold=None).status_code == 400
    assert asker.send(unmasking="other").status_code == 400


def _factor(asker: Asker) -> None:
    few = {"unmasking": "factor", "threshold": None}
    assert _passes(asker, factor=20, **few) < _passes(asker, factor=0.2, **few)
    assert asker.send(factor=2).json()["error"]["param"] == "factor"


def _bound(asker: Asker) -> None:
    few = {"unmasking": "bound", "threshold": 1.0, "factor": 20}
    assert _passes(asker, bound=0.05, **few) < _passes(asker, bound=0.99, **few)
    assert asker.send(bound=0.5, unmasking="factor").json()["error"]["param"] == "bound"


def _editing(field: str, value: Any) -> Callable[[Asker], None]:
    """The built-in model does not edit; what the fields do is tested where a family does."""

    def check(asker: Asker) -> None:
        refused = asker.send(**{field: value})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field
        assert "does not edit" in refused.json()["error"]["message"]

    return check


OF_SOME_MODES: dict[str, tuple[tuple[str, ...], Callable[[Asker], None]]] = {
    "block_length": (("speculative", "diffusion"), _block_length),
    "threshold": (("diffusion",), _threshold),
    "max_denoising_steps": (("diffusion",), _max_denoising_steps),
    "unmasking": (("diffusion",), _unmasking),
    "factor": (("diffusion",), _factor),
    "bound": (("diffusion",), _bound),
    "remasking": (("diffusion",), _remasking),
    "editing": (("diffusion",), _editing("editing", "speed")),
    "edit_threshold": (("diffusion",), _editing("edit_threshold", 0.5)),
    "max_post_steps": (("diffusion",), _editing("max_post_steps", 4)),
    "prompt_logprobs": (("ar", "speculative", "auto"), prompt_logprobs),
    "unmasking_trace": (("diffusion",), unmasking_trace),
    "prediction": (("ar", "speculative", "auto"), prediction),
}
"""Fields that mean something in these modes; `auto` takes `block_length`, too, and chooses below it."""
