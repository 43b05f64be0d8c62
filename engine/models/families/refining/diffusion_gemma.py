"""DiffusionGemma: a Gemma of experts that encodes text causally and refines canvases of 256 random tokens.

Source: transformers' own `diffusion_gemma` (configuration, tensor names, generation), and the published checkpoint's
keys. Only the text part is served: the tensors of the vision part are not read.
"""

from __future__ import annotations

from typing import Any

from engine.errors import ModelLoadError
from engine.models.decoder_config import AttentionKind, CanvasTraits, DecoderConfig
from engine.models.families.description import ModelDescription, read_end_tokens
from engine.models.families.names import stacked_experts
from engine.models.families.overrides import NO_OVERRIDES, Overrides
from engine.models.families.refining.names import CanvasNames
from engine.models.files import ConfigFile
from engine.models.mlp.config import ExpertConfig
from engine.models.rope import RopeConfig
from engine.models.spec import NO_MASK, ModelSpec, Refinement

SLIDING, FULL = "sliding_attention", "full_attention"

NEUTRAL: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
    "attn_logit_softcapping": None, "enable_moe_block": True,
}  # fmt: skip
"""What the published text_config says, or leaves out, which means the same."""

LAYER_NAMES = {
    "router.proj.weight": ("mlp.gate.weight",),
    "router.scale": ("mlp.gate.scale",),
    "router.per_expert_scale": ("mlp.gate.expert_scale",),
    **{f"mlp.{part}_proj.weight": (f"mlp.shared_experts.{part}_proj.weight",) for part in ("gate", "up", "down")},
}

LONGEST_TEXT = 1 << 19
"""Positions that have a place for noise at every step; see engine.sampling.noise."""

PUBLISHED_STEPS, PUBLISHED_BOUND = 48, 0.1
"""What transformers assumes where generation_config.json says nothing; so are the next ones."""
PUBLISHED_TEMPERATURES = (0.8, 0.4)
PUBLISHED_STABLE_STEPS, PUBLISHED_ENTROPY = 1, 0.005


def describe_diffusion_gemma(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "an object: the shape of the part that is served")
    if not config.flag("tie_word_embeddings", default=True) or not text.flag("tie_word_embeddings", default=True):
        raise config.error("tie_word_embeddings", "true: encoder, decoder and head share their weights")
    length = config.integer("canvas_length", minimum=2, default=256)
    if overrides.block_length not in (None, length):
        raise ModelLoadError(f"{config.path}: canvases have {length} tokens; --block-length cannot change that.")
    decoder = _read_decoder(text, length)
    ends = (
        *text.token_ids("eos_token_id", decoder.vocab_size), *read_end_tokens(config, generation, decoder.vocab_size)
    )  # fmt: skip
    spec = ModelSpec(
        family="diffusion_gemma",
        mask_token_id=NO_MASK,
        pad_token_id=None,  # it is a token like any other: the canvas after an end token is full of it
        bos_token_id=text.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=tuple(dict.fromkeys(ends)),
        block_length=length,
        block_start="noise",
        has_causal_head=False,
        can_infill=False,
        remaskings=("entropy_bound",),
        default_threshold=None,
        refinement=_read_refinement(generation),
    )
    experts = decoder.experts.num_experts if decoder.experts is not None else 0
    names = CanvasNames(
        body_prefixes=("model.decoder.",),
        heads=("lm_head.weight",),
        encoder="model.encoder.language_model.",
        layer=LAYER_NAMES,
        stacked=stacked_experts(experts, "experts"),
        ignored_prefixes=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
    )
    return ModelDescription(config=decoder, spec=spec, names=names)


def _read_decoder(text: ConfigFile, length: int) -> DecoderConfig:
    for key, value in NEUTRAL.items():
        if text.values.get(key, value) not in (value, None):
            raise text.error(key, f"{value}, as in DiffusionGemma: nothing else is supported")
    if text.values.get("use_bidirectional_attention") not in (None, "vision"):
        raise text.error("use_bidirectional_attention", "'vision' or null: text is encoded causally")
    kinds = _read_kinds(text)
    experts, per_token = text.integer("num_experts"), text.integer("top_k_experts")
    if per_token > experts:
        raise text.error("top_k_experts", f"at most num_experts ({experts})")
    longest, inner = text.integer("max_position_embeddings"), text.integer("intermediate_size")
    if longest > LONGEST_TEXT:
        raise text.error("max_position_embeddings", f"at most {LONGEST_TEXT}")
    return DecoderConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        intermediate_size=inner,
        num_layers=text.integer("num_hidden_layers"),
        num_heads=text.integer("num_attention_heads"),
        num_kv_heads=kinds[0].num_kv_heads,
        head_dim=kinds[0].head_dim,
        rms_norm_eps=text.number("rms_norm_eps"),
        max_positions=longest,
        rope=kinds[0].rope,
        tied_head=True,
        qk_norm=True,
        experts=ExpertConfig(
            num_experts=experts,
            per_token=per_token,
            intermediate_size=text.integer("moe_intermediate_size"),
            scoring="softmax",
            renormalised=True,
            shared_size=inner,
            activation="gelu",
        ),
        canvas=CanvasTraits(length=length, kinds=kinds, logit_cap=text.number("final_logit_softcapping")),
    )


