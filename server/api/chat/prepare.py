"""From a valid chat call to a job: the messages through the model's chat template."""

from __future__ import annotations

from server.api.call import Call
from server.api.chat.request import ChatRequest
from server.api.prepare import Limits, check_num_choices, fit_max_tokens, make_job, request_template, with_prompt
from server.generation.job import Echo, Job
from server.text.served_model import ServedModel


async def prepare(call: Call[ChatRequest], model: ServedModel, limits: Limits) -> Job:
    """A chat as a job; its answer may take the rest of the context by default. Raises BadRequest."""
    fields = call.fields
    check_num_choices(1, fields.n, limits.max_choices)
    prompt = await model.encode_chat([message.for_template() for message in fields.messages])
    context, clip = model.info.max_model_len, limits.clip_max_tokens
    template = request_template(call, model)
    max_tokens = fit_max_tokens(
        fields.wanted_max_tokens, context, len(prompt), model, clip=clip, block_length=template.decoding.block_length
    )
    request = with_prompt(template, prompt, max_tokens, call, model)
    return make_job(call, model, [(request, Echo())])
