"""The built-in model as a user meets it. If one fails, a fresh checkout answers nonsense or does not start."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from engine.models.files import model_directory
from engine.models.loader import LoadedModel, load_model
from tests.reference.dense_attention import DenseAttention, dense_batch
from tools.builtin_model.export import CHAT_TEMPLATE

BUILTIN = model_directory("builtin")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def builtin() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(BUILTIN, device=CPU)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))


def render(messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    settings = json.loads((BUILTIN / "tokenizer_config.json").read_text())
    template = ImmutableSandboxedEnvironment().from_string(settings["chat_template"])
    return template.render(
        messages=messages, add_generation_prompt=add_generation_prompt, raise_exception=raise_exception
    )


@torch.inference_mode()
def answer(model: LoadedModel, tokenizer: Tokenizer, question: str) -> str:
    """A naive greedy loop over the template's own prompt."""
    fresh = tokenizer.encode(render([{"role": "user", "content": question}]), add_special_tokens=False).ids
    attention = DenseAttention(model.config.num_layers, 128)
    start = 0
    text: list[int] = []
    while len(text) < 80:
        batch = dense_batch([(0, start, fresh, None)])
        attention.prepare(batch)
        logits = model.decoder.logits(model.decoder.forward(batch, attention)[-1:])
        token = int(logits.argmax())
        if token in model.spec.end_token_ids:
            break
        start, fresh = start + len(fresh), [token]
        text.append(token)
    decoded: str = tokenizer.decode(text)
    return decoded


def test_it_can_add(builtin: LoadedModel, tokenizer: Tokenizer) -> None:
    """The first question of the README: the demonstration would answer nonsense."""
    assert answer(builtin, tokenizer, "Add 87 and 25.").endswith("The answer is 112.")


def test_its_template_writes_the_format_it_was_trained_on(tokenizer: Tokenizer) -> None:
    """One bos, special tokens as single ids, a trailing assistant token: chats would be out of distribution."""
    text = render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Add 1 and 2."},
        ]
    )
    assert text == "<|bos|><|system|>Be brief.<|user|>Hi.<|assistant|>Hello.<|eos|><|user|>Add 1 and 2.<|assistant|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert (ids[0], ids[1], ids[-1], ids.count(1), ids.count(2)) == (1, 3, 6, 1, 1)
    assert render([{"role": "user", "content": "Hi."}], add_generation_prompt=False) == "<|bos|><|user|>Hi."


def test_its_template_refuses_what_it_cannot_write() -> None:
    """An unknown role would vanish from the prompt in silence."""
    with pytest.raises(ValueError, match="not critic"):
        render([{"role": "critic", "content": "x"}])


def test_its_template_takes_system_messages_anywhere() -> None:
    """Agents send several. The model was trained on one, in front."""
    first, second = {"role": "system", "content": "a"}, {"role": "system", "content": "b"}
    question = {"role": "user", "content": "x"}
    assert render([question, first]) == render([first, question])
    assert (
        render([first, question, second])
        == render([first, second, question])
        == ("<|bos|><|system|>a\nb<|user|>x<|assistant|>")
    )


def test_its_template_is_that_of_the_recipe() -> None:
    """A new export would change how chats are read."""
    settings = json.loads((BUILTIN / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == CHAT_TEMPLATE


def test_every_id_has_text(builtin: LoadedModel, tokenizer: Tokenizer) -> None:
    """An id beyond the tokenizer's could be generated and would have no text."""
    assert builtin.config.vocab_size == tokenizer.get_vocab_size()
    spec = builtin.spec
    names = [tokenizer.id_to_token(token) for token in (0, 1, spec.mask_token_id, *spec.end_token_ids)]
    assert names == ["<|pad|>", "<|bos|>", "<|mask|>", "<|eos|>"]
    assert spec.banned_token_ids == (5, 0)


def test_it_is_small_and_in_the_published_layout(builtin: LoadedModel) -> None:
    """A checkout would grow, or the built-in model would be a special case of the loader."""
    assert sum(path.stat().st_size for path in BUILTIN.iterdir() if path.is_file()) < 10_000_000
    assert not builtin.config.tied_head
    assert (builtin.config.max_positions, builtin.spec.block_length) == (1024, 32)