def _read_kinds(text: ConfigFile) -> tuple[AttentionKind, ...]:
    """Sliding layers, where there are any, and full ones, whose heads may be of another shape."""
    count, heads = text.integer("num_hidden_layers"), text.integer("num_attention_heads")
    names = text.values.get("layer_types")
    if names is None:
        names = [FULL if i % 6 == 5 or i == count - 1 else SLIDING for i in range(count)]
    if not isinstance(names, list) or len(names) != count or not set(names) <= {SLIDING, FULL}:
        raise text.error("layer_types", f"a list of {count} of {SLIDING} and {FULL}")
    if names[-1] != FULL:
        raise text.error("layer_types", f"a list whose last layer is {FULL}")
    ropes = text.section("rope_parameters")
    kinds = []
    for name in (SLIDING, FULL):
        layers = tuple(i for i, own in enumerate(names) if own == name)
        if not layers:
            continue
        kv_heads, head_dim = _read_heads(text, name == FULL, layers)
        if heads % kv_heads or head_dim % 2:
            raise text.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads}), and head_dim even")
        kinds.append(
            AttentionKind(
                layers=layers,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                rope=_read_rope(text, ropes, name),
                window=text.integer("sliding_window") if name == SLIDING else None,
                values_are_keys=name == FULL,
            )
        )
    return tuple(kinds)


def _read_heads(text: ConfigFile, full: bool, layers: tuple[int, ...]) -> tuple[int, int]:
    """KV heads and head size of layers of one kind: by `per_layer_config`, which transformers writes, or by the
    published keys."""
    kv_heads, head_dim = text.integer("num_key_value_heads"), text.integer("head_dim")
    section = text.section("per_layer_config")
    if section is None:
        if full:
            kv_heads = text.integer("num_global_key_value_heads", default=kv_heads)
            head_dim = text.integer("global_head_dim", default=512)
        return kv_heads, head_dim
    own = {int(key): value for key, value in section.values.items() if key.isdecimal() and isinstance(value, dict)}
    found = {
        (own.get(i, {}).get("num_key_value_heads", kv_heads), own.get(i, {}).get("head_dim", head_dim)) for i in layers
    }
    if len(found) != 1:
        raise text.error("per_layer_config", "the same for all layers of one kind")
    values = ConfigFile(section.path, dict(zip(("num_key_value_heads", "head_dim"), found.pop(), strict=True)))
    return values.integer("num_key_value_heads"), values.integer("head_dim")


def _read_rope(text: ConfigFile, ropes: ConfigFile | None, name: str) -> RopeConfig:
    section = None if ropes is None else ropes.section(name)
    if section is None:
        if ropes is not None:
            raise ropes.error(name, "an object")
        return RopeConfig(theta=1e4) if name == SLIDING else _proportional(1e6, 0.25)
    theta, kind = section.number("rope_theta"), section.values.get("rope_type", "default")
    if kind == "default" and section.values.get("partial_rotary_factor", 1.0) == 1.0:
        return RopeConfig(theta=theta)
    if kind != "proportional" or section.values.get("factor", 1.0) != 1.0:
        raise section.error("rope_type", "default, or proportional with factor 1")
    return _proportional(theta, section.number("partial_rotary_factor"))


def _proportional(theta: float, share: float) -> RopeConfig:
    return RopeConfig(theta=theta, kind="proportional", parameters={"partial_rotary_factor": share})


def _read_refinement(generation: ConfigFile) -> Refinement:
    """The published sampler's settings, by generation_config.json."""
    values = generation.values
    bound, sampler = PUBLISHED_BOUND, generation.section("sampler_config")
    if sampler is not None:
        if sampler.values.get("_cls_name", "EntropyBoundSamplerConfig") != "EntropyBoundSamplerConfig":
            raise sampler.error("_cls_name", "EntropyBoundSamplerConfig: no other sampler is known")
        bound = sampler.number("entropy_bound")
    first, last = (
        generation.number(key) if values.get(key) is not None else default
        for key, default in zip(("t_max", "t_min"), PUBLISHED_TEMPERATURES, strict=True)
    )
    if first <= last:
        raise generation.error("t_max", f"greater than t_min ({last})")
    confident = PUBLISHED_ENTROPY
    if values.get("confidence_threshold") is not None:
        confident = generation.number("confidence_threshold")
    return Refinement(
        steps=generation.integer("max_denoising_steps", default=PUBLISHED_STEPS),
        first_temperature=first,
        last_temperature=last,
        entropy_bound=bound,
        stable_steps=generation.integer("stability_threshold", minimum=0, default=PUBLISHED_STABLE_STEPS),
        confident_below=confident,
    )
