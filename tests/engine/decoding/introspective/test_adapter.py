"""A Qwen3 that drafts with I-DLM's adapter, as published: a LoRA on several matrices, for the rows of masks alone.

If one fails, it drafts for nothing, or writes into the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.errors import ModelLoadError
from engine.models.adapter import MODULES
from engine.models.families.overrides import Overrides
from engine.models.loader import load_model
from tests.conftest import engine_maker
from tests.engine.decoding.harness import answer_to
from tests.engine.decoding.introspective.conftest import IntrospectivePair
from tests.engine.decoding.introspective.test_introspective import held_against_the_loop, random_tasks
from tests.reference.block_checkpoints import write_block_checkpoint
from tests.reference.checkpoints import MASK
from tests.reference.denoising.introspective import CausalModel

CPU = torch.device("cpu")


def write_adapter(directory: Path, model: Path, modules: tuple[str, ...], rank: int = 3) -> Path:
    """A random LoRA in PEFT's layout, for matrices of every layer of a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules), "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    generator, tensors = torch.Generator().manual_seed(8), {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.removesuffix(".weight").endswith(modules):
            own = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = weight.shape
            tensors[f"{own}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            tensors[f"{own}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * rank**-0.5
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Qwen3, whose tokenizer has no mask."""
    directory = tmp_path_factory.mktemp("qwen3")
    return write_block_checkpoint(
        directory, "sdar", seed=6, logit_scale=0.5, block_size=..., architectures=["Qwen3ForCausalLM"], mask=False
    )


def said(adapter: Path | None = None) -> Overrides:
    return Overrides(family="idlm", mask_token_id=MASK, draft_adapter=adapter)


@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "v_proj")])
def test_drafts_with_it_and_answers_without_it(qwen3: Path, tmp_path: Path, modules: tuple[str, ...]) -> None:
    """The drafts are those of the reference with the adapter in the rows of masks; the answer is the plain model's."""
    adapter = write_adapter(tmp_path / "lora", qwen3, modules)
    reference = CausalModel(qwen3, "sdar", 1)
    reference.put_on(adapter)
    adapted = engine_maker(qwen3, "float64", overrides=said(adapter))
    seen = held_against_the_loop(IntrospectivePair(adapted, reference), random_tasks(30))
    assert min(seen["accepted"], seen["rejected"]) > 20
    plain, with_it = engine_maker(qwen3, "float64", overrides=said())(), adapted()
    counts = []
    for task in random_tasks(12):
        answers = [answer_to(engine, task, "speculative") for engine in (plain, with_it)]
        assert answers[0].outcome == answers[1].outcome == answer_to(with_it, task, "ar").outcome
        counts.append([answer.finished.stats.accepted_draft_tokens for answer in answers])
    assert any(one != other for one, other in counts), "it drafted nothing else"


def test_the_option_names_it(qwen3: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", qwen3, MODULES)
    engine: Engine = engine_maker(qwen3, "float32", overrides=said(adapter))(draft_adapter=str(adapter))
    from engine.config import EngineConfig

    config = EngineConfig(
        model=str(qwen3), model_family="idlm", mask_token_id=MASK, draft_adapter=str(adapter), device="cpu",
        dtype="float32", threads=1, calibration_seconds=0, kv_cache_tokens=512,
    )  # fmt: skip
    loaded = Engine.load(config)
    task = random_tasks(3)[2]
    drafted = [answer_to(each, task, "speculative").finished.stats for each in (engine, loaded)]
    assert drafted[0].accepted_draft_tokens == drafted[1].accepted_draft_tokens


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": "all-linear"}, "target_modules must be a list of some of q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules must be a list"),
        ({"use_dora": True}, "use_dora must be unset"),
        ({"layers_to_transform": [0]}, "layers_to_transform must be unset"),
        ({"bias": "all"}, "bias must be 'none'"),
        ({"target_modules": ["q_proj"]}, "unexpected"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(
    qwen3: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """Read as another adapter it would draft worse than published, and nobody would know why."""
    adapter = write_adapter(tmp_path, qwen3, ("q_proj", "o_proj"))
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelLoadError, match=words):
        load_model(qwen3, device=CPU, overrides=said(adapter))


def test_a_model_that_does_not_speculate_has_no_use_for_it(tmp_path: Path) -> None:
    directory = write_block_checkpoint(tmp_path / "model", "sdar")
    adapter = write_adapter(tmp_path / "lora", directory, ("o_proj",))
    with pytest.raises(ModelLoadError, match="the model family sdar does not speculate"):
        load_model(directory, device=CPU, overrides=Overrides(draft_adapter=adapter))
