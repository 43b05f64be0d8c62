"""What the fields about single tokens do, shown on answers of completions."""

from __future__ import annotations

from collections.abc import Callable

from tests.clients.asker import Asker
from tests.http_helpers import events


def _allowed_token_ids(asker: Asker) -> None:
    allowed = asker.ids(" the a,")
    answer = asker.answer(allowed_token_ids=allowed, return_token_ids=True)["choices"][0]
    assert set(answer["token_ids"]) <= set(allowed)
    assert len(answer["token_ids"]) == 20, "there is no end token among them"


def _bad_words(asker: Asker) -> None:
    """A word that is one token, in every mode; several tokens where one is chosen after another."""
    plain = asker.answer(return_token_ids=True)["choices"][0]["token_ids"]
    words = [asker.decoded([token]) for token in plain]
    word = next(w for w in words if w.startswith(" ") and len(asker.ids(w)) == len(asker.ids(w[1:])) == 1)
    found = asker.answer(bad_words=[word.strip()], return_token_ids=True)["choices"][0]["token_ids"]
    assert not {*asker.ids(word), *asker.ids(word[1:])} & set(found)
    pair = next(
        "".join(words[at : at + 2])
        for at in range(3, 18)
        if asker.ids("".join(words[at : at + 2])) == plain[at : at + 2]
    )
    if asker.mode == "diffusion":
        assert asker.send(bad_words=[pair]).json()["error"]["param"] == "bad_words"
        return
    ids = asker.ids(pair)
    found = asker.answer(bad_words=[pair], return_token_ids=True)["choices"][0]["token_ids"]
    assert found != plain
    assert all(found[at : at + 2] != ids for at in range(len(found)))
    first = next(at for at in range(20) if plain[at : at + 2] == ids)
    assert found[: first + 1] == plain[: first + 1], "each of the two may stand alone"


def _return_token_ids(asker: Asker) -> None:
    answer = asker.answer(return_token_ids=True)
    choice = answer["choices"][0]
    assert asker.decoded(choice["token_ids"]) == asker.text()
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    assert choice["prompt_token_ids"] == asker.prompt_ids()
    chunks = [
        chunk["choices"][0] for chunk in events(asker.send(return_token_ids=True, stream=True).text) if chunk["choices"]
    ]
    assert [token for chunk in chunks for token in chunk["token_ids"]] == choice["token_ids"]
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [asker.prompt_ids()]


