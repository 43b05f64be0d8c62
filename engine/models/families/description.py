"""ModelDescription: everything about a checkpoint but its weights, and the reading that Llama-like configs share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.models.decoder_config import DecoderConfig
from engine.models.families.names import WeightNames
from engine.models.files import ConfigFile, added_token_id
from engine.models.rope import OPTIONAL_PARAMETERS, REQUIRED_PARAMETERS, QueryScaling, RopeConfig
from engine.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """A family's keys of config.json for the decoder's shape. By default those that Llama-like configs share."""

    vocab_size: str = "vocab_size"
    hidden_size: str = "hidden_size"
    intermediate_size: str = "intermediate_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    rms_norm_eps: str = "rms_norm_eps"
    max_positions: str = "max_position_embeddings"
    tied_head: str = "tie_word_embeddings"


LLAMA_KEYS = ConfigKeys()


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything about a checkpoint but its weights."""

    config: DecoderConfig
    spec: ModelSpec
    names: WeightNames
    keys: ConfigKeys = LLAMA_KEYS
    """The keys that the config was read by, for messages."""
    adapter_folder: str | None = None
    """Folder of the draft adapter within the checkpoint, for families that have one."""


def read_decoder_config(
    config: ConfigFile, keys: ConfigKeys = LLAMA_KEYS, *, qk_norm: bool = False, qkv_bias: bool = False
) -> DecoderConfig:
    """A decoder's shape. Raises ModelLoadError for what it cannot run.

    keys: the family's names for it. qk_norm, qkv_bias: the family's traits, see DecoderConfig.
    """
    _refuse_unsupported(config, qkv_bias)
    heads = config.integer(keys.num_heads)
    hidden = config.integer(keys.hidden_size)
    kv_heads = config.integer(keys.num_kv_heads, default=heads)
    head_dim = config.integer(keys.head_dim, default=hidden // heads)
    if heads % kv_heads:
        raise config.error(keys.num_kv_heads, f"a divisor of {keys.num_heads} ({heads})")
    if head_dim % 2:
        raise config.error(keys.head_dim, "even")
    return DecoderConfig(
        vocab_size=config.integer(keys.vocab_size),
        hidden_size=hidden,
        intermediate_size=config.integer(keys.intermediate_size),
        num_layers=config.integer(keys.num_layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number(keys.rms_norm_eps),
        max_positions=config.integer(keys.max_positions),
        rope=read_rope_config(config),
        tied_head=config.flag(keys.tied_head, default=False),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
    )


def read_rope_config(config: ConfigFile) -> RopeConfig:
    """`rope_parameters`, or the older top-level `rope_theta` and `rope_scaling`."""
    section = config.section("rope_parameters") or config.section("rope_scaling") or ConfigFile(config.path, {})
    theta = section.number("rope_theta") if "rope_theta" in section.values else config.number("rope_theta")
    kind = section.values.get("rope_type", section.values.get("type", "default"))
    if section.values.get("partial_rotary_factor", 1.0) != 1.0:
        raise section.error("partial_rotary_factor", "1: partial rotation is not supported")
    names = (*REQUIRED_PARAMETERS.get(kind, ()), *OPTIONAL_PARAMETERS)
    parameters = {name: section.values[name] for name in names if section.values.get(name) is not None}
    for name, value in parameters.items():
        if not isinstance(value, int | float):
            raise section.error(name, "a number")
    scaling = None
    if section.values.get("llama_4_scaling_beta"):
        scaling = QueryScaling(
            beta=section.number("llama_4_scaling_beta"),
            original_max_positions=section.integer("original_max_position_embeddings"),
        )
    return RopeConfig(theta=theta, kind=kind, parameters=parameters, query_scaling=scaling)


def read_end_tokens(
    config: ConfigFile, generation: ConfigFile, vocab_size: int, turn_ends: Iterable[str] = ()
) -> tuple[int, ...]:
    """Union of the end tokens of config.json and generation_config.json, in the order they are named.

    turn_ends: what ends a turn of a chat where neither file says so; the first that the tokenizer has is one of them.
    Raises ModelLoadError for a bad one, naming the file that holds it.
    """
    found = [file.token_ids("eos_token_id", vocab_size) for file in (config, generation)]
    turn_end = added_token_id(config.path.parent, turn_ends)
    if turn_end is not None and turn_end < vocab_size:
        found.append((turn_end,))
    return tuple(dict.fromkeys(token for ids in found for token in ids))


def _refuse_unsupported(config: ConfigFile, qkv_bias: bool) -> None:
    """Raises ModelLoadError for traits that change every logit and that nothing here implements."""
    if config.values.get("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "silu")
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.values.get(key) is not None:
            raise config.error(key, "null: it is not supported")
    # Qwen's configs name a window that `use_sliding_window` switches off.
    if config.values.get("sliding_window") is not None and config.flag("use_sliding_window", default=True):
        raise config.error("sliding_window", "null, or use_sliding_window false: it is not supported")
    if any(kind != "full_attention" for kind in config.values.get("layer_types") or ()):
        raise config.error("layer_types", "full_attention in every layer")
    for key in ("mlp_bias",) if qkv_bias else ("attention_bias", "mlp_bias"):
        if config.flag(key, default=False):
            raise config.error(key, "false: biases are not part of this family")
