"""POST /v1/edit/completions: the next edit of a piece of code, in Mercury's form.

The one message holds what the editor knows, between tags: snippets that were viewed lately, the file with the region to
edit and the cursor, and the edits so far. The answer is the region as it should become, in a fence of three backticks.
To the model it is a chat whose system message says so, and whose answer a grammar holds to the fence.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.messages import Message
from server.api.chat.request import ChatRequest
from server.api.chat.tools import Tools
from server.api.fields import invalid, not_here
from server.api.requests import parse_generation
from server.api.structured_outputs import StructuredOutputs
from server.generation.job import EndpointName

OPENING, CLOSING = "<|code_to_edit|>", "<|/code_to_edit|>"
FENCED = r"```[a-z0-9+#-]{0,16}\n(?s:.*)\n```"
"""The form of an answer."""
INSTRUCTION = f"""\
You edit code as its author would go on. The user's message shows, between tags, code that was viewed lately, the file \
that is open, and the latest edits as diffs, the newest last. In the file, {OPENING} and {CLOSING} stand around the \
region that you may change, and <|cursor|> is where the author is. Answer with that region as it should become after \
the next edit, whole and without any tag, in a block of three backticks, and nothing else."""


class EditRequest(ChatRequest):
    """POST /v1/edit/completions"""

    endpoint: ClassVar[EndpointName] = "edit"
    id_prefix: ClassVar[str] = "edit-"

    tools: Annotated[Tools, Field(max_length=0)] = Field(default=[])
    """An edit calls no tools."""
    continue_final_message: Literal[False] = False
    """The message is the user's."""
    response_format: Annotated[None, *not_here("its answers are code in a fence")] = None
    """The answer is code in a fence."""
    structured_outputs: Annotated[None, *not_here("its answers are code in a fence")] = None
    """The answer is code in a fence."""

    @model_validator(mode="after")
    def _check_edit(self) -> Self:
        if len(self.messages) != 1 or self.messages[0].role != "user":
            raise invalid("'messages' must hold one message of role 'user' and no other")
        text = _text(self.messages[0])
        before, _, rest = text.partition(OPENING)
        if text.count(OPENING) != 1 or rest.count(CLOSING) != 1 or CLOSING in before:
            raise invalid(f"'messages' must show the region to edit between one {OPENING} and one {CLOSING} after it")
        return self


class EditChat(ChatRequest):
    """The chat that an edit is the answer of."""

    endpoint: ClassVar[EndpointName] = "edit"
    id_prefix: ClassVar[str] = "edit-"


def parse_edit(data: Any) -> ChatRequest:
    """The chat that the JSON value of a request for an edit asks for. Raises BadRequest."""
    fields = parse_generation(EditRequest, data)
    values: dict[str, Any] = {name: getattr(fields, name) for name in fields.model_fields_set}
    values["messages"] = [Message(role="system", content=INSTRUCTION), *fields.messages]
    values["structured_outputs"] = StructuredOutputs(regex=FENCED)
    # Every value has been checked already, as a field of the request.
    return EditChat.model_construct(_fields_set=set(values), **values)


def _text(message: Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join([part.shown for part in content or ()])
