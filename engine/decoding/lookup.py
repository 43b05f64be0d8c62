"""Drafts from texts that are known already: the client's prediction of the answer, and the prompt.

An answer that repeats a text (an edited file, a quotation) is followed through it token by token. Where the answer
leaves the text, the place at which it joins it again is found by its last few tokens. What the text says next is put to
verification, as any draft is, if it promises more tokens a second than the mode's own way (predicted outputs; prompt
lookup decoding). Answers do not depend on any of this.

How often a text foretells the next token is counted for each request whether or not the token was drafted, so that
finding out costs no pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from engine.batch import CAUSAL, Phase, Span
from engine.decoding.width import VERIFY_STEP, WidthController
from engine.sequence import KnownText, Sequence

LENGTHS = (8, 4, 2)
"""Tokens by which a place in a text is found, the most telling first."""
KIND_OF_MATCH = (0, 1, 2, 2, 3, 3, 3, 3, 4)
"""Kinds of places, by how many tokens match before them: none (a guess), 1, 2 or 3, 4 to 7, 8 or more."""
WINDOW = 64
"""Tokens of a prediction in which one token alone is looked for, behind the place where the answer left it."""
PREDICTION_RATES = (0.15, 0.5, 0.8, 0.95, 0.98)
PROMPT_RATES = (0.0, 0.0, 0.3, 0.5, 0.8)
"""By kind, of a request of which nothing is known yet: how often the text foretells the next token."""
PRIOR_TRIES = 2.0
"""Tokens of a request that weigh as much as these rates do."""
MEMORY = 64.0
"""Tokens of a kind beyond which older ones count half."""
WORTH = 1.1
"""A text is followed if it promises so much more than the mode's own way."""


class Continuation(NamedTuple):
    """What a text says next, as far as it is worth a verification."""

    known: KnownText
    length: int
    """Tokens to verify, the anchor included."""
    rate: float
    """Expected tokens a second."""


class TextLookup:
    """Decides when a sequence drafts from a known text, and how much."""

    def __init__(self, controller: WidthController, most: int) -> None:
        """most: tokens of the longest verification, the anchor included."""
        self.controller = controller
        self.follows_prompts = True
        """Whether prompts are followed at all."""
        self._most = most

    def begin(self, seq: Sequence, *, prompt: bool = False) -> None:
        """Prepares a fresh sequence: for its prediction, and for its prompt where that is to be followed, too."""
        prediction = seq.request.prediction_token_ids
        if prediction:
            seq.known_texts.append(KnownText(as_text(prediction), predicted=True, place=0, num_read=seq.num_prompt))
        if prompt and self.follows_prompts:
            seq.known_texts.append(
                KnownText(as_text(seq.request.prompt_token_ids), predicted=False, num_read=seq.num_prompt)
            )

    def span(self, seq: Sequence, num_running: int, own_rate: Callable[[], float]) -> Span | None:
        """The verification of what a known text says next; None where the mode's own way promises more.

        own_rate: tokens a second of the mode's own way.
        """
        seq.repeats, best = None, None
        plain = self.controller.plain_rate(seq, num_running)
        for known in seq.known_texts:
            read_on(known, seq)
            found = self._best_length(known, seq, num_running)
            if found is not None and found.rate > (plain if best is None else best.rate):
                best = found
        if best is None or best.rate < WORTH * own_rate():
            return None
        known, place = best.known, best.known.place
        seq.repeats = known
        drafts = [ord(token) for token in known.text[place:][: best.length - 1]]
        return Span(
            seq, Phase.VERIFY, len(seq.token_ids) - 1, [seq.token_ids[-1], *drafts], CAUSAL, num_logits=best.length
        )

    def _best_length(self, known: KnownText, seq: Sequence, num_running: int) -> Continuation | None:
        """As many tokens of the text as promise most a second."""
        if known.place is None:
            return None
        # Who predicts wants long verifications; others have said how long a block may be.
        most = self._most if known.predicted else min(self._most, seq.request.decoding.block_length)
        longest = min(len(known.text) - known.place + 1, seq.num_remaining, most)
        if longest < 2:
            return None
        expected = expected_tokens(known, longest)
        cost, context = self.controller.costs.lookup, seq.num_cached
        best: Continuation | None = None
        for length in {*range(VERIFY_STEP, longest, VERIFY_STEP), *(n for n in (2, 4) if n < longest), longest}:
            rate = expected[length - 1] / cost(length, num_running, context)
            if best is None or (rate, length) > (best.rate, best.length):
                best = Continuation(known, length, rate)
        return best


