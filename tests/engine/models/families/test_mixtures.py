"""Reading checkpoints with experts. If one fails, a published checkpoint is refused, or loads as noise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.overrides import NO_OVERRIDES, Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.loader import LoadedModel, choose_storage, load_model
from engine.models.mlp.mixture import MixtureMLP
from tests.reference.bidirectional.checkpoints import llada_config, llada_moe_config, write_whole_checkpoint
from tests.reference.bidirectional.model import WholeModel
from tests.reference.block_checkpoints import block_config, write_block_checkpoint
from tests.reference.block_loops import BlockReferenceModel
from tests.reference.checkpoints import BOS, EOS, MASK
from tests.reference.dense_attention import DenseAttention, dense_batch
from tests.reference.mixtures.names import module_state

CPU = torch.device("cpu")
CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {
    "sdar_moe": lambda **overrides: block_config("sdar_moe", **overrides),
    "llada2": lambda **overrides: block_config("llada2", **overrides),
    "llada_moe": llada_moe_config,
}
EVERY = sorted(CONFIGS)
IDS = torch.randint(8, 96, (20,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write(directory: Path, family: str, **overrides: Any) -> Path:
    if family == "llada_moe":
        return write_whole_checkpoint(directory, llada_moe_config(**overrides))
    return write_block_checkpoint(directory, family, **overrides)


def load(directory: Path, **options: Any) -> LoadedModel:
    return load_model(directory, device=CPU, **options)


def describe(config: dict[str, Any], overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """Of a config.json alone."""
    return describe_model(ConfigFile(Path("config.json"), config), ConfigFile(Path("none"), {}), overrides)


@torch.inference_mode()
def logits_of(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    """[len(ids), V]: by blocks, or all of them at once where the model sees the whole text."""
    length = model.spec.block_length if model.spec.fixed_block_length else len(ids)
    attention, rows = DenseAttention(model.config.num_layers, 64), []
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        batch = dense_batch([(0, start, part, start + len(part))])
        attention.prepare(batch)
        rows.append(model.decoder.logits(model.decoder.forward(batch, attention)))
    return torch.cat(rows)


@pytest.mark.parametrize("family", EVERY)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    """Routers, experts, shared experts, partial rotation, norms and attention, to the rounding of float64."""
    write(tmp_path, family)
    model = load(tmp_path, dtype=torch.float64)
    if family == "llada_moe":
        expected = WholeModel(tmp_path).logits(IDS)
    else:
        expected = BlockReferenceModel(tmp_path, family, model.spec.block_length).block_causal(IDS)
    torch.testing.assert_close(logits_of(model, IDS), torch.from_numpy(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", EVERY)
def test_every_tensor_is_in_its_place_and_can_be_read_back(family: str, tmp_path: Path) -> None:
    """Under transformers' names, whatever order the decoder keeps rows in."""
    model = load(write(tmp_path, family))
    stored = load_file(tmp_path / "model.safetensors")
    names = model.decoder.tensors()
    expected = module_state(stored, llada2=family == "llada2")
    found = module_state(
        {name if name == "lm_head.weight" else f"model.{name}": tensor for name, tensor in names.items()}
    )
    renamed = {name.replace("gate.e_score_correction_bias", "gate.bias"): own for name, own in expected.items()}
    assert found.keys() == renamed.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, renamed[name]), name


def test_only_the_operator_can_say_that_a_llada2_edits() -> None:
    """Both versions have the same config.json: 2.0 was never trained to edit, and 2.1 without is slower."""
    config = block_config("llada2", mask_token_id=MASK)
    plain, editing = (describe(config, Overrides(family=name)) for name in ("llada2", "llada2_1"))
    assert describe(config).spec == plain.spec
    assert (plain.spec.edit_settings, plain.spec.default_threshold) == ((), 0.95)
    assert [tuple(setting) for setting in editing.spec.edit_settings] == [
        ("quality", 0.7, 0.5), ("speed", 0.5, 0.0), ("off", 0.95, None),
    ]  # fmt: skip
    assert editing.spec.default_threshold == 0.7
    assert editing.config == plain.config


