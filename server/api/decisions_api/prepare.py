"""From a request for decisions to a job: one engine request for each place that has to be looked at."""

from __future__ import annotations

import secrets
import time
from typing import Literal, NamedTuple

from engine.errors import RequestError
from engine.request import CONFIDENT, WHOLE_ANSWER, DecodingParams, Remasking, Request, SamplingParams
from engine.validate import check_request
from server.api.decisions_api.prompts import Prompts
from server.api.decisions_api.questions import asked
from server.api.decisions_api.request import DecisionsRequest
from server.api.decisions_api.scores import END, Look, Tokens, looks_of, paths_of
from server.api.responses_api.items import to_messages
from server.generation.job import Choice, Job
from server.http.errors import BadRequest
from server.text.served_model import ServedModel

MAX_LOOKS = 8192
"""Most engine requests that one request may become."""
ANY_CONFIDENCE = 1e-9
"""A threshold that every position of a block reaches, so that one step tells of all."""

Scoring = Literal["causal", "masked"]
"""How answers are scored: token by token behind the prompt, or at the masked places of the answer."""


class Decisions(NamedTuple):
    """What is to be decided, ready to run."""

    fields: DecisionsRequest
    job: Job
    looks: list[Look]
    """One for each of the job's choices."""
    paths: list[list[Tokens]]
    """By question: the tokens of its answers, as they are scored."""
    scoring: Scoring
    prompt_tokens: int
    """Of all questions; what their prompts have in common counts once."""


async def prepare(fields: DecisionsRequest, model: ServedModel) -> Decisions:
    """A request as a job. Raises BadRequest or NotFound."""
    model.check_name(fields.model)
    questions = [asked(question) for question in fields.questions]
    paths = [_paths(number, question.answers, model) for number, question in enumerate(questions)]
    looks = [look for number, own in enumerate(paths) for look in looks_of(number, own)]
    if len(looks) > MAX_LOOKS:
        text = f"The answers to 'questions' have {len(looks)} different beginnings; at most {MAX_LOOKS} are allowed."
        raise BadRequest(text, "questions", "invalid_value")
    try:
        prompts = await Prompts(to_messages(fields.input), model).make([question.text for question in questions])
    except BadRequest as error:
        raise BadRequest(error.message.replace("messages", "input"), "input", error.code) from None
    scoring: Scoring = "causal" if "ar" in model.info.decodings else "masked"
    looks, stages = _in_stages(looks, reuses=not model.info.sees_whole_text)
    requests = _requests(fields, looks, prompts, model, scoring)
    job = Job(
        id=f"dec_{secrets.token_hex(12)}",
        endpoint="decisions",
        model=fields.model or model.name,
        created=int(time.time()),
        choices=tuple([Choice(request, look.question) for request, look in zip(requests, looks, strict=True)]),
        stops=(),
        include_stop=False,
        end_token_ids=frozenset(),
        told_token_ids=frozenset(),
        grammar=None,
        seed=0,
        decoding="ar" if scoring == "causal" else "diffusion",
        logprobs=0,
        stream=None,
        stages=stages,
    )
    return Decisions(fields, job, looks, paths, scoring, _prompt_tokens(prompts))


def _paths(number: int, answers: tuple[str, ...], model: ServedModel) -> list[Tokens]:
    encoded = [tuple(model.tokenizer.encode_text(answer)) for answer in answers]
    if not all(encoded) or len(set(encoded)) < len(encoded):
        text = f"'questions[{number}]' has answers that the model's tokenizer cannot tell apart."
        raise BadRequest(text, f"questions[{number}]", "invalid_value")
    return paths_of(encoded)


def _in_stages(looks: list[Look], *, reuses: bool) -> tuple[list[Look], tuple[int, ...]]:
    """The looks in the order in which they run, and how many run together.

    reuses: what prompts have in common is computed once if it is there before: the input by the first question alone,
    then each question by its first place, then the places behind.
    """
    first = [look for look in looks if not look.path]
    behind = [look for look in looks if look.path]
    stages = [first[:1], first[1:], behind] if reuses else [first + behind]
    return [look for stage in stages for look in stage], tuple([len(stage) for stage in stages if stage])


def _requests(
    fields: DecisionsRequest, looks: list[Look], prompts: list[list[int]], model: ServedModel, scoring: Scoring
) -> list[Request]:
    name, requests = secrets.token_hex(12), []
    decoding = _decoding(model, scoring)
    for number, look in enumerate(looks):
        request = Request(
            request_id=f"dec_{name}-{number}",
            prompt_token_ids=[*prompts[look.question], *look.path],
            max_tokens=1 if scoring == "causal" else look.room,
            sampling=SamplingParams(temperature=0.0, logprobs=0, logprob_token_ids=_listed(look, model)),
            decoding=decoding,
            passes_ends=True,
            priority=fields.priority,
            cache_salt=fields.cache_salt,
        )
        try:
            check_request(request, model.info)
        except RequestError as error:
            text = f"'questions[{look.question}]' cannot be answered: {error}"
            raise BadRequest(text.replace("prompt", "input"), "input", error.code) from None
        requests.append(request)
    return requests


def _listed(look: Look, model: ServedModel) -> Tokens:
    tokens = [token for token in look.wanted if token != END]
    return tuple(dict.fromkeys([*tokens, *(model.info.end_token_ids if END in look.wanted else ())]))


def _decoding(model: ServedModel, scoring: Scoring) -> DecodingParams:
    """Causal: the next token. Masked: one step that unmasks the whole answer, whose places it tells of."""
    info = model.info
    remasking: Remasking = next((order for order in CONFIDENT if order in info.remaskings), "low_confidence")
    length = WHOLE_ANSWER if info.sees_whole_text else info.block_length
    if scoring == "causal":
        return DecodingParams(mode="ar", block_length=length, threshold=None, remasking=remasking)
    return DecodingParams(mode="diffusion", block_length=length, threshold=ANY_CONFIDENCE, remasking=remasking)


def _prompt_tokens(prompts: list[list[int]]) -> int:
    if len(prompts) == 1:
        return len(prompts[0])
    least, most = min(prompts), max(prompts)  # what these have in common, all have
    common = next((at for at, token in enumerate(least) if at == len(most) or token != most[at]), len(least))
    return common + sum(len(prompt) - common for prompt in prompts)