def _return_tokens_as_token_ids(asker: Asker) -> None:
    choice = asker.answer(return_token_ids=True, return_tokens_as_token_ids=True, logprobs=2)["choices"][0]
    names = [f"token_id:{token}" for token in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    for name, likeliest in zip(names, choice["logprobs"]["top_logprobs"], strict=True):
        assert name in likeliest
        assert all(other.startswith("token_id:") for other in likeliest)


def prompt_logprobs(asker: Asker) -> None:
    """The same scores as `echo` with `logprobs` tells, in vLLM's form."""
    prompt = asker.prompt_ids()
    told = asker.answer(prompt_logprobs=2, max_tokens=1)["choices"][0]["prompt_logprobs"]
    echoed = asker.answer(echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    assert told[0] is None
    assert len(told) == len(prompt)
    for token, entries, logprob, text in zip(
        prompt[1:], told[1:], echoed["token_logprobs"][1:], echoed["tokens"][1:], strict=True
    ):
        assert len(entries) == 2 + (entries[str(token)]["rank"] > 2)
        assert abs(entries[str(token)]["logprob"] - logprob) < 1e-3
        assert entries[str(token)]["decoded_token"] == text
        best = sorted(entries.values(), key=lambda entry: entry["rank"])
        assert best == sorted(entries.values(), key=lambda entry: -entry["logprob"])
        assert [entry["rank"] for entry in best[:2]] == [1, 2]


def unmasking_trace(asker: Asker) -> None:
    """Of every token, in a gap before a suffix, too."""
    for fields in ({}, {"suffix": " happily ever after.", "max_tokens": 12}):
        answer = asker.answer(unmasking_trace=True, return_token_ids=True, **fields)
        [choice] = answer["choices"]
        told = choice["unmasking"]
        assert [entry["token_id"] for entry in told] == choice["token_ids"]
        assert max(entry["step"] for entry in told) <= answer["usage"]["diffusion"]["denoising_steps"]
        assert all((entry["confidence"] is None) == (entry["step"] == 0) for entry in told)
        assert any(entry["step"] > 1 for entry in told)


def _skip_special_tokens(asker: Asker) -> None:
    control = {"logit_bias": {"1": 100}, "max_tokens": 3}
    assert asker.text(**control) == ""
    assert asker.text(**control, skip_special_tokens=False) == asker.decoded([1, 1, 1]) != ""


def _add_special_tokens(asker: Asker) -> None:
    assert asker.usage(add_special_tokens=False)["prompt_tokens"] == asker.usage()["prompt_tokens"] - 1
    if asker.mode == "diffusion":  # which scores no prompt
        return
    scored = {"echo": True, "max_tokens": 0, "logprobs": 1}
    plain = asker.answer(**scored)["choices"][0]["logprobs"]
    bare = asker.answer(**scored, add_special_tokens=False)["choices"][0]["logprobs"]
    assert bare["tokens"] == plain["tokens"][1:]
    assert bare["text_offset"] == plain["text_offset"][1:]


def _include_drafts(asker: Asker) -> None:
    chunks = events(asker.send(stream=True, include_drafts=True).text)
    assert any(chunk["choices"][0].get("draft") for chunk in chunks if chunk["choices"])
    assert asker.send(include_drafts=True).status_code == 400


def _logprob_token_ids(asker: Asker) -> None:
    """The listed tokens stand beside each token of the answer, whether they are likely or not."""
    plain = asker.answer(logprobs=1, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    listed = [40, *(int(name.removeprefix("token_id:")) for name in plain["tokens"][:2])]
    fields = {"logprob_token_ids": listed, "logprobs": 0, "return_tokens_as_token_ids": True}
    told = asker.answer(**fields)["choices"][0]["logprobs"]
    assert told["tokens"] == plain["tokens"]
    for name, logprob, entries in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert set(entries) == {name, *(f"token_id:{token}" for token in listed)}
        assert abs(entries[name] - logprob) < 1e-3
    assert asker.send(logprob_token_ids=listed).json()["error"]["param"] == "logprob_token_ids"
    assert asker.send(logprob_token_ids=[10**6], logprobs=0).json()["error"]["param"] == "logprob_token_ids"


def _truncate_prompt_tokens(asker: Asker) -> None:
    """The end of the prompt is kept, and BOS in front; a prompt beyond the context is cut, too."""
    ids = asker.prompt_ids()
    cut = asker.answer(truncate_prompt_tokens=6, return_token_ids=True)
    assert cut["choices"][0]["prompt_token_ids"] == [ids[0], *ids[-5:]]
    assert cut["usage"]["prompt_tokens"] == 6
    assert asker.text(truncate_prompt_tokens=500) == asker.text(truncate_prompt_tokens=-1) == asker.text()
    long = asker.decoded(ids) * 900
    assert asker.send(prompt=long).status_code == 400
    whole = asker.usage(prompt=long, truncate_prompt_tokens=-1, max_tokens=3)
    context = asker.http.get("/v1/models").json()["data"][0]["max_model_len"]
    assert whole["prompt_tokens"] == context - 3
    for wrong in (0, -2, context + 1):
        assert asker.send(truncate_prompt_tokens=wrong).json()["error"]["param"] == "truncate_prompt_tokens"
    assert asker.send(truncate_prompt_tokens=5, echo=True).json()["error"]["param"] == "truncate_prompt_tokens"


def _truncation_side(asker: Asker) -> None:
    fields = {"truncate_prompt_tokens": 6, "truncation_side": "right", "return_token_ids": True}
    assert asker.answer(**fields)["choices"][0]["prompt_token_ids"] == asker.prompt_ids()[:6]


TOKENS: dict[str, Callable[[Asker], None]] = {
    "skip_special_tokens": _skip_special_tokens,
    "add_special_tokens": _add_special_tokens,
    "include_drafts": _include_drafts,
    "allowed_token_ids": _allowed_token_ids,
    "bad_words": _bad_words,
    "return_token_ids": _return_token_ids,
    "return_tokens_as_token_ids": _return_tokens_as_token_ids,
    "logprob_token_ids": _logprob_token_ids,
    "truncate_prompt_tokens": _truncate_prompt_tokens,
    "truncation_side": _truncation_side,
}