def as_text(token_ids: list[int]) -> str:
    """Token ids as characters. Python holds any number below 1,114,112 in a string, more than any vocabulary has."""
    return "".join(map(chr, token_ids))


def expected_tokens(known: KnownText, most: int) -> list[float]:
    """Expected tokens, a bonus token included, of verifying 1, 2, ..., `most` tokens, the first being the anchor."""
    prior = PREDICTION_RATES if known.predicted else PROMPT_RATES
    rates = [
        (PRIOR_TRIES * rate + hits) / (PRIOR_TRIES + tries)
        for rate, hits, tries in zip(prior, known.hits, known.tries, strict=True)
    ]
    survival, total, expected = 1.0, 1.0, [1.0]
    for matched in range(known.matched, known.matched + most - 1):
        survival *= rates[_kind(matched)]
        total += survival
        expected.append(total)
    return expected


def read_on(known: KnownText, seq: Sequence) -> None:
    """Takes in what has settled since the last time: follows the answer through the text, or finds it there again."""
    new = seq.token_ids[known.num_read :]
    if not new and known.num_read > seq.num_prompt:
        return
    known.num_read = len(seq.token_ids)
    for token in new:
        if known.place is None or known.place >= len(known.text):
            known.place, known.matched = None, 0
            break
        _follow(known, token)
    if known.matched < LENGTHS[-1]:
        _find(known, seq)


def _kind(matched: int) -> int:
    return KIND_OF_MATCH[min(matched, len(KIND_OF_MATCH) - 1)]


def _follow(known: KnownText, token: int) -> None:
    """The answer's next token, where the text foretells one."""
    place = known.place
    if place is None:
        raise RuntimeError("a text is followed from a known place")
    hit, kind = ord(known.text[place]) == token, _kind(known.matched)
    known.tries[kind] += 1.0
    known.hits[kind] += hit
    if known.tries[kind] > MEMORY:
        known.tries[kind] /= 2.0
        known.hits[kind] /= 2.0
    if hit:
        known.place, known.matched = place + 1, known.matched + 1
        return
    if known.matched:
        known.near, known.matched = place, 0
    # Of a prediction, one token is most likely to have been replaced by one other.
    known.place = place + 1 if known.predicted else None


def _find(known: KnownText, seq: Sequence) -> None:
    """Finds where the answer's last tokens stand in the text: behind the place where it was left, else anywhere.

    Of a prompt, anywhere is as late as possible: its own end is where the answer begins. Without a find the place stays
    what it was, a guess or none.
    """
    text, tokens = known.text, seq.token_ids
    available = seq.num_generated if known.predicted else len(tokens)
    for length in LENGTHS:
        if length > available or length <= known.matched:
            continue
        wanted = as_text(tokens[-length:])
        at = text.find(wanted, max(0, known.near - length)) if known.near or known.predicted else -1
        if at < 0 or at + length >= len(text):
            at = text.find(wanted) if known.predicted else text.rfind(wanted, 0, len(text) - 1)
        if 0 <= at < len(text) - length:
            known.place, known.matched = at + length, length
            return
    if known.predicted and not known.matched and available:
        at = text.find(chr(tokens[-1]), known.near, known.near + WINDOW)
        if 0 <= at < len(text) - 1:
            known.place, known.matched = at + 1, 1
