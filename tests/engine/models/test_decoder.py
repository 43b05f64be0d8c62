"""The decoder against transformers' own models on the same random weights. If one fails, answers are wrong.

Tolerances are absolute, on logits with a deviation of about 1: 2e-5 in float32, and 1e-10 in float64, where the
reference's norms are computed in float64 too. Angles of RoPE are float32 on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.ministral3 import modeling_ministral3

from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from engine.models.rope import RopeConfig
from tests.reference.checkpoints import tiny_config, write_checkpoint
from tests.reference.dense_attention import DenseAttention, dense_batch

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(8, 96, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def transformers_model(name: str, dtype: torch.dtype, **settings: Any) -> Any:
    """A random model of transformers, whose norms follow the model's dtype when that is float64."""
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **settings}, attn_implementation="sdpa")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the default initialisation leaves logits near 0 and norms at 1
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return model.to(dtype)


def decoder_of(model: Any, dtype: torch.dtype, config: DecoderConfig) -> Decoder:
    """The same weights in our decoder, whose names are transformers' own."""
    decoder = Decoder(config, dtype=dtype, device=CPU, num_positions=512)
    state = model.state_dict()
    for name, target in decoder.targets().items():
        target.load(state[name] if name == "lm_head.weight" else state["model." + name])
    return decoder


def decoder_config(rope: RopeConfig, **traits: Any) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_positions=512,
        rope=rope,
        **traits,
    )


def ministral_pair(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tied: bool = False) -> tuple[Any, Decoder]:
    """YaRN and Llama-4 scaling active from position 16, through our own reading of the published config."""
    published = tiny_config(tie_word_embeddings=tied)
    description = describe_model(ConfigFile(Path("config.json"), published), ConfigFile(Path("none"), {}))
    if dtype == torch.float64:
        monkeypatch.setattr(modeling_ministral3.Ministral3RMSNorm, "forward", _norm_in_own_dtype)
    model = transformers_model(
        "Ministral3", dtype, rope_parameters=published["rope_parameters"], tie_word_embeddings=tied
    )
    return model, decoder_of(model, dtype, description.config)


def _norm_in_own_dtype(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    mean_square = hidden.pow(2).mean(-1, keepdim=True)
    weight: torch.Tensor = norm.weight
    return weight * hidden * torch.rsqrt(mean_square + norm.variance_epsilon)


@torch.inference_mode()
def reference_logits(model: Any, ids: list[int], kv_limits: list[int]) -> torch.Tensor:
    """[T, vocab]: transformers on one sequence where row t sees [0, kv_limits[t])."""
    mask = torch.arange(len(ids)) < torch.tensor(kv_limits)[:, None]
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]
    return logits


@torch.inference_mode()
def run(decoder: Decoder, spans: list[tuple[int, int, list[int], int | None]], attention: DenseAttention) -> Any:
    batch = dense_batch(spans)
    attention.prepare(batch)
    return decoder.logits(decoder.forward(batch, attention))


