"""ModelDescription: everything about a checkpoint but its weights, and the reading that Llama-like configs share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.models.decoder_config import DecoderConfig
from engine.models.families.names import WeightNames
from engine.models.files import ConfigFile, added_token_id
from engine.models.mlp.config import ExpertConfig
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
    config: ConfigFile,
    keys: ConfigKeys = LLAMA_KEYS,
    *,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    experts: ExpertConfig | None = None,
    partial_rotation: bool = False,
    window_is_unused: bool = False,
) -> DecoderConfig:
    """A decoder's shape. Raises ModelLoadError for what it cannot run.

    keys: the family's names for it. qk_norm, qkv_bias, experts: the family's traits, see DecoderConfig.
    partial_rotation: whether the family may rotate a part of each head only. window_is_unused: the family's config
    names a window of attention that its code never reads.
    """
    _refuse_unsupported(config, qkv_bias, experts is not None, window_is_unused)
    heads = config.integer(keys.num_heads)
    hidden = config.integer(keys.hidden_size)
    kv_heads = config.integer(keys.num_kv_heads, default=heads)
    head_dim = config.integer(keys.head_dim, default=hidden // heads)
    if heads % kv_heads:
        raise config.error(keys.num_kv_heads, f"a divisor of {keys.num_heads} ({heads})")
    if head_dim % 2:
        raise config.error(keys.head_dim, "even")
    inner = experts.intermediate_size if experts is not None else 0
    if experts is None or experts.num_dense_layers:
        inner = config.integer(keys.intermediate_size)
    return DecoderConfig(
        vocab_size=config.integer(keys.vocab_size),
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=config.integer(keys.num_layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number(keys.rms_norm_eps),
        max_positions=config.integer(keys.max_positions),
        rope=read_rope_config(config, head_dim if partial_rotation else None),
        tied_head=config.flag(keys.tied_head, default=False),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        experts=experts,
    )


def read_rope_config(config: ConfigFile, head_dim: int | None = None) -> RopeConfig:
    """`rope_parameters`, or the older top-level `rope_theta` and `rope_scaling`.

    head_dim: of families that may rotate a part of each head only; None: a config that asks for that is an error.
    """
    section = config.section("rope_parameters") or config.section("rope_scaling") or ConfigFile(config.path, {})
    theta = section.number("rope_theta") if "rope_theta" in section.values else config.number("rope_theta")
    kind = section.values.get("rope_type", section.values.get("type", "default"))
    if head_dim is None and section.values.get("partial_rotary_factor", 1.0) != 1.0:
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
    rotary_dim = None if head_dim is None else _rotary_dim(config, section, head_dim)
    return RopeConfig(theta=theta, kind=kind, parameters=parameters, query_scaling=scaling, rotary_dim=rotary_dim)


def _rotary_dim(config: ConfigFile, section: ConfigFile, head_dim: int) -> int | None:
    """How many elements of a head are rotated, by `partial_rotary_factor`; None: all."""
    where = section if "partial_rotary_factor" in section.values else config
    if where.values.get("partial_rotary_factor") is None:
        return None
    rotated = head_dim * where.number("partial_rotary_factor")
    if rotated % 2 or rotated > head_dim:
        raise where.error("partial_rotary_factor", f"at most 1, and an even part of head_dim ({head_dim})")
    if config.integer("rotary_dim", default=int(rotated)) != rotated:
        raise config.error("rotary_dim", f"head_dim ({head_dim}) times partial_rotary_factor")
    return None if rotated == head_dim else int(rotated)


def read_expert_counts(config: ConfigFile) -> tuple[int, int]:
    """How many experts a layer has, and how many of them a token goes to."""
    experts, per_token = config.integer("num_experts"), config.integer("num_experts_per_tok")
    if per_token > experts:
        raise config.error("num_experts_per_tok", f"at most num_experts ({experts})")
    return experts, per_token


def count_dense_layers(config: ConfigFile, key: str, dense: Sequence[int]) -> int:
    """How many layers have no experts. dense: their numbers, as `key` tells them: they have to be the first ones."""
    if sorted(dense) != list(range(len(dense))):
        raise config.error(key, "such that the layers without experts are the first ones")
    return len(dense)


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


def _refuse_unsupported(config: ConfigFile, qkv_bias: bool, has_experts: bool, window_is_unused: bool) -> None:
    """Raises ModelLoadError for traits that change every logit and that nothing here implements."""
    if config.values.get("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "silu")
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.values.get(key) is not None and not has_experts:
            raise config.error(key, "null: it is not supported")
    # Qwen's configs name a window that `use_sliding_window` switches off.
    uses_window = config.flag("use_sliding_window", default=not window_is_unused)
    if config.values.get("sliding_window") is not None and uses_window:
        raise config.error("sliding_window", "null, or use_sliding_window false: it is not supported")
    if any(kind != "full_attention" for kind in config.values.get("layer_types") or ()):
        raise config.error("layer_types", "full_attention in every layer")
    for key in ("mlp_bias",) if qkv_bias else ("attention_bias", "mlp_bias"):
        if config.flag(key, default=False):
            raise config.error(key, "false: biases are not part of this family")
