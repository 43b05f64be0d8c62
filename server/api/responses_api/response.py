"""The writer of responses, whole and as events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from server.api.chat.response import ScoredTokenLogprob
from server.api.chat.tools import plain_json
from server.api.chat.writer import ChatWriter
from server.api.responses import usage_of
from server.api.responses_api.objects import (
    Completed,
    Created,
    Event,
    Incomplete,
    IncompleteDetails,
    InProgress,
    ModelResponse,
    ResponseUsage,
)
from server.api.responses_api.output import Output
from server.api.responses_api.request import ResponsesRequest
from server.api.responses_api.tools import FlatChoiceObject, FlatTool
from server.generation.choice import Delta, ScoredToken
from server.generation.generation import Generation, WholeChoice
from server.generation.job import Job
from server.generation.sse import named_event
from server.generation.writer import AnswerWriter
from server.text.tokenizer import Tokenizer


class ResponseWriter(AnswerWriter):
    """Writes one response."""

    def __init__(
        self, job: Job, tokenizer: Tokenizer, fields: ResponsesRequest, keep: Callable[[ModelResponse], None]
    ) -> None:
        """keep: is given the response once it has ended."""
        self._job, self._fields, self._keep = job, fields, keep
        self._chat = ChatWriter(job, tokenizer)
        self._output = Output()
        self._begun = False

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> ModelResponse:
        """See AnswerWriter."""
        [choice] = choices
        state = choice.state
        self._output.add(choice.parts, self._logprobs(choice.tokens))
        self._output.end(whole=state.finish_reason != "length")
        return self._ended(generation)

    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """See AnswerWriter."""
        events: list[Event] = []
        if not self._begun:
            self._begun = True
            response = self._response("in_progress", None)
            events.append(Created(sequence_number=self._output.next_number(), response=response))
            events.append(InProgress(sequence_number=self._output.next_number(), response=response))
        events += self._output.add(delta.parts, self._logprobs(delta.tokens))
        if delta.finish_reason is not None:
            events += self._output.end(whole=delta.finish_reason != "length")
        return b"".join([_encoded(event) for event in events])

    def ending(self, generation: Generation) -> bytes:
        """See AnswerWriter."""
        response, number = self._ended(generation), self._output.next_number()
        if response.status == "incomplete":
            return _encoded(Incomplete(sequence_number=number, response=response))
        return _encoded(Completed(sequence_number=number, response=response))

    # -- inside -------------------------------------------------------------------------------------------------

    def _logprobs(self, tokens: list[ScoredToken]) -> list[ScoredTokenLogprob] | None:
        told = self._chat.logprobs(0, tokens)
        return None if told is None else told.content

    def _ended(self, generation: Generation) -> ModelResponse:
        cut = generation.choices[0].finish_reason == "length"
        usage = ResponseUsage.of(usage_of(generation))
        response = self._response("incomplete" if cut else "completed", usage)
        self._keep(response)
        return response

    def _response(self, status: Any, usage: ResponseUsage | None) -> ModelResponse:
        job, fields = self._job, self._fields
        effort = None if fields.reasoning is None else fields.reasoning.effort
        return ModelResponse(
            id=job.id,
            object="response",
            created_at=job.created,
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            error=None,
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            instructions=fields.instructions,
            max_output_tokens=fields.max_output_tokens,
            metadata=fields.metadata,
            model=job.model,
            output=list(self._output.items),
            parallel_tool_calls=fields.parallel_tool_calls,
            previous_response_id=fields.previous_response_id,
            reasoning={"effort": effort, "summary": None},
            store=fields.store,
            temperature=fields.temperature,
            text=_text(fields),
            tool_choice=_choice(fields),
            tools=[_tool(tool) for tool in fields.tools],
            top_p=fields.top_p,
            truncation="disabled",
            background=False,
            usage=usage,
        )


def _encoded(event: Event) -> bytes:
    return named_event(str(event.__struct_config__.tag), event)


def _text(fields: ResponsesRequest) -> dict[str, Any]:
    form = None if fields.text is None else fields.text.format
    if form is None:
        return {"format": {"type": "text"}}
    shown: dict[str, Any] = plain_json(form.model_dump(by_alias=True, exclude_none=True))
    return {"format": shown}


def _choice(fields: ResponsesRequest) -> str | dict[str, Any]:
    choice = fields.tool_choice
    if isinstance(choice, FlatChoiceObject):
        return choice.model_dump(exclude_none=True)
    return choice or "auto"


def _tool(tool: FlatTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": None if tool.parameters is None else plain_json(tool.parameters),
        "strict": tool.strict,
    }
