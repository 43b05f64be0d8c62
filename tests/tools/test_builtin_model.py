"""The recipe of the built-in model, at toy size. If these fail, nobody can make the shipped weights again."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bench.prompts import BUILTIN_PROMPTS
from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.files import model_directory
from tests.engine.driving import ask, drive
from tools.builtin_model.documents import SELF_DESCRIPTION, document
from tools.builtin_model.export import export, held_out_prompts, load_network, weights_digest
from tools.builtin_model.first_questions import first_document, mixed_document
from tools.builtin_model.held_out import held_out
from tools.builtin_model.network import Shape
from tools.builtin_model.quality import calibration, measure, table
from tools.builtin_model.tokens import SPECIAL, train_tokenizer
from tools.builtin_model.train import FOURTH_STAGE, SECOND_STAGE, THIRD_STAGE, Batches, Recipe, Trainer, extended
from tools.builtin_model.windows import EOS, MASK, make_batch

RECIPE = Recipe(rows=2, length=128, causal_steps=2, joint_steps=4, warm_up_steps=1)
LENGTH = RECIPE.length


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("work")
    train_tokenizer(folder / "tokenizer.json", vocab_size=400, documents=200)
    return folder


def trainer(work: Path, folder: Path, recipe: Recipe = RECIPE) -> Trainer:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    shape = Shape(size, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    return Trainer(recipe, shape, folder)


def asked_in(text: str) -> list[str]:
    return re.findall(r"<\|user\|>(.*?)<\|assistant\|>", text) + re.findall(r"Q: (.*?)\nA:", text)


def test_no_document_holds_a_question_that_is_held_out() -> None:
    """The quality table would measure memory."""
    rng = random.Random(0)
    of_itself = {asked for asked, _ in SELF_DESCRIPTION}  # never asked to measure by
    for _ in range(3000):
        asked = asked_in("".join(part.text for part in document(rng)))
        assert not [
            question
            for question in asked
            if held_out(question) and "story" not in question and question not in of_itself
        ]
    prompts = held_out_prompts(4, stories=True)
    assert {prompt["category"] for prompt in prompts} >= {"add", "fact", "story", "code", "sentence to JSON"}
    assert all(held_out(prompt["prompt"].removeprefix("<|user|>").removesuffix("<|assistant|>")) for prompt in prompts)


def test_first_questions_leave_out_what_the_model_is_measured_by() -> None:
    """The quality table would measure memory; small talk that the load test asks too is the exception."""
    measured = {
        prompt["prompt"].removeprefix("<|user|>").removesuffix("<|assistant|>") for prompt in held_out_prompts(32)
    }
    rng = random.Random(4)
    seen = {asked for _ in range(6000) for asked in asked_in("".join(part.text for part in first_document(rng, 0.2)))}
    assert len(seen) > 3000
    assert seen & measured <= {"What is the capital of France?", "Which city is the capital of France?"}


@pytest.mark.parametrize(
    ("share", "difficult", "digest"),
    [
        (0.0, 0.0, "60c885be870ea59ea3f39c2e6dfa79b56350f3e15d659825fa359ac76b0a3775"),
        (0.4, 0.0, "da3f0e23f4a906470bddaeb160783bba636892e32c5288848d6456213a416dde"),
        (0.3, 0.4, "ca471df3a5125a6dbed49e28d2e77f6f564566952c63cdd6f392924f11c916b5"),
    ],
)
def test_the_documents_stay_the_same(share: float, difficult: float, digest: str) -> None:
    """The published weights could not be made again."""
    rng = random.Random(3)
    sample = [[tuple(part) for part in mixed_document(rng, share, difficult)] for _ in range(500)]
    assert hashlib.sha256(repr(sample).encode()).hexdigest() == digest


def test_sums_among_the_first_questions_are_right() -> None:
    """The model would be taught that two and two is five."""
    rng = random.Random(5)
    text = "".join(part.text for _ in range(3000) for part in first_document(rng, 0.2))
    sums = re.findall(r"<\|assistant\|>(\d+) ([-+*]) (\d+) = (-?\d+)\. The answer is (-?\d+)\.<", text)
    assert len(sums) > 300
    for a, sign, b, result, answer in sums:
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result) == int(answer)


def test_one_question_has_one_answer() -> None:
    """Two answers to a question would both be learnt, each half."""
    rng = random.Random(6)
    answers: dict[str, set[str]] = {}
    for _ in range(4000):
        parts = mixed_document(rng, 0.5, 0.2)
        for asked, answer in zip(parts[::2], parts[1::2], strict=False):
            if asked.text.startswith("<|user|>") and not answer.text.startswith("Once upon a time"):
                answers.setdefault(asked.text, set()).add(answer.text)
    assert not {asked: given for asked, given in answers.items() if len(given) > 1}


def test_the_shipped_prompts_are_the_exported_ones() -> None:
    """Figures of `lightcone bench` would be measured on questions that training saw."""
    shipped = [json.loads(line) for line in BUILTIN_PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert shipped == held_out_prompts(6, stories=True)


def test_a_fifth_of_the_documents_is_plain_text() -> None:
    """A completion prompt without control tokens would be continued badly."""
    rng = random.Random(1)
    documents = ["".join(part.text for part in document(rng)) for _ in range(2000)]
    plain = [text for text in documents if "<|user|>" not in text]
    assert len(plain) >= 0.2 * len(documents)
    assert all(text.endswith("<|eos|>") for text in documents)
    assert any(text.startswith("Q: ") for text in plain)


def test_digits_and_control_tokens_are_tokens_of_their_own(work: Path) -> None:
    """Sums could not be carried out digit by digit, or a chat's turns would be spelled as text."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == list(range(len(SPECIAL)))
    encoded = tokenizer.encode("<|user|>1234 + 5", add_special_tokens=False)
    assert [token for token in encoded.tokens if token.isdigit()] == ["1", "2", "3", "4", "5"]
    assert tokenizer.decode(tokenizer.encode("naïve 日本\n  x").ids) == "naïve 日本\n  x"


