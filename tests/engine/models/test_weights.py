"""Loading weights. If one fails, an operator meets a traceback, or a damaged checkpoint is served as noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.loader import load_model
from engine.models.weights import listing
from tests.reference.checkpoints import Tensors, tiny_config, write_checkpoint, write_weights
from tests.reference.dense_attention import DenseAttention, dense_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def weights_of(directory: Path, **options: object) -> Tensors:
    return load_model(directory, device=CPU, **options).decoder.tensors()  # type: ignore[arg-type]


def adapter_of(directory: Path) -> Tensors:
    targets = load_model(directory, device=CPU).decoder.adapter_targets()
    return {name: target.values() for name, target in targets.items()}


def rewrite(directory: Path, rename: dict[str, str] | None = None, **changes: torch.Tensor | None) -> None:
    """Renames or changes tensors of model.safetensors; None drops one. Dots are written __ in `changes`."""
    tensors = load_file(directory / "model.safetensors")
    for old, new in (rename or {}).items():
        tensors[new] = tensors.pop(old)
    for key, value in changes.items():
        tensors.pop(key.replace("__", "."), None)
        if value is not None:
            tensors[key.replace("__", ".")] = value
    save_file(tensors, directory / "model.safetensors")


def failure(directory: Path, **options: object) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(directory, device=CPU, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_equal_a_single_file(checkpoint: Path, tmp_path: Path) -> None:
    """Large models come in shards: none of them would load, or in the wrong places."""
    single = weights_of(checkpoint)
    sharded = weights_of(write_checkpoint(tmp_path / "sharded", shards=3))
    assert single.keys() == sharded.keys()
    for name, tensor in single.items():
        assert torch.equal(tensor, sharded[name]), name


@pytest.mark.parametrize(
    ("stored", "native", "chosen"),
    [
        ("bfloat16", True, torch.bfloat16), ("bfloat16", False, torch.float32), ("float16", True, torch.float32),
        ("float32", True, torch.float32), (None, True, torch.float32),
    ],
)  # fmt: skip
def test_dtype_on_a_cpu_is_what_it_multiplies_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str | None, native: bool, chosen: torch.dtype
) -> None:
    """Half types that a processor does not multiply are many times slower: the built-in model would crawl; and a model
    of bfloat16 would take twice its time and memory where they are native."""
    monkeypatch.setattr("engine.models.loader.has_native_bfloat16", lambda: native)
    directory = write_checkpoint(tmp_path, dtype=torch.bfloat16)
    config = json.loads((directory / "config.json").read_text()) | {"dtype": stored}
    (directory / "config.json").write_text(json.dumps(config))
    assert load_model(directory, device=CPU).decoder.dtype == chosen
    wanted = load_model(directory, device=CPU, dtype=torch.float16)
    assert wanted.decoder.embedding.dtype == torch.float16


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("language_model.", "lm_head.weight"),
        ("language_model.encoder.", "language_model.diffusion_head.weight"),
        ("model.", "lm_head.weight"),
    ],
)
def test_repacked_names_load_the_same_weights(checkpoint: Path, body: str, head: str) -> None:
    """Repacks use other prefixes: a user of one would have to rename tensors by hand."""
    before = {name: tensor.clone() for name, tensor in weights_of(checkpoint).items()}
    names = load_file(checkpoint / "model.safetensors")
    rewrite(checkpoint, {name: body + name.removeprefix("encoder.") for name in names if name.startswith("encoder.")})
    rewrite(checkpoint, {"diffusion_head.weight": head})
    for name, tensor in weights_of(checkpoint).items():
        assert torch.equal(tensor, before[name]), name


def test_missing_and_unexpected_tensors_are_named(checkpoint: Path) -> None:
    """A checkpoint of another model would answer noise."""
    rewrite(checkpoint, {"encoder.layers.1.mlp.up_proj.weight": "encoder.layers.1.mlp.up.weight"})
    message = failure(checkpoint)
    assert "1 missing: encoder.layers.1.mlp.up_proj.weight" in message
    assert "1 unexpected: encoder.layers.1.mlp.up.weight" in message
    assert str(checkpoint) in message


def test_long_lists_of_names_are_cut_with_a_count(tmp_path: Path) -> None:
    """A log line with thousands of names would hide the cause."""
    assert listing([f"t{index}" for index in range(40)]) == "t0, t1, t2, t3, t4, t5 and 34 more"
    directory = write_checkpoint(tmp_path)
    (directory / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=4)))
    message = failure(directory)
    assert "18 missing: encoder.layers.2." in message
    assert "and 12 more" in message


def test_stored_rotary_buffers_are_ignored(checkpoint: Path) -> None:
    """Some writers store them: a good checkpoint would be refused."""
    rewrite(checkpoint, encoder__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    weights_of(checkpoint)


def test_two_names_for_one_place_are_refused(checkpoint: Path) -> None:
    """Which of two heads is right cannot be guessed: answers would depend on file order."""
    rewrite(checkpoint, lm_head__weight=torch.zeros(96, 32))
    assert "are both diffusion_head.weight" in failure(checkpoint)


def test_wrong_shape_names_tensor_expected_and_found(checkpoint: Path) -> None:
    """An operator would not know which of config.json and the weights is wrong."""
    rewrite(checkpoint, encoder__norm__weight=torch.ones(31))
    message = failure(checkpoint)
    assert "encoder.norm.weight has shape (31,); config.json makes it (32,)" in message
    assert "model.safetensors" in message


def test_quantised_tensors_are_refused(checkpoint: Path) -> None:
    """Integers without their scales convert silently to noise."""
    rewrite(checkpoint, encoder__norm__weight=torch.ones(32, dtype=torch.int8))
    assert "encoder.norm.weight is stored as I8" in failure(checkpoint)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_truncated_weights_name_the_file(checkpoint: Path, size: int) -> None:
    """An interrupted download would be a traceback, or worse, load."""
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} is damaged or no safetensors file" in failure(checkpoint)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """An operator would not know what to download again."""
    directory = write_checkpoint(tmp_path, shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    message = failure(directory)
    assert "model-00002-of-00003.safetensors, missing from" in message


def test_shard_of_another_checkpoint_is_named(tmp_path: Path) -> None:
    """Mixed downloads would load partly."""
    directory = write_checkpoint(tmp_path, shards=2)
    save_file({"encoder.norm.weight": torch.ones(32)}, directory / "model-00001-of-00002.safetensors")
    message = failure(directory)
    assert "model.safetensors.index.json and model-00001-of-00002.safetensors disagree about" in message


def test_index_cannot_reach_outside_its_directory(checkpoint: Path) -> None:
    """A hostile index would make the server read other files."""
    index = {"weight_map": {"encoder.norm.weight": "../secret.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must be the name of a file in the same directory" in failure(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    assert "weight_map is missing" in failure(checkpoint)


def test_other_weight_formats_are_named_and_never_read(checkpoint: Path) -> None:
    """A pickle could run code; the operator is told that only safetensors will do."""
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    message = failure(checkpoint)
    assert "neither model.safetensors nor model.safetensors.index.json" in message
    assert "It has pytorch_model.bin, but only safetensors files are read." in message


def test_missing_and_invalid_config_are_named(checkpoint: Path, tmp_path: Path) -> None:
    """The commonest mistakes of a first start would be tracebacks."""
    assert "no model directory" in failure(tmp_path / "nowhere")
    (checkpoint / "generation_config.json").write_text("{")
    assert "generation_config.json cannot be read as JSON" in failure(checkpoint)
    (checkpoint / "config.json").write_text("[1]")
    assert "config.json must hold a JSON object, not list" in failure(checkpoint)
    (checkpoint / "config.json").unlink()
    assert f"There is no config.json in {checkpoint}" in failure(checkpoint)


def test_generation_config_is_optional(checkpoint: Path) -> None:
    """A base checkpoint without one would be refused."""
    (checkpoint / "generation_config.json").unlink()
    assert load_model(checkpoint, device=CPU).spec.end_token_ids == (2,)


def test_dummy_weights_need_config_alone_and_stay_sane(tmp_path: Path) -> None:
    """Measuring a shape without its checkpoint would fail, or time NaN; the same seed gives the same weights."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=12)))
    first, second = (load_model(tmp_path, device=CPU, load_format="dummy").decoder for _ in range(2))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
    batch = dense_batch([(0, 0, list(range(8, 40)), None)])
    attention = DenseAttention(12, 64)
    attention.prepare(batch)
    hidden = first.forward(batch, attention)
    deviation = first.logits(hidden).std()
    assert 0.3 < float(deviation) < 3.0


