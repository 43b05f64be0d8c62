"""Random checkpoints of DiffusionGemma, written by transformers' own class, vision part included, tiny for tests.

The shape has everything that can go wrong at full size: sliding and full layers whose heads differ in number and size,
a window shorter than a canvas and a prompt, partial rotation, values that are keys, experts beside a plain MLP, factors
that differ between encoder and decoder, a cap on the logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.reference.checkpoints import BOS, EOS, PAD

VOCABULARY = 96
CANVAS = 8
TURN_END = 3
"""An end token that generation_config.json alone names."""

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16,
    "num_global_key_value_heads": 1, "sliding_window": 6, "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "num_experts": 8, "top_k_experts": 3,
    "moe_intermediate_size": 24, "use_bidirectional_attention": "vision", "final_logit_softcapping": 12.0,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 16,
}  # fmt: skip
GENERATION: dict[str, Any] = {
    "eos_token_id": [EOS, TURN_END], "pad_token_id": PAD, "bos_token_id": BOS, "max_denoising_steps": 6,
    "sampler_config": {"entropy_bound": 0.6, "_cls_name": "EntropyBoundSamplerConfig"}, "t_min": 0.4, "t_max": 0.8,
    "stability_threshold": 1, "confidence_threshold": 0.3,
}  # fmt: skip


def random_module(*, seed: int = 0, logit_scale: float = 4.0, calm: float = 1.0, **text: Any) -> Any:
    """transformers' module, float32, with random weights. text: of `text_config`, on top of TEXT.

    Logits have a deviation of about `logit_scale` before the cap, so that greedy choices are clear-cut and entropies
    lie on both sides of the bounds. calm: what a layer adds is multiplied by it: the less, the more a canvas stays as
    it is, since a token then predicts itself.
    """
    import transformers

    made = transformers.DiffusionGemmaConfig(
        text_config={**TEXT, **text},
        vision_config=transformers.Gemma4VisionConfig(**VISION),
        canvas_length=CANVAS,
        image_token_id=VOCABULARY - 1,
        boi_token_id=VOCABULARY - 2,
        eoi_token_id=VOCABULARY - 3,
    )
    made._attn_implementation = made.text_config._attn_implementation = "sdpa"
    made._experts_implementation = made.text_config._experts_implementation = "eager"
    model = transformers.DiffusionGemmaForBlockDiffusion(made).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name or "embed_scale" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "embed_tokens" in name:
                tensor.copy_(noise * (logit_scale * tensor.shape[1] ** -0.5))
            elif name.endswith("layer_scalar"):
                tensor.copy_(0.9 + 0.1 * noise)
            elif tensor.dim() == 1:
                added = name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"))
                tensor.copy_((1.0 + 0.1 * noise) * (calm if added else 1.0))
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    return model


def write_refining_checkpoint(directory: Path, generation: dict[str, Any] | None = None, **module: Any) -> Path:
    """Writes config.json and the weights by transformers' `save_pretrained`, and generation_config.json.

    generation: on top of GENERATION. module: see `random_module`.
    """
    random_module(**module).save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps(GENERATION | (generation or {})))
    return directory


def published_config(**text: Any) -> dict[str, Any]:
    """config.json with the keys of the published one; an override of `...` removes one of `text_config`."""
    section = {
        **TEXT, "attention_bias": False, "attention_k_eq_v": True, "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "model_type": "diffusion_gemma_text",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
        **text,
    }  # fmt: skip
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": CANVAS,
        "tie_word_embeddings": True, "boi_token_id": 94, "eoi_token_id": 93, "image_token_id": 95, "dtype": "float32",
        "text_config": {key: value for key, value in section.items() if value is not ...}, "vision_config": VISION,
    }  # fmt: skip
