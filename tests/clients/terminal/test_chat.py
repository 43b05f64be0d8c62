"""`lightcone chat`: a conversation as people have it, in a terminal or from a script."""

from __future__ import annotations

import io
import sys

import httpx
import pytest

from server.terminal.chat import main
from server.terminal.conversation import COMMANDS, CommandError, Conversation, carry_out
from tests.clients.conftest import KEY, QUESTION, TALE
from tests.clients.terminal.terminals import plain, terminal
from tests.http_helpers import ask


def reply(http: httpx.Client, *said: str, **body: object) -> str:
    """What the API answers to a conversation: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(said)]
    answer = ask(http, {"messages": messages, "temperature": 0, **body}).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def talk(url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *lines: str) -> tuple[str, str]:
    """What a script that sends these lines reads on standard output and standard error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["--url", url, "--api-key", KEY, "--temperature", "0"]) == 0
    captured = capfd.readouterr()
    return captured.out, captured.err


def test_the_conversation_goes_on(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second answer is to the whole conversation, and a script reads the answers alone."""
    first = reply(http, QUESTION)
    second = reply(http, QUESTION, first, TALE)
    assert talk(url, monkeypatch, capfd, QUESTION, TALE) == (f"{first}\n{second}\n", "")


def test_commands_change_what_follows(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, err = talk(
        url, monkeypatch, capfd, "/mode diffusion", "/max-tokens 6", QUESTION, "/new", "/mode default", TALE, "/undo",
        "/max-tokens", TALE,
    )  # fmt: skip
    short = reply(http, QUESTION, decoding="diffusion", max_tokens=6)
    assert f"\n{short}\n" in out
    assert f"\n{reply(http, TALE, max_tokens=6)}\n" in out
    assert out.endswith(f"\n{reply(http, TALE)}\n"), "the message that was taken back is still there"
    assert err == ""


def test_messages_of_several_lines(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = reply(http, "Turn this list into JSON:\n\n25 apples.")
    quoted, _ = talk(url, monkeypatch, capfd, '"""', "Turn this list into JSON:", "", '25 apples."""')
    continued, _ = talk(url, monkeypatch, capfd, "Turn this list into JSON:\\", "\\", "25 apples.")
    assert quoted == continued == f"{expected}\n"


def test_what_goes_wrong_is_one_line_and_the_conversation_goes_on(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 3000
    out, err = talk(url, monkeypatch, capfd, long, "/temprature 1", QUESTION)
    assert out == f"{reply(http, QUESTION)}\n", "the message that failed is still in the conversation"
    told = err.strip().splitlines()
    assert len(told) == 2
    assert "context" in told[0]
    assert "no command /temprature; there are /mode, /temperature" in told[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/mode fast", "auto, ar, speculative, diffusion or default"),
        ("/temperature 3", "a number from 0 to 2"),
        ("/temperature nan", "a number from 0 to 2"),
        ("/max-tokens 0", "a whole number from 1"),
        ("/max-tokens 1.5", "a whole number"),
        ("/seed x", "a whole number"),
        ("/watch maybe", "on or off"),
        ("/retry", "nothing has been said yet"),
        ("/undo", "nothing has been said yet"),
        ("/", "no command /"),
    ],
)
def test_a_command_that_cannot_be_carried_out_changes_nothing(line: str, message: str) -> None:
    conversation = Conversation()
    before = repr(conversation)
    with pytest.raises(CommandError, match=message):
        carry_out(conversation, line)
    assert repr(conversation) == before


def test_help_names_every_command() -> None:
    said = carry_out(Conversation(), "/help").said
    for name in COMMANDS:
        assert f"/{name}" in said


def test_a_system_message_stands_before_all_others_until_it_is_emptied() -> None:
    conversation = Conversation()
    conversation.add("Hello", "Hi")
    carry_out(conversation, "/system Be brief.")
    messages = conversation.prompt("Bye").body(drafts=False)["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye"),
    ]  # fmt: skip
    carry_out(conversation, "/system")
    assert conversation.prompt("Bye").history == tuple(conversation.messages)


def test_an_interrupt_stops_the_answer_and_not_the_program(url: str, http: httpx.Client) -> None:
    """And what was typed is dropped by another one, as in a shell; only the end of the input ends the program."""
    options = ("--temperature", "0", "--decoding", "ar", "--delay", "0.3")
    with terminal(url, *options, command="chat") as running:
        running.read(until="> ")
        running.type(f"{TALE}\n")
        running.read(until="2 tokens")
        running.interrupt()
        running.read(until="(stopped)")
        running.read(until="> ")
        running.type("half a message")
        running.read(until="half a message")
        running.interrupt_reading(until="\n> ")
        running.type("/watch off\n")
        running.read(until="settle")
        running.type("/retry\n")
        text = " ".join(reply(http, TALE, decoding="ar").split())
        running.read(until=text[-12:])
        assert text in " ".join(plain(running.output).replace("\r", "").split())
        running.read(until="> ")
        running.end_input()
        assert running.close() == 0


def test_answers_resolve_in_place_on_a_terminal(url: str) -> None:
    with terminal(url, "--temperature", "0", "--decoding", "diffusion", command="chat") as running:
        running.read(until="> ")
        running.type(f"{TALE}\n")
        running.read(until="tokens per pass")
        assert "\u2592" in running.output, "no masks were shown"
        running.type("/quit\n")
        running.read()
        assert running.close() == 0
