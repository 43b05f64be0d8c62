"""The answer of POST /v1/decisions."""

from __future__ import annotations

import math

from server.api.decisions_api.prepare import Decisions, Scoring
from server.api.decisions_api.request import Question
from server.api.decisions_api.scores import END, Tokens, log_likelihoods, log_sum, shares
from server.api.responses import Count, Response
from server.generation.choice import Delta
from server.generation.generation import Generation, WholeChoice
from server.generation.writer import AnswerWriter


class PredicateAnswer(Response, tag_field="type", tag="predicate"):
    """How likely a statement is true."""

    name: str | None
    probability: float
    mass: float
    """The probability that the model gave to yes and no together, before they were made to add up to 1."""


class ChoiceProbability(Response):
    """A possible answer."""

    value: str | bool
    probability: float


class ChoiceAnswer(Response, tag_field="type", tag="choice"):
    """The likeliest of several answers."""

    name: str | None
    choice: str | bool
    confidence: float
    """Its probability."""
    probabilities: list[ChoiceProbability]
    mass: float
    """The probability that the model gave to all of them, before they were made to add up to 1."""


class LevelProbability(Response):
    """A level of a scale."""

    value: Count
    """Its number, from 0."""
    label: str
    probability: float


class ScoreAnswer(Response, tag_field="type", tag="score"):
    """A place on a scale."""

    name: str | None
    score: float
    """The mean of the levels' numbers, by their probabilities."""
    confidence: float
    """The probability of the likeliest level."""
    probabilities: list[LevelProbability]
    mass: float
    """The probability that the model gave to all of them, before they were made to add up to 1."""


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


class DecisionInputDetails(Response):
    """Part of DecisionUsage."""

    cached_tokens: Count
    """Input tokens found in the prefix cache when the request came."""
    cache_write_tokens: Count


class DecisionOutputDetails(Response):
    """Part of DecisionUsage."""

    reasoning_tokens: Count


class DecisionUsage(Response):
    """The tokens of a request. Nothing is generated."""

    input_tokens: Count
    """Of the input and the questions; what the questions' prompts have in common counts once."""
    input_tokens_details: DecisionInputDetails
    output_tokens: Count
    output_tokens_details: DecisionOutputDetails
    total_tokens: Count
    looks: Count
    """Places at which the model's distribution was read."""


class Decision(Response):
    """The answers, in the order of the questions."""

    model: str
    answers: list[Answer]
    scoring: Scoring
    """causal: the likelihood of each answer's tokens, one given those before. masked: the same at masked places, for
    models without a causal head."""
    usage: DecisionUsage


class DecisionWriter(AnswerWriter):
    """Makes answers of what was found at every place."""

    def __init__(self, decisions: Decisions, end_token_ids: tuple[int, ...]) -> None:
        """end_token_ids: the tokens that END stands for."""
        self._decisions, self._ends = decisions, end_token_ids

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> Decision:
        """See AnswerWriter."""
        asked = self._decisions
        found: list[dict[Tokens, dict[int, float]]] = [{} for _ in asked.paths]
        for look, choice in zip(asked.looks, choices, strict=True):
            told = dict(choice.tokens[0].scores.top)
            if END in look.wanted:
                told[END] = log_sum(told[token] for token in self._ends)
            found[look.question][look.path] = told
        answers = [
            answer_of(question, log_likelihoods(paths, scores))
            for question, paths, scores in zip(asked.fields.questions, asked.paths, found, strict=True)
        ]
        cached = choices[0].state.stats.cached_tokens
        usage = DecisionUsage(
            input_tokens=asked.prompt_tokens,
            input_tokens_details=DecisionInputDetails(cached, 0),
            output_tokens=0,
            output_tokens_details=DecisionOutputDetails(0),
            total_tokens=asked.prompt_tokens,
            looks=len(choices),
        )
        return Decision(asked.job.model, answers, asked.scoring, usage)

    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """See AnswerWriter. Decisions are not streamed."""
        raise NotImplementedError

    def ending(self, generation: Generation) -> bytes:
        """See AnswerWriter. Decisions are not streamed."""
        raise NotImplementedError


def answer_of(question: Question, likelihoods: list[float]) -> Answer:
    """The answer to a question. likelihoods: natural-log probabilities of its answers, in their order."""
    probabilities, mass = shares(likelihoods), min(math.exp(log_sum(likelihoods)), 1.0)
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    if question.choices is not None:
        values = [choice.value for choice in question.choices]
        told = [ChoiceProbability(value, part) for value, part in zip(values, probabilities, strict=True)]
        return ChoiceAnswer(question.name, values[best], probabilities[best], told, mass)
    if question.levels is not None:
        score = sum(number * part for number, part in enumerate(probabilities))
        levels = [
            LevelProbability(number, level.label, part)
            for number, (level, part) in enumerate(zip(question.levels, probabilities, strict=True))
        ]
        return ScoreAnswer(question.name, score, probabilities[best], levels, mass)
    return PredicateAnswer(question.name, probabilities[0], mass)
