"""Nemotron-Labs-Diffusion: a Ministral-3 decoder with an untied head; one checkpoint, three ways to decode.

Source: the published checkpoints' config.json and tensor names (arXiv 2607.05722). Their remote code is never run.
"""

from __future__ import annotations

from engine.models.families.description import ModelDescription, read_decoder_config, read_end_tokens
from engine.models.families.names import WeightNames
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_block_length, read_mask_token
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec

NAMES = WeightNames(
    body_prefixes=("encoder.", "language_model.encoder.", "language_model.model.", "language_model.", "model."),
    heads=(
        "diffusion_head.weight",
        "language_model.diffusion_head.weight",
        "language_model.lm_head.weight",
        "language_model.model.lm_head.weight",
        "lm_head.weight",
    ),
)


def describe_nemotron_labs_diffusion(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    decoder = read_decoder_config(config)
    spec = ModelSpec(
        family="nemotron_labs_diffusion",
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size),
        block_length=read_block_length(config, overrides, ["block_size"]),
    )
    return ModelDescription(config=decoder, spec=spec, names=NAMES, adapter_folder="linear_spec_lora")
