"""From a valid chat call to a job: the messages through the model's chat template."""

from __future__ import annotations

import dataclasses
from typing import Any

from server.api.call import Call
from server.api.chat.answer_form import answer_form
from server.api.chat.request import ChatRequest, ending_of
from server.api.parameters.prediction import encode_prediction
from server.api.prepare import (
    Limits,
    check_num_choices,
    fit_max_tokens,
    make_job,
    request_template,
    truncated,
    with_prompt,
)
from server.generation.job import Echo, Job
from server.http.errors import BadRequest
from server.text.chat_template import Chat, ChatPrompt
from server.text.served_model import ServedModel

_SWITCHES = ("enable_thinking", "thinking")
"""Names by which templates read whether to think."""


async def prepare(call: Call[ChatRequest], model: ServedModel, limits: Limits) -> Job:
    """A chat as a job; its answer may take the rest of the context by default. Raises BadRequest."""
    fields = call.fields
    check_num_choices(1, fields.n, limits.max_choices)
    prompt = await prompt_of(fields, model)
    form = answer_form(call, model, prompt)
    call = dataclasses.replace(call, grammar=form.grammar)
    context, clip = model.info.max_model_len, limits.clip_max_tokens
    prediction = await encode_prediction(fields.predicted_text, model)
    template = request_template(call, model, prompt_logprobs=fields.prompt_logprobs, prediction=prediction)
    max_tokens = fit_max_tokens(
        fields.wanted_max_tokens,
        context,
        len(prompt.token_ids),
        model,
        clip=clip,
        block_length=template.decoding.block_length,
    )
    request = with_prompt(template, prompt.token_ids, max_tokens, call, model)
    job = make_job(call, model, [(request, Echo())])
    return dataclasses.replace(job, reading=form.reading, continues_message=fields.continue_final_message)


async def prompt_of(fields: ChatRequest, model: ServedModel) -> ChatPrompt:
    """The prompt of a chat. Raises BadRequest."""
    tools = [tool.for_template() for tool in fields.tools] if fields.offers_tools else []
    messages = [message.for_template() for message in fields.messages]
    ending = ending_of(fields.continue_final_message, fields.add_generation_prompt)
    chat = Chat(messages, tools, template_variables(fields, model), ending)
    prompt = await model.chat_prompt(chat, bounded=not fields.truncates)
    if fields.add_special_tokens:
        prompt = prompt._replace(token_ids=model.tokenizer.with_bos(prompt.token_ids))
    return prompt._replace(token_ids=truncated(prompt.token_ids, fields, fields.wanted_max_tokens, model))


def thinking_switches(model: ServedModel, *, thinks: bool) -> dict[str, Any]:
    """The values by which the model's chat template is told whether to think, where it can be."""
    read = frozenset() if model.chat is None else model.chat.variables
    return {name: thinks for name in _SWITCHES if name in read}


def template_variables(fields: ChatRequest, model: ServedModel) -> dict[str, Any]:
    """The values that a request gives to the chat template. Raises BadRequest for one that the template does not read.

    Not to think is no wish that a model without thoughts could fail.
    """
    read = frozenset() if model.chat is None else model.chat.variables
    variables: dict[str, Any] = {}
    effort = fields.reasoning_effort
    if effort is not None and "reasoning_effort" in read:
        variables["reasoning_effort"] = effort
    elif effort is not None:
        variables = thinking_switches(model, thinks=effort != "none")
    if fields.verbosity is not None and "verbosity" in read:
        variables["verbosity"] = fields.verbosity
    for name, value in fields.chat_template_kwargs.items():
        if name in read:
            variables[name] = value
        elif value is not None and not (name in _SWITCHES and value is False):
            known = f"it reads: {', '.join(sorted(read))}" if read else "it reads none"
            raise BadRequest(
                f"The model's chat template does not read '{name[:64]}'; {known}.",
                f"chat_template_kwargs.{name[:64]}",
                "unsupported_parameter",
            )
    return variables
