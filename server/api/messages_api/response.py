"""The writer of messages in Anthropic's form, whole and as events."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

from msgspec import Raw

from server.api.messages_api.objects import (
    AnswerBlock,
    AnswerMessage,
    AnswerTextBlock,
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputDelta,
    MessageDelta,
    MessageEnding,
    MessagesEvent,
    MessageStart,
    MessageStop,
    MessagesUsage,
    Ping,
    SignatureDelta,
    StopReason,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from server.api.responses import usage_of
from server.api.writer import ended_by
from server.formats.parts import AnswerText, Part, Thought, ToolCallStart
from server.generation.choice import ChoiceState, Delta
from server.generation.generation import Generation, WholeChoice
from server.generation.job import Job
from server.generation.sse import named_event
from server.generation.writer import AnswerWriter
from server.http.error_forms import MESSAGES_PATH
from server.http.errors import ApiError


class OpenBlock(ABC):
    """A block whose text still grows."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self._pieces)

    def append(self, text: str) -> BlockDelta:
        """Adds text. Returns what is told of it."""
        self._pieces.append(text)
        return self._delta(text)

    def closing(self) -> list[BlockDelta]:
        """What is told once the text is whole."""
        return []

    @abstractmethod
    def as_block(self) -> AnswerBlock:
        """The block as it stands."""

    @abstractmethod
    def _delta(self, text: str) -> BlockDelta: ...


class OpenText(OpenBlock):
    """Text."""

    def as_block(self) -> AnswerTextBlock:
        """See OpenBlock."""
        return AnswerTextBlock(self.text)

    def _delta(self, text: str) -> TextDelta:
        return TextDelta(text)


class OpenThinking(OpenBlock):
    """Reasoning."""

    def as_block(self) -> ThinkingBlock:
        """See OpenBlock. A block without text has no signature yet."""
        return ThinkingBlock(self.text, self._signature() if self._pieces else "")

    def closing(self) -> list[BlockDelta]:
        """See OpenBlock."""
        return [SignatureDelta(self._signature())]

    def _delta(self, text: str) -> ThinkingDelta:
        return ThinkingDelta(text)

    def _signature(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class OpenToolUse(OpenBlock):
    """A call of a tool."""

    def __init__(self, start: ToolCallStart) -> None:
        super().__init__()
        self._start = start

    def as_block(self) -> ToolUseBlock:
        """See OpenBlock."""
        return ToolUseBlock(self._start.id, self._start.name, Raw(self.text.encode() or b"{}"))

    def _delta(self, text: str) -> InputDelta:
        return InputDelta(text)


class Content:
    """The blocks of one message. At most one, the last, is open."""

    def __init__(self) -> None:
        self.blocks: list[AnswerBlock] = []
        """Those that are closed."""
        self._open: OpenBlock | None = None

    def add(self, parts: list[Part]) -> list[MessagesEvent]:
        """The events about more of the answer."""
        events: list[MessagesEvent] = []
        for part in parts:
            if isinstance(part, ToolCallStart):
                events += self._begin(OpenToolUse(part))
                continue
            if isinstance(part, AnswerText) and not isinstance(self._open, OpenText):
                events += self._begin(OpenText())
            elif isinstance(part, Thought) and not isinstance(self._open, OpenThinking):
                events += self._begin(OpenThinking())
            if self._open is not None and part.text:
                events.append(ContentBlockDelta(len(self.blocks), self._open.append(part.text)))
        return events

    def end(self) -> list[MessagesEvent]:
        """The events that close the last block, if there is one."""
        if self._open is None:
            return []
        index, last = len(self.blocks), self._open
        self.blocks.append(last.as_block())
        self._open = None
        return [*(ContentBlockDelta(index, delta) for delta in last.closing()), ContentBlockStop(index)]

    def _begin(self, block: OpenBlock) -> list[MessagesEvent]:
        events = self.end()
        self._open = block
        return [*events, ContentBlockStart(len(self.blocks), block.as_block())]


class MessageWriter(AnswerWriter):
    """Writes one message."""

    keepalive = named_event("ping", Ping())

    def __init__(self, job: Job, max_tokens: int) -> None:
        """max_tokens: what was asked for; the job's may be what the context leaves."""
        self._job, self._max_tokens = job, max_tokens
        self._content = Content()
        self._begun = False

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> AnswerMessage:
        """See AnswerWriter."""
        [choice] = choices
        self._content.add(choice.parts)
        self._content.end()
        return self._message(generation, self._ending(choice.state))

    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """See AnswerWriter."""
        events: list[MessagesEvent] = []
        if not self._begun:
            self._begun = True
            events += [MessageStart(self._message(generation, MessageEnding(None, None))), Ping()]
        events += self._content.add(delta.parts)
        if delta.finish_reason is not None:
            events += self._content.end()
        return b"".join(map(_encoded, events))

    def ending(self, generation: Generation) -> bytes:
        """See AnswerWriter."""
        usage = MessagesUsage.of(usage_of(generation))
        return _encoded(MessageDelta(self._ending(generation.choices[0]), usage)) + _encoded(MessageStop())

    def failure(self, error: ApiError, request_id: str) -> bytes:
        """See AnswerWriter."""
        return named_event("error", error.body_at(MESSAGES_PATH, request_id))

    # -- inside -------------------------------------------------------------------------------------------------

    def _message(self, generation: Generation, ending: MessageEnding) -> AnswerMessage:
        return AnswerMessage(
            id=self._job.id,
            type="message",
            role="assistant",
            model=self._job.model,
            content=list(self._content.blocks),
            stop_reason=ending.stop_reason,
            stop_sequence=ending.stop_sequence,
            usage=MessagesUsage.of(usage_of(generation)),
        )

    def _ending(self, state: ChoiceState) -> MessageEnding:
        reasons: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        reason = reasons[ended_by(state)]
        if reason == "max_tokens" and self._job.choices[0].request.max_tokens < self._max_tokens:
            reason = "model_context_window_exceeded"
        if reason == "end_turn" and isinstance(state.stop_reason, str):
            return MessageEnding("stop_sequence", state.stop_reason)
        return MessageEnding(reason, None)


def _encoded(event: MessagesEvent) -> bytes:
    return named_event(str(event.__struct_config__.tag), event)