@pytest.mark.parametrize("spelling", ["lora_A.default", "encoderless"])
def test_adapter_names_are_accepted_in_their_variations(tmp_path: Path, spelling: str) -> None:
    """PEFT writes adapters with and without the adapter's name: drafts would lose their adapter."""
    directory = write_checkpoint(tmp_path, lora_rank=4)
    expected = adapter_of(directory)
    path = directory / "linear_spec_lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    if spelling == "lora_A.default":
        tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    else:
        tensors = {name.replace("base_model.model.encoder.", "model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    found = adapter_of(directory)
    assert len(found) == 4
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_adapter_that_cannot_be_placed_is_an_error(tmp_path: Path) -> None:
    """An adapter for other projections, ignored, would silently draft worse than published."""
    directory = write_checkpoint(tmp_path, lora_rank=4)
    path = directory / "linear_spec_lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    extra = "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({**tensors, extra: torch.zeros(4, 32)}, path)
    assert f"1 unexpected: {extra}" in failure(directory)
    path.unlink()
    assert "neither adapter_model.safetensors nor" in failure(directory)
    settings = directory / "linear_spec_lora" / "adapter_config.json"
    settings.write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": True}))
    assert "use_rslora must be unset" in failure(directory)
    settings.write_text(json.dumps({"r": 4}))
    assert "lora_alpha is missing" in failure(directory)


def test_write_weights_without_an_adapter_loads_none(checkpoint: Path) -> None:
    """A base model has no adapter: it would be refused, or drafting would be slowed by an empty one."""
    write_weights(checkpoint, load_file(checkpoint / "model.safetensors"))
    decoder = load_model(checkpoint, device=CPU).decoder
    assert decoder.adapter is None
    assert decoder.adapter_targets() == {}
