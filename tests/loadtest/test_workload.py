"""If these fail, two runs that should ask the same do not, or a user's prompt file is misread."""

from itertools import islice, pairwise
from pathlib import Path
from statistics import mean

import pytest

from loadtest.workload import (
    Shape,
    Spread,
    cycled,
    domain_prompts,
    load_prompts,
    poisson_arrivals,
    shape_prompts,
)


def test_poisson_arrivals_are_seeded_and_have_the_asked_rate() -> None:
    first = list(islice(poisson_arrivals(20.0, seed=3), 4000))
    assert first == list(islice(poisson_arrivals(20.0, seed=3), 4000))
    assert first[:10] != list(islice(poisson_arrivals(20.0, seed=4), 10))
    gaps = [b - a for a, b in pairwise([0.0, *first])]
    average = mean(gaps)
    assert average == pytest.approx(1 / 20, rel=0.06)
    # Exponential gaps have a standard deviation equal to their mean; evenly spaced ones would have none.
    assert mean((gap - average) ** 2 for gap in gaps) ** 0.5 == pytest.approx(1 / 20, rel=0.1)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        next(poisson_arrivals(0.0, seed=0))


def test_token_id_prompts_have_the_exact_length_and_range() -> None:
    shape = Shape(input_tokens=12, output_tokens=5, token_ids=True, first_id=20, last_id=30)
    prompts = list(islice(shape_prompts(shape, seed=1), 50))
    assert all(prompt.token_ids is not None and len(prompt.token_ids) == 12 for prompt in prompts)
    assert {token for prompt in prompts for token in prompt.token_ids or ()} == set(range(20, 31))
    assert {prompt.max_tokens for prompt in prompts} == {5}


@pytest.mark.parametrize("spread", ["uniform", "lognormal"])
def test_spread_lengths_keep_the_mean_and_differ(spread: Spread) -> None:
    shape = Shape(input_tokens=40, output_tokens=20, spread=spread, token_ids=True)
    sizes = [len(prompt.token_ids or ()) for prompt in islice(shape_prompts(shape, seed=1), 2000)]
    assert mean(sizes) == pytest.approx(40, rel=0.06)
    assert len(set(sizes)) > 10
    assert min(sizes) >= 1


def test_the_same_seed_gives_the_same_prompts() -> None:
    shape = Shape(input_tokens=8, output_tokens=4, spread="uniform")
    assert list(islice(shape_prompts(shape, 5), 20)) == list(islice(shape_prompts(shape, 5), 20))
    assert list(islice(domain_prompts(5), 20)) == list(islice(domain_prompts(5), 20))
    assert list(islice(domain_prompts(5), 20)) != list(islice(domain_prompts(6), 20))


def test_a_jsonl_file_may_hold_prompts_ids_messages_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "one", "answer": "1"}\n\n{"prompt": [1, 2], "max_tokens": 3}\n'
        '{"messages": [{"role": "user", "content": "hi"}], "answer": ["a", "b"], "category": "c"}\n"bare"\n'
    )
    one, two, three, four = load_prompts(path)
    assert (one.text, one.answers) == ("one", ("1",))
    assert (two.token_ids, two.max_tokens) == ((1, 2), 3)
    assert (three.messages, three.answers, three.category) == (({"role": "user", "content": "hi"},), ("a", "b"), "c")
    assert four.text == "bare"


@pytest.mark.parametrize("line", ["{", '{"answer": "x"}', '{"prompt": 3}', '{"prompt": ["a"]}', "[1]"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        load_prompts(path)


def test_a_text_file_is_one_prompt_a_line_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n\ntwo\n")
    assert [prompt.text for prompt in load_prompts(path)] == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        load_prompts(path)


def test_a_file_is_asked_whole_before_any_prompt_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(str(n) for n in range(10)))
    texts = [prompt.text for prompt in islice(cycled(load_prompts(path), seed=2), 20)]
    assert set(texts[:10]) == {str(n) for n in range(10)}
    assert texts[:10] == texts[10:]