@pytest.mark.parametrize("family", EVERY)
def test_stacked_experts_are_the_same_experts(family: str, tmp_path: Path) -> None:
    """As transformers writes them: gate and up of all experts in one tensor, down in another."""
    plain = load(write(tmp_path / "plain", family)).decoder.tensors()
    write(tmp_path / "stacked", family)
    path = tmp_path / "stacked" / "model.safetensors"
    tensors = load_file(path)
    experts = {name: tensor for name, tensor in module_state(tensors).items() if name not in tensors}
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    assert any(tensor.dim() == 3 for tensor in experts.values())
    save_file({**stacked, **experts}, path)
    for name, tensor in load(tmp_path / "stacked").decoder.tensors().items():
        assert torch.equal(tensor, plain[name]), name
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in experts.items()}
    save_file({**stacked, **turned}, path)
    with pytest.raises(ModelLoadError, match=r"experts\.(gate_up|down)_proj has shape"):
        load(tmp_path / "stacked")


@pytest.mark.parametrize("family", EVERY)
def test_a_lost_expert_is_named(family: str, tmp_path: Path) -> None:
    write(tmp_path, family)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.experts.3.up_proj.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"1 missing: {re.escape(lost)}"):
        load(tmp_path)


@pytest.mark.parametrize("family", EVERY)
def test_a_config_alone_is_enough_for_random_weights(family: str, tmp_path: Path) -> None:
    """And the layers that have no experts are the first ones."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[family](), "mask_token_id": MASK}))
    model = load(tmp_path, load_format="dummy")
    assert model.spec.family == family
    dense = {"sdar_moe": 0, "llada2": 1, "llada_moe": 1}[family]
    kinds = [isinstance(layer.mlp, MixtureMLP) for layer in model.decoder.layers]
    assert kinds == [index >= dense for index in range(len(kinds))]
    assert logits_of(model, IDS).isfinite().all()


def test_llada2s_published_config_is_read_as_written(tmp_path: Path) -> None:
    """The 16B's own numbers. Mask and end tokens are the tokenizer's, the window is never used."""
    config = block_config(
        "llada2", vocab_size=157184, hidden_size=2048, intermediate_size=5120, num_hidden_layers=20,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, moe_intermediate_size=512, num_experts=256,
        num_experts_per_tok=8, n_group=8, topk_group=4, rotary_dim=64, rope_theta=600000, pad_token_id=156892,
        max_position_embeddings=16384, max_window_layers=28,
    )  # fmt: skip
    added = [(156892, "<|endoftext|>"), (156895, "<|mask|>"), (156900, "<|role_end|>")]
    tokens = [{"id": number, "content": text} for number, text in added]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    description = describe_model(ConfigFile(tmp_path / "config.json", config), ConfigFile(tmp_path / "none", {}))
    shape, spec = description.config, description.spec
    assert (shape.q_dim, shape.kv_dim, shape.qk_norm, shape.rope.rotary_dim) == (2048, 512, True, 64)
    assert (spec.mask_token_id, spec.block_length, spec.end_token_ids) == (156895, 32, (156892, 156900))
    assert (spec.default_threshold, spec.decodings, spec.can_infill) == (0.95, ("diffusion",), False)
    experts = shape.experts
    assert experts is not None
    assert (experts.num_experts, experts.per_token, experts.shared_size, experts.scaling) == (256, 8, 512, 2.5)


def test_llada_moe_is_known_by_its_keys_too() -> None:
    """Hub files give both LLaDAs one architecture."""
    assert describe(llada_moe_config(architectures=["LLaDAModelLM"])).spec.family == "llada_moe"
    with pytest.raises(ModelLoadError, match="num_experts"):
        describe(llada_config(num_experts=64))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("sdar_moe", "decoder_sparse_step", 2), ("sdar_moe", "mlp_only_layers", [1]),
        ("sdar_moe", "norm_topk_prob", ...), ("sdar_moe", "num_experts_per_tok", 17),
        ("sdar_moe", "moe_intermediate_size", ...), ("sdar_moe", "sliding_window", 4096),
        ("llada2", "score_function", "softmax"), ("llada2", "score_function", ...),
        ("llada2", "use_qk_norm", False), ("llada2", "use_qkv_bias", True), ("llada2", "router_dtype", "bf16"),
        ("llada2", "n_group", 3), ("llada2", "n_group", 16), ("llada2", "topk_group", 5),
        ("llada2", "num_experts_per_tok", 9), ("llada2", "partial_rotary_factor", 0.3), ("llada2", "rotary_dim", 4),
        ("llada2", "use_sliding_window", True), ("llada2", "norm_topk_prob", ...), ("llada_moe", "clip_qkv", 8.0),
        ("llada_moe", "shared_expert_intermediate_size", 16), ("llada_moe", "moe_router_enable_expert_bias", True),
        ("llada_moe", "moe_router_score_function", "sigmoid"), ("llada_moe", "moe_layer_freq", [1, 0, 1]),
        ("llada_moe", "moe_layer_freq", [1, 1]),
    ],
)  # fmt: skip
def test_what_would_change_every_logit_is_refused(family: str, key: str, value: Any) -> None:
    config = {**CONFIGS[family](), "mask_token_id": MASK, key: value}
    if key == "sliding_window":
        del config["use_sliding_window"]
    if value is ...:
        del config[key]
    named = {"use_sliding_window": "sliding_window", "num_experts_per_tok": "num_experts_per_tok|topk_group"}
    with pytest.raises(ModelLoadError, match=named.get(key, key)):
        describe(config)
    assert describe({**CONFIGS[family](), "mask_token_id": MASK}).spec.family == family


def test_a_part_of_a_head_is_rotated_in_plain_rope_only() -> None:
    config = block_config("llada2", mask_token_id=MASK, rope_scaling={"type": "linear", "factor": 2.0})
    with pytest.raises(ModelLoadError, match="'linear' with partial rotation is not supported"):
        describe(config)


@pytest.mark.parametrize("quantization", ["int8", "int8-weights"])
def test_experts_may_be_quantized_on_a_cpu(quantization: str, tmp_path: Path) -> None:
    """Each is a matrix like any other; the router never is one of them."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64}
    directory = write(tmp_path, "llada2", **sizes)
    exact, rounded = (logits_of(load(directory, **options), IDS) for options in ({}, {"quantization": quantization}))
    assert not torch.equal(exact, rounded)
    agreed = (exact.argmax(dim=-1) == rounded.argmax(dim=-1)).float().mean()
    assert float(agreed) > 0.7
    assert torch.nn.functional.cosine_similarity(exact, rounded).mean() > 0.98


def test_what_a_gpu_cannot_do_with_experts_is_refused_by_its_option() -> None:
    """The grouped product takes bfloat16: the first pass would fail after minutes of loading."""
    config, gpu = describe(block_config("llada2", mask_token_id=MASK)).config, torch.device("cuda")
    with pytest.raises(ModelLoadError, match=r"^quantization fp8: expert layers are not quantized on a GPU"):
        choose_storage(config, torch.bfloat16, gpu, "fp8")
    with pytest.raises(ModelLoadError, match=r"^draft_quantization fp8: expert layers"):
        choose_storage(config, torch.bfloat16, gpu, "none", "fp8")
    with pytest.raises(ModelLoadError, match="bfloat16"):
        choose_storage(config, torch.float32, gpu, "auto")


def test_ids_of_a_config_that_names_no_ends_are_not_guessed() -> None:
    assert describe(block_config("llada2", mask_token_id=MASK)).spec.end_token_ids == ()
    assert describe(block_config("llada2", mask_token_id=MASK, eos_token_id=EOS)).spec.end_token_ids == (EOS,)
    assert describe(block_config("llada2", mask_token_id=MASK, bos_token_id=BOS)).spec.bos_token_id == BOS
