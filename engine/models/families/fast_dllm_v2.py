"""Fast-dLLM v2: a Qwen2 decoder whose context is encoded by blocks of 32 tokens, unmasked by eights.

Sources: NVIDIA's published checkpoints (config.json, tensor names) and the loop of their modeling file (arXiv
2509.26328). Logits stay shifted as in Qwen2: a block's first token comes from the last row of the block before.
config.json names no mask: it is the tokenizer's `|<MASK>|`.
"""

from __future__ import annotations

from engine.models.families.description import ModelDescription, read_decoder_config, read_end_tokens
from engine.models.families.names import LLAMA_NAMES
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_block_length, read_mask_token
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec

SUB_BLOCK = 8
"""The published loop's `small_block_size`."""


def describe_fast_dllm_v2(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    decoder = read_decoder_config(config, qkv_bias=True)
    spec = ModelSpec(
        family="fast_dllm_v2",
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ["|<MASK>|"]),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size),
        block_length=read_block_length(config, overrides, ["bd_size"]),
        context_attention="block_causal",
        block_start="tail",
        anchors_blocks=True,
        sub_block=SUB_BLOCK,
        logit_shift=True,
        has_causal_head=False,
        can_infill=False,
        strict_threshold=True,
    )
    return ModelDescription(config=decoder, spec=spec, names=LLAMA_NAMES)
