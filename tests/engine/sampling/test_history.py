"""Token histories. If one fails, penalties punish tokens of other requests, or forget what was said."""

from __future__ import annotations

import torch

from engine.request import Request
from engine.sampling.history import TokenHistory
from engine.sequence import Sequence

VOCAB = 12
CPU = torch.device("cpu")


def running(prompt: list[int], row: int, answer: tuple[int, ...] = ()) -> Sequence:
    """A sequence in a page-table row, part of its answer settled."""
    request = Request(request_id=f"{prompt}", prompt_token_ids=prompt, max_tokens=50)
    return Sequence(request, frozenset(), 0, token_ids=[*prompt, *answer], row=row)


def check(history: TokenHistory, seqs: list[Sequence]) -> None:
    """Counts of the answer and presence in the prompt, counted naively."""
    counts, prompt = history.counts(seqs)
    assert counts.shape == prompt.shape == (len(seqs), VOCAB)
    for i, seq in enumerate(seqs):
        answer = seq.token_ids[seq.num_prompt :]
        assert counts[i].tolist() == [answer.count(token) for token in range(VOCAB)]
        assert prompt[i].tolist() == [token in seq.request.prompt_token_ids for token in range(VOCAB)]


def test_counts_grow_with_the_answer() -> None:
    """Token by token, several at once, repeats included, and nothing twice however often it is asked for."""
    history, seq = TokenHistory(4, VOCAB, CPU), running([1, 2, 2], row=2)
    check(history, [seq])
    for new in ([5], [5, 5, 7], [], [1]):
        seq.token_ids += new
        check(history, [seq])
        check(history, [seq])


def test_sequences_do_not_see_each_other() -> None:
    """In any order, and when some of them sit a step out."""
    history = TokenHistory(4, VOCAB, CPU)
    seqs = [running([i, i + 1], row=3 - i, answer=(i,) * i) for i in range(4)]
    check(history, seqs)
    for seq in seqs:
        seq.token_ids += [8, seq.row]
    check(history, seqs[2:])
    check(history, seqs[::-1])
    check(history, [seqs[1]])


def test_a_row_starts_over_with_a_new_sequence() -> None:
    history = TokenHistory(1, VOCAB, CPU)
    check(history, [running([1, 2], row=0, answer=(3, 3, 4))])
    check(history, [running([5], row=0)])
    check(history, [running([6], row=0, answer=(7,))])


def test_a_preempted_sequence_keeps_its_history_in_another_row() -> None:
    """It comes back elsewhere, its old row meanwhile another's, and later in its first row again."""
    history = TokenHistory(2, VOCAB, CPU)
    seq = running([1, 2], row=0, answer=(3, 4))
    check(history, [seq])
    seq.token_ids.append(4)
    seq.row = 1
    other = running([9], row=0, answer=(9,))
    check(history, [seq, other])
    seq.row, other.row = 0, 1
    seq.token_ids.append(11)
    check(history, [other, seq])


def test_returned_counts_are_the_callers_own() -> None:
    """A policy that adds drafts to them must not write them into the history."""
    history, seq = TokenHistory(1, VOCAB, CPU), running([1], row=0, answer=(2,))
    counts, prompt = history.counts([seq])
    counts += 5
    prompt[:] = True
    check(history, [seq])
