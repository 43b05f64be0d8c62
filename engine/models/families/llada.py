"""LLaDA 8B (Base, Instruct, 1.5): a Llama decoder under OLMo's names that sees the whole text in every pass.

Source: the published checkpoints' config.json, tensor names and generate.py (arXiv 2502.09992). Their remote code is
never run.
"""

from __future__ import annotations

from typing import Any

from engine.models.families.description import ConfigKeys, ModelDescription, read_decoder_config, read_end_tokens
from engine.models.families.names import WeightNames
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_mask_token
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec

KEYS = ConfigKeys(
    hidden_size="d_model",
    intermediate_size="mlp_hidden_size",
    num_layers="n_layers",
    num_heads="n_heads",
    num_kv_heads="n_kv_heads",
    max_positions="max_sequence_length",
    tied_head="weight_tying",
)

# The head and the layers' down projections are both called ff_out.
NAMES = WeightNames(
    body_prefixes=("model.transformer.",),
    heads=("model.transformer.ff_out.weight",),
    layers="blocks",
    body={"wte.weight": "embed_tokens.weight", "ln_f.weight": "norm.weight"},
    layer={
        "attn_norm.weight": ("input_layernorm.weight",),
        "ff_norm.weight": ("post_attention_layernorm.weight",),
        "q_proj.weight": ("self_attn.q_proj.weight",),
        "k_proj.weight": ("self_attn.k_proj.weight",),
        "v_proj.weight": ("self_attn.v_proj.weight",),
        "attn_out.weight": ("self_attn.o_proj.weight",),
        "ff_proj.weight": ("mlp.gate_proj.weight",),
        "up_proj.weight": ("mlp.up_proj.weight",),
        "ff_out.weight": ("mlp.down_proj.weight",),
    },
)

REQUIRED: dict[str, Any] = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "include_bias": False,
    "weight_tying": False,
}  # fmt: skip
"""What the published configs say, where a missing key would mean another architecture."""

NEUTRAL: dict[str, Any] = {
    "include_qkv_bias": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
    "alibi": False, "multi_query_attention": False, "block_group_size": 1, "rope_full_precision": True,
    "clip_qkv": None, "num_experts": None,
}  # fmt: skip
"""What the published configs say, or leave out, which means the same."""

BLOCK_LENGTH = 32
"""generate.py's own call has blocks of 32."""


def describe_llada(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    _refuse_other_architectures(config)
    decoder = read_decoder_config(config, KEYS)
    size = decoder.vocab_size
    if config.integer("embedding_size", default=size) != size:
        raise config.error("embedding_size", f"vocab_size ({size})")
    spec = ModelSpec(
        family="llada",
        mask_token_id=read_mask_token(config, size, overrides, ("<|mdm_mask|>",)),
        pad_token_id=config.token_id("pad_token_id", size),
        bos_token_id=generation.token_id("bos_token_id", size),
        end_token_ids=read_end_tokens(config, generation, size, ["<|eot_id|>"]),
        block_length=overrides.block_length or BLOCK_LENGTH,
        context_attention="bidirectional",
        block_start="mask",
        has_causal_head=False,
        remaskings=("low_confidence", "random"),
        default_threshold=None,
    )
    return ModelDescription(config=decoder, spec=spec, names=NAMES, keys=KEYS)


def _refuse_other_architectures(config: ConfigFile) -> None:
    """Raises ModelLoadError where a key says that this is another architecture: its weights would load as noise."""
    for key, value in (REQUIRED | NEUTRAL).items():
        found = config.values.get(key)
        if found is None and key in NEUTRAL:
            continue
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            expected = "unset" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
            raise config.error(key, f"{expected}, as in LLaDA 8B: nothing else is supported")
