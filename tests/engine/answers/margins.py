"""How close an engine's decisions were: the excuse, and the only one, for an answer that differs in float32."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from engine.engine import Engine
from engine.request import GREEDY_BELOW
from engine.sampling.chosen import Chosen
from engine.sampling.noise import gumbel_noise
from engine.sequence import Sequence

NEAR_TIE = 1e-4
"""Margins below this may fall either way in float32: in nats between candidates, in probability between confidences."""


class Margins:
    """Records, for every request an engine runs, the margin of each decision that may change its answer.

    Meant for requests without top_k, top_p, min_p and `max_denoising_steps`.
    """

    def __init__(self, engine: Engine) -> None:
        self._records: defaultdict[str, dict[tuple[int, int, int], float]] = defaultdict(dict)
        choose = engine.sampler.choose

        def recording(
            logits: torch.Tensor, seqs: list[Sequence], positions: torch.Tensor | None, *,
            unsettled: torch.Tensor | None = None, cumulative: bool = False, **options: Any,
        ) -> Chosen:  # fmt: skip
            chosen = choose(logits, seqs, positions, unsettled=unsettled, cumulative=cumulative, **options)
            if positions is None:  # plain sequences, each of which chooses its next token
                positions = torch.tensor([[len(seq.token_ids)] for seq in seqs])
            denoising = unsettled is not None and not cumulative
            drafting = unsettled is None and positions.shape[1] > 1
            for i, seq in enumerate(seqs):
                if denoising:
                    self._record_denoising(seq, chosen, i, positions)
                elif not drafting:
                    self._record_causal(seq, chosen, i, positions)
            return chosen

        engine.sampler.choose = recording  # type: ignore[method-assign, assignment]

    def at(self, request_id: str, token: int) -> float:
        """The smallest margin of the decisions that answer token number `token` came from."""
        records = self._records[request_id].items()
        return min(margin for (_, first, last), margin in records if first <= token <= last)

    def _record_causal(self, seq: Sequence, chosen: Chosen, i: int, positions: torch.Tensor) -> None:
        # A later choice at the same place is the one that counts: the earlier one followed a draft that was rejected.
        for position, margin in zip(positions[i].tolist(), _token_margins(seq, chosen, i, positions), strict=True):
            index = position - seq.num_prompt
            self._records[seq.request.request_id][0, index, index] = margin

    def _record_denoising(self, seq: Sequence, chosen: Chosen, i: int, positions: torch.Tensor) -> None:
        # A shared pass refines the block after the open one.
        start = int(positions[i, 0])
        block = next(b for b in (seq.block, seq.next_block) if b is not None and b.start == start)
        log_probabilities = chosen.logits[i].log_softmax(dim=-1)
        confidences = log_probabilities.gather(-1, chosen.token_ids[i][:, None])[:, 0].exp()
        candidates = [j for j, masked in enumerate(block.masked) if masked and not (j == 0 and block.awaits_anchor)]
        token_margins = _token_margins(seq, chosen, i, positions)
        ranked = sorted(((float(confidences[j]), j) for j in candidates), reverse=True)
        threshold = seq.request.decoding.threshold
        assert threshold is not None
        if ranked[0][0] >= threshold:
            closest = min(abs(confidence - threshold) for confidence, _ in ranked)
            settled = [j for confidence, j in ranked if confidence >= threshold]
        else:
            closest = min(threshold - ranked[0][0], ranked[0][0] - ranked[1][0] if len(ranked) > 1 else 1.0)
            settled = [ranked[0][1]]
        margin = min([closest, *(token_margins[j] for j in settled)])
        span = (block.start - seq.num_prompt, block.end - seq.num_prompt - 1)
        self._records[seq.request.request_id][1 + block.steps, *span] = margin


def _token_margins(seq: Sequence, chosen: Chosen, i: int, positions: torch.Tensor) -> list[float]:
    """[r]: by how much the best candidate of each row beat the second."""
    scores = chosen.logits[i]
    sampling = seq.request.sampling
    if sampling.temperature >= GREEDY_BELOW:
        noise = gumbel_noise(torch.tensor([sampling.seed]), positions[i : i + 1], scores.shape[-1])[0]
        scores = scores / sampling.temperature + noise
    best = scores.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).tolist()
