"""Stable-DiffCoder: a Llama decoder whose context is encoded by blocks of four tokens.

Source: ByteDance Seed's published checkpoints (config.json, tensor names) and the loop of their modeling file.
config.json says `model_type` llama and names neither mask nor block length: the mask is the tokenizer's
`<[MASK_TOKEN]>`, the block length that of the published loop.
"""

from __future__ import annotations

from engine.models.families.description import ModelDescription, read_decoder_config, read_end_tokens
from engine.models.families.names import LLAMA_NAMES
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_block_length, read_mask_token
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec

PUBLISHED_LENGTH = 4


def describe_stable_diffcoder(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    decoder = read_decoder_config(config)
    spec = ModelSpec(
        family="stable_diffcoder",
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ["<[MASK_TOKEN]>"]),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size),
        block_length=read_block_length(config, overrides, ["block_length", "block_size"], default=PUBLISHED_LENGTH),
        context_attention="block_causal",
        block_start="tail",
        ragged_end=True,
        has_causal_head=False,
        can_infill=False,
        default_threshold=None,
    )
    return ModelDescription(config=decoder, spec=spec, names=LLAMA_NAMES)