def fresh_attention() -> DenseAttention:
    return DenseAttention(num_layers=2, max_positions=64)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_causal_logits_equal_ministral3(
    dtype: torch.dtype, tied: bool, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """YaRN, Llama-4 query scaling, grouped heads, tied and untied head: autoregressive answers would be wrong."""
    model, decoder = ministral_pair(dtype, monkeypatch, tied)
    theirs = reference_logits(model, ids, list(range(1, len(ids) + 1)))
    close(run(decoder, [(0, 0, ids, None)], fresh_attention()), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoising_logits_equal_ministral3_under_a_dense_mask(
    dtype: torch.dtype, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A causal prefix, then a canvas that sees itself both ways, in two passes: diffusion answers would be wrong."""
    model, decoder = ministral_pair(dtype, monkeypatch)
    start = 21
    limits = [*range(1, start + 1), *[len(ids)] * (len(ids) - start)]
    theirs = reference_logits(model, ids, limits)
    attention = fresh_attention()
    close(run(decoder, [(0, 0, ids[:start], None)], attention), theirs[:start])
    close(run(decoder, [(0, start, ids[start:], len(ids))], attention), theirs[start:])


def test_mixed_sequences_in_one_pass_equal_each_alone(ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed pass of a causal and a bidirectional sequence: a request's answer would depend on its company."""
    model, decoder = ministral_pair(torch.float64, monkeypatch)
    first, second = ids[:13], ids[13:]
    packed = run(decoder, [(0, 0, first, None), (1, 0, second, len(second))], fresh_attention())
    close(packed[:13], reference_logits(model, first, list(range(1, 14))))
    close(packed[13:], reference_logits(model, second, [len(second)] * len(second)))


def test_single_token_steps_equal_one_long_pass(ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Position by position against the cache: decoding would drift away from the prompt's own encoding."""
    _, decoder = ministral_pair(torch.float64, monkeypatch)
    whole = run(decoder, [(0, 0, ids, None)], fresh_attention())
    attention = fresh_attention()
    steps = [run(decoder, [(0, place, [token], None)], attention) for place, token in enumerate(ids)]
    close(torch.cat(steps), whole)


@pytest.mark.parametrize(
    ("name", "traits"), [("Qwen2", {"qkv_bias": True}), ("Qwen3", {"qk_norm": True}), ("Llama", {})]
)
def test_traits_equal_the_backbones_that_have_them(name: str, traits: dict[str, bool], ids: list[int]) -> None:
    """Biases of q, k, v (Qwen2), norms of q and k (Qwen3), neither (Llama): models with those traits would be noise."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    # Qwen2 derives the head size from the hidden size, so all three are compared at that one.
    shape = {"hidden_size": 64}
    model = transformers_model(name, torch.float32, rope_parameters=rope, tie_word_embeddings=False, **shape)
    config = decoder_config(RopeConfig(theta=10000.0), **traits)
    decoder = decoder_of(model, torch.float32, DecoderConfig(**{**config.__dict__, "hidden_size": 64}))
    theirs = reference_logits(model, ids, list(range(1, len(ids) + 1)))
    close(run(decoder, [(0, 0, ids, None)], fresh_attention()), theirs)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("linear", {"factor": 4.0}),
        ("yarn", {"factor": 32.0, "original_max_position_embeddings": 16}),  # attention factor 1.35
        (
            "llama3",
            {
                "factor": 32.0,
                "original_max_position_embeddings": 16,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        ),
    ],
)
def test_rope_kinds_equal_llama(kind: str, parameters: dict[str, float], ids: list[int]) -> None:
    """Long-context variants of RoPE, attention factor included: text beyond the original length would be noise."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, **parameters}
    model = transformers_model("Llama", torch.float32, rope_parameters=rope, tie_word_embeddings=False)
    config = decoder_config(RopeConfig(theta=10000.0, kind=kind, parameters=parameters))
    theirs = reference_logits(model, ids, list(range(1, len(ids) + 1)))
    close(run(decoder_of(model, torch.float32, config), [(0, 0, ids, None)], fresh_attention()), theirs)


def test_draft_adapter_equals_merged_weights_on_drafting_rows_only(tmp_path: Path, ids: list[int]) -> None:
    """The LoRA (alpha / r) drafts and never verifies: drafts would be poor, or answers would not be the model's own."""
    directory = write_checkpoint(tmp_path, lora_rank=4, lora_alpha=8)
    adapted = load_model(directory, device=CPU, dtype=torch.float64).decoder
    plain = load_model(write_checkpoint(tmp_path / "plain"), device=CPU, dtype=torch.float64).decoder
    merged = load_model(tmp_path / "plain", device=CPU, dtype=torch.float64).decoder
    update = {name: target.values() for name, target in adapted.adapter_targets().items()}
    for index in range(len(merged.layers)):
        prefix = f"layers.{index}.self_attn.o_proj."
        weight = merged.targets()[f"{prefix}weight"]
        weight.load(weight.values() + 8 / 4 * update[f"{prefix}lora_B.weight"] @ update[f"{prefix}lora_A.weight"])
    first, second = ids[:9], ids[9:]
    batch = dense_batch([(0, 0, first, len(first)), (1, 0, second, None)])
    drafts = torch.zeros(len(ids), 1, dtype=torch.float64)
    drafts[: len(first)] = 1
    batch.draft_tokens = drafts
    attention = fresh_attention()
    attention.prepare(batch)
    mixed = adapted.logits(adapted.forward(batch, attention))
    drafting, verifying = mixed[: len(first)], mixed[len(first) :]
    close(drafting, run(merged, [(0, 0, first, len(first))], fresh_attention()))
    close(verifying, run(plain, [(0, 0, second, None)], fresh_attention()))
    assert not torch.allclose(drafting, run(plain, [(0, 0, first, len(first))], fresh_attention()), atol=0.1)
    close(run(adapted, [(0, 0, ids, None)], fresh_attention()), run(plain, [(0, 0, ids, None)], fresh_attention()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_near_float32(dtype: torch.dtype, tmp_path: Path, ids: list[int]) -> None:
    """Norms are computed in float32 (a float16 square overflows at 256): half-precision models would answer NaN."""
    directory = write_checkpoint(tmp_path, logit_scale=1.0)
    full = load_model(directory, device=CPU).decoder
    half = load_model(directory, device=CPU, dtype=dtype).decoder
    for decoder in (full, half):
        decoder.embedding *= 500
    logits = run(half, [(0, 0, ids, None)], fresh_attention())
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), run(full, [(0, 0, ids, None)], fresh_attention()), rtol=0, atol=0.15)


def test_only_the_rows_asked_for_cost_a_head(tmp_path: Path) -> None:
    """logits([R, hidden]) gives R rows: a long prompt would be multiplied with the whole vocabulary."""
    decoder = load_model(write_checkpoint(tmp_path), device=CPU).decoder
    assert decoder.logits(torch.zeros(3, 32)).shape == (3, 96)


def test_a_canvas_may_reach_past_the_longest_text(tmp_path: Path) -> None:
    """Positions after max_position_embeddings, where a last canvas may stand: the pass would crash."""
    decoder = load_model(write_checkpoint(tmp_path), device=CPU, max_positions=24).decoder
    logits = run(decoder, [(0, 20, [9] * 32, 52)], fresh_attention())
    assert logits.isfinite().all()
