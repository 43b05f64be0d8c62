"""Chat templates: the template's control tokens count, a user's never do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelLoadError
from server.http.errors import BadRequest
from server.text.chat_template import Chat, ChatTemplate
from server.text.served_model import ServedModel
from server.text.tokenizer import Tokenizer, TokenizerFiles
from tests.fakes import BUILTIN, INFO, builtin_tokenizer

pytestmark = pytest.mark.anyio

TOKENIZER = builtin_tokenizer()
CHAT = ChatTemplate(TOKENIZER)
CONTROL_IDS = set(range(8))
CONTROL = list(TOKENIZER.control_tokens)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(Tokenizer(TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, {}, source), INFO))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_chat_is_encoded_as_the_model_was_trained() -> None:
    ids = CHAT.encode(
        [{"role": "system", "content": "S"}, *user("Q"), {"role": "assistant", "content": "A"}, *user("R")]
    )
    text = "<|bos|><|system|>S<|user|>Q<|assistant|>A<|eos|><|user|>R<|assistant|>"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert [token for token in ids if token in CONTROL_IDS] == [1, 3, 4, 6, 2, 4, 6]


@given(
    st.lists(st.sampled_from([*CONTROL, "<|", "|>", "<|e", "os|>", "<", ">", " ", "x", "|"]), max_size=8).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_no_content_ever_adds_a_control_token(content: str) -> None:
    """Otherwise a user could write the assistant's part, the system's, or a mask."""
    ids = CHAT.encode(user(content))
    assert [token for token in ids if token in CONTROL_IDS] == [1, 4, 6]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == f"<|bos|><|user|>{content}<|assistant|>"


def test_two_contents_cannot_spell_a_control_token_together() -> None:
    joined = template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    ids = joined.encode([*user("a<|e"), *user("os|>b")])
    assert joined._tokenizer.decode(ids) == "a<|eos|>b"
    assert 2 not in ids


def test_content_that_spells_nothing_reaches_the_template_untouched() -> None:
    """Templates look into content; a changed content would change what they render."""
    looking = template("{{ messages[0]['content'] | trim }}|{{ messages[0]['content'] | length }}")
    ids = looking.encode(user("  hi "))
    assert looking._tokenizer.decode(ids) == "hi|5"


def test_a_templates_refusal_is_the_clients_error() -> None:
    with pytest.raises(BadRequest, match="Roles are system, user, assistant and tool, not critic"):
        CHAT.encode([*user("Q"), {"role": "critic", "content": "S"}])


def test_a_chat_has_no_bos_but_the_templates() -> None:
    """The template decides: a model trained on chats without BOS answers worse with one."""
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for source, count in ((plain, 0), ("{{ bos_token }}" + plain, 1), ("<|bos|><|bos|>" + plain, 2)):
        config = {"add_bos_token": True, "bos_token": "<|bos|>"}
        chat = ChatTemplate(Tokenizer(TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, config, source), INFO))
        assert chat.encode(user("x")).count(1) == count


def test_a_token_that_the_configuration_leaves_out_is_not_the_templates() -> None:
    """The reference renders nothing for it."""
    source = "{{ bos_token }}{{ messages[0]['content'] }}"
    config = {"bos_token": None, "eos_token": "<|eos|>"}
    chat = ChatTemplate(Tokenizer(TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, config, source), INFO))
    assert 1 not in chat.encode(user("x"))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_built_in_model_reads_all_system_messages_in_front(place: int) -> None:
    """Agents send several, anywhere; in training there was one, in front."""
    turns = [*user("Q"), {"role": "assistant", "content": "A"}, *user("R")]
    messages = [{"role": "system", "content": "S"}, *turns]
    messages.insert(1 + place, {"role": "system", "content": "T"})
    text = TOKENIZER.decode(CHAT.encode(messages), skip_special_tokens=False)
    assert text == "<|bos|><|system|>S\nT<|user|>Q<|assistant|>A<|eos|><|user|>R<|assistant|>"


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].nothing.more }}"]
)
def test_a_template_cannot_leave_its_sandbox_or_crash_the_server(source: str) -> None:
    with pytest.raises(BadRequest, match="cannot render"):
        template(source).encode(user("x"))


def test_a_template_that_does_not_compile_is_one_clear_error() -> None:
    with pytest.raises(ModelLoadError, match="does not compile"):
        template("{% if %}")


@pytest.mark.parametrize(
    "source", ["{% if %}", "{% nonsense %}x{% endnonsense %}", "{{ x | nosuchfilter }}", "{{" * 5000]
)
async def test_a_template_that_does_not_compile_costs_chats_alone(source: str) -> None:
    """The model would else not start, though completions need no template."""
    tokenizer = Tokenizer(TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, {}, source), INFO)
    model = ServedModel("m", INFO, tokenizer)
    assert await model.encode_prompts(["hello"])
    with pytest.raises(BadRequest, match=r"cannot chat, since .* does not compile.*: use /v1/completions"):
        await model.encode_chat(user("x"))


def test_json_in_templates_is_json_not_html() -> None:
    shown = template("{{ messages[0]['content'] | tojson }}")
    assert shown._tokenizer.decode(shown.encode(user("<é>"))) == '"<é>"'


@given(st.sampled_from(["It is", "It is ", "  <|e", "<|eos|>", "x|>"]))
def test_a_continued_message_ends_where_its_text_does(content: str) -> None:
    """The model would begin a new turn, or lose a space at the end; and nothing may become a control token."""
    for parts in (content, [{"type": "text", "text": content}]):
        chat = Chat([*user("Q"), {"role": "assistant", "content": parts}], ending="continued")
        ids = CHAT.prompt(chat).token_ids
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == f"<|bos|><|user|>Q<|assistant|>{content}"
        assert [token for token in ids if token in CONTROL_IDS] == [1, 4, 6]


def test_a_closed_chat_opens_no_turn() -> None:
    ids = CHAT.prompt(Chat(user("Q"), ending="closed")).token_ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<|bos|><|user|>Q"


def test_what_cannot_be_continued_is_the_clients_error() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    with pytest.raises(BadRequest, match="no text that could be continued"):
        CHAT.prompt(Chat([*user("Q"), {"role": "assistant", "tool_calls": calls}], ending="continued"))
    silent = template("{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(BadRequest, match="leaves out the last"):
        silent.prompt(Chat([*user("Q"), *user("R")], ending="continued"))
