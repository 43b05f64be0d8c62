"""From a valid chat call to a job: the messages through the model's chat template."""

from __future__ import annotations

from server.api.call import Call
from server.api.chat.request import ChatRequest
from server.api.prepare import check_num_choices, make_job, request_template, with_prompt
from server.generation.job import Echo, Job
from server.text.served_model import ServedModel


async def prepare(call: Call[ChatRequest], model: ServedModel, max_choices: int) -> Job:
    """A chat as a job; its answer may take the rest of the context by default. Raises BadRequest."""
    fields = call.fields
    check_num_choices(1, fields.n, max_choices)
    prompt = await model.encode_chat([message.for_template() for message in fields.messages])
    rest = max(1, model.info.max_model_len - len(prompt))
    max_tokens = rest if fields.wanted_max_tokens is None else fields.wanted_max_tokens
    template = request_template(call, model, max_tokens=max_tokens)
    return make_job(call, model, [(with_prompt(template, prompt, call, model), Echo())])