@pytest.mark.parametrize("step", range(6))
def test_a_noised_block_sees_itself_and_its_document_before_it(work: Path, step: int) -> None:
    """The model would learn from what no denoising pass shows it."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    batch = make_batch(5, step, tokenizer, rows=2, length=LENGTH, joint=True)
    for row in range(2):
        visible, ids, places = batch.visible[row, 0], batch.token_ids[row], batch.positions[row]
        assert not visible[:LENGTH, LENGTH:].any(), "the clean half sees the noised one"
        assert not visible[:LENGTH, :LENGTH].triu(1).any(), "the clean half sees ahead"
        for place in range(LENGTH, 2 * LENGTH):
            block = visible[place, LENGTH:].nonzero().flatten() + LENGTH
            before = visible[place, :LENGTH].nonzero().flatten()
            assert place in block
            assert places[block].tolist() == list(range(int(places[block[0]]), int(places[block[0]]) + len(block)))
            assert before.tolist() == list(range(int(before[0]), int(places[block[0]]))), "up to its start, no gap"
            assert ids[before[0]] == 1
            if batch.weights[row, place] == 1.0:
                assert ids[place] == MASK
                assert batch.targets[row, place] == ids[places[place]]
            elif ids[place] == MASK:
                assert batch.targets[row, place] == EOS


def test_a_step_trains_on_the_same_text_whenever_it_runs(work: Path) -> None:
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    first, again, other = (make_batch(5, step, tokenizer, 2, LENGTH, True) for step in (3, 3, 4))
    assert torch.equal(first.token_ids, again.token_ids)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.token_ids, other.token_ids)


def test_an_interrupted_run_ends_with_the_same_weights(work: Path, tmp_path: Path) -> None:
    """Hours of training would be lost, or would give another model."""
    whole = trainer(work, tmp_path / "whole")
    whole.train()
    trainer(work, tmp_path / "parts").train(until=3)
    parts = trainer(work, tmp_path / "parts")
    assert parts.step == 3
    parts.train()
    for (name, expected), (_, given) in zip(
        whole.network.named_parameters(), parts.network.named_parameters(), strict=True
    ):
        assert torch.equal(expected, given), name
    with pytest.raises(ValueError, match="other settings"):
        trainer(work, tmp_path / "parts", replace(RECIPE, joint_steps=5))


def test_what_is_exported_is_what_was_trained(work: Path, tmp_path: Path) -> None:
    """The shipped model would not be the one that the recipe made."""
    trained = trainer(work, tmp_path / "run", replace(RECIPE, causal_steps=12, joint_steps=0))
    trained.train()
    digest = export(tmp_path / "run", tmp_path / "model")
    assert export(tmp_path / "run", tmp_path / "again") == digest
    prompt = [1, 4, 60, 61, 62, 6]
    expected = list(prompt)
    network = trained.network.half().float()
    with torch.inference_mode():
        for _ in range(12):
            total = len(expected)
            visible = torch.ones(1, 1, total, total, dtype=torch.bool).tril()
            hidden = network(torch.tensor([expected]), torch.arange(total)[None], visible, total)
            logits = network.logits(hidden[0, -1])
            logits[[0, MASK]] = -torch.inf
            expected.append(int(logits.argmax()))
    engine = Engine.load(EngineConfig(model=str(tmp_path / "model"), threads=1))
    answer = drive(engine, [ask("a", prompt, max_tokens=12, ignore_eos=True)])["a"]
    assert answer.tokens == expected[len(prompt) :]
    from bench.modes import Cell

    results = measure(tmp_path / "model", held_out_prompts(1), [Cell("ar", 4, 32), Cell("speculative", 4, 32)])
    assert [result.same_as_ar for result in results] == [1.0, 1.0]
    assert "11 held-out prompts" in table(results, 11)


def test_training_goes_on_from_exported_weights(work: Path, tmp_path: Path) -> None:
    """What the model lacks could only be taught by training it from the start."""
    trainer(work, tmp_path / "run", replace(RECIPE, causal_steps=3, joint_steps=0)).train()
    export(tmp_path / "run", tmp_path / "first")
    second = tmp_path / "second"
    second.mkdir()
    stage = replace(SECOND_STAGE, joint_steps=2)
    longer = extended(tmp_path / "first", second, stage)
    given, _ = load_network(tmp_path / "first")
    for (name, expected), (_, found) in zip(given.named_parameters(), longer.network.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
    assert longer.recipe == replace(stage, start=weights_digest(tmp_path / "first"))
    longer.save()
    (second / "tokenizer.json").write_text("its own")
    with pytest.raises(ValueError, match="other settings"):
        extended(tmp_path / "first", second, THIRD_STAGE)
    assert (second / "tokenizer.json").read_text() == "its own", "a run in the same folder would be spoilt"


def test_every_share_of_a_recipe_reaches_its_batches() -> None:
    """A stage would be trained, for half an hour, without the questions that it is there for."""
    file = model_directory("builtin") / "tokenizer.json"
    for stage, names in (
        (THIRD_STAGE, ("first_questions", "difficult")),
        (FOURTH_STAGE, ("tool_chats", "first_questions", "difficult")),
    ):
        ids = Batches(stage, file, 0)[0].token_ids
        for name in names:
            assert not torch.equal(ids, Batches(replace(stage, **{name: 0.0}), file, 0)[0].token_ids), name


def test_confidence_is_judged_by_what_is_right() -> None:
    """A calibration table that cannot tell right from wrong would hide overconfidence."""
    rows = calibration(model_directory("builtin"), each=8)
    unsure = [(count, share) for _, high, count, share in rows if high <= 0.7]
    number = sum(count for count, _ in unsure)
    assert number > 0
    assert rows[-1][2] > 1000
    assert sum(count * share for count, share in unsure) / number < 0.9 < 0.99 < rows[-1][3]
