"""Dream 7B, Dream-Coder and DiffuCoder: a Qwen2 decoder that sees the whole text in every pass.

The logits of a position choose the token after it, as in the autoregressive model that Dream was made from.

Source: the published checkpoints' config.json, tensor names and generation loop (arXiv 2508.15487). Their remote code
is never run.
"""

from __future__ import annotations

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription, read_decoder_config, read_end_tokens
from engine.models.families.names import WeightNames
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_mask_token
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec

NAMES = WeightNames(body_prefixes=("model.",), heads=("lm_head.weight",))

ORDERS: tuple[str, ...] = ("origin", "maskgit_plus", "topk_margin", "entropy")
"""The values of the family's own `alg`, its default first."""

RELATIVES = {
    "block_size": "decode by blocks", "bd_size": "decode by blocks", "block_length": "decode by blocks",
    "expand_token_id": "insert and delete masks", "delete_token_id": "insert and delete masks",
}  # fmt: skip
"""Keys of checkpoints of the same architecture string that are other models, and what those do."""


def describe_dream(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    for key, deed in RELATIVES.items():
        if config.values.get(key) is not None:
            raise ModelLoadError(
                f"{config.path}: {key} belongs to models that {deed}: they are not supported as Dream."
            )
    decoder = read_decoder_config(config, qkv_bias=True)
    spec = ModelSpec(
        family="dream",
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ("<|mask|>",)),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size, ["<|im_end|>"]),
        block_length=overrides.block_length or 0,
        context_attention="bidirectional",
        block_start="mask",
        logit_shift=True,
        has_causal_head=False,
        remaskings=_own_order_first(generation),
        default_threshold=None,
    )
    return ModelDescription(config=decoder, spec=spec, names=NAMES)


def _own_order_first(generation: ConfigFile) -> tuple[str, ...]:
    """The family's orders, the one that the checkpoint's generation_config.json names in front."""
    named = generation.values.get("alg", ORDERS[0])
    if named not in ORDERS:
        raise generation.error("alg", f"one of {', '.join(ORDERS)}")
    return (named, *(order for order in ORDERS if order != named))
