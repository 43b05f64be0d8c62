"""What a family's file says about a checkpoint, and the reading that Llama-like configs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import ModelLoadError
from engine.models.decoder import DecoderConfig
from engine.models.files import ConfigFile
from engine.models.rope import OPTIONAL_PARAMETERS, REQUIRED_PARAMETERS, QueryScaling, RopeConfig
from engine.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class WeightNames:
    """How a family's checkpoints name the decoder's tensors (`Decoder.tensors`)."""

    body_prefixes: tuple[str, ...]
    """What may stand before `embed_tokens.weight`, `layers.N. ...` and `norm.weight`; the published one first."""
    heads: tuple[str, ...]
    """Names of the output head, the published one first."""
    ignored_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Buffers that some writers store and no loader needs."""

    def decoder_name(self, name: str) -> str:
        """The decoder's name for a checkpoint's tensor. A name that fits no pattern is returned as it is."""
        if name in self.heads:
            return "lm_head.weight"
        for prefix in sorted(self.body_prefixes, key=len, reverse=True):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name

    def published_name(self, name: str) -> str:
        """The published name of a decoder's tensor, for messages."""
        return self.heads[0] if name == "lm_head.weight" else self.body_prefixes[0] + name

    def is_ignored(self, name: str) -> bool:
        return name.endswith(self.ignored_suffixes)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything about a checkpoint but its weights."""

    config: DecoderConfig
    spec: ModelSpec
    names: WeightNames
    adapter_folder: str | None = None
    """Where the family keeps a draft adapter, if a checkpoint brings one."""


def read_decoder_config(config: ConfigFile) -> DecoderConfig:
    """A decoder's shape from the keys Llama-like configs share. Raises ModelLoadError for what it cannot run."""
    _refuse_unsupported(config)
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    head_dim = config.integer("head_dim", default=hidden // heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if head_dim % 2:
        raise config.error("head_dim", "even")
    return DecoderConfig(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps"),
        max_positions=config.integer("max_position_embeddings"),
        rope=read_rope_config(config),
        tied_head=config.flag("tie_word_embeddings", default=False),
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


def read_end_tokens(config: ConfigFile, generation: ConfigFile) -> tuple[int, ...]:
    """Union of the end tokens of config.json and generation_config.json, in the order they are named."""
    return tuple(dict.fromkeys((*config.token_ids("eos_token_id"), *generation.token_ids("eos_token_id"))))


def check_token_ids(config: ConfigFile, vocab_size: int, ids: Mapping[str, int | None]) -> None:
    """Raises ModelLoadError for a special token outside the vocabulary."""
    for key, token in ids.items():
        if token is not None and token >= vocab_size:
            raise ModelLoadError(f"{config.path}: {key} {token} is outside the vocabulary of {vocab_size}.")


def _refuse_unsupported(config: ConfigFile) -> None:
    """Traits that would change every logit and that no code here implements: better no model than a wrong one."""
    if config.values.get("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "silu")
    for key in ("sliding_window", "quantization_config", "num_local_experts"):
        if config.values.get(key) is not None:
            raise config.error(key, "null: it is not supported")
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key, default=False):
            raise config.error(key, "false: biases are not part of this family")
