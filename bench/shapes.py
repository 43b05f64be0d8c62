"""Models of random weights, too large for a processor's caches, one a family: config.json as it is published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.models.files import model_directory

_SIZES: dict[str, Any] = {
    "dtype": "float32", "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16000, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""About 100 million parameters under the names that most families use."""


@dataclass(frozen=True)
class Shape:
    """A model without weights, for `--load-format dummy`."""

    config: Mapping[str, Any]
    """Its config.json."""
    mask_token_id: int | None = None
    """Where config.json does not say it."""


SHAPES: Mapping[str, Shape] = {
    "nemotron": Shape(
        {
            "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion",
            "dtype": "bfloat16", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
            "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "block_size": 32, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "mask_token_id": 5,
        }
    ),
    "sdar": Shape(
        {
            **_SIZES, "architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": False,
            "use_sliding_window": False, "sliding_window": None, "block_size": 4,
        },
        mask_token_id=5,
    ),
    "stable_diffcoder": Shape(
        {
            **_SIZES, "architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama", "attention_bias": False,
            "mlp_bias": False,
        },
        mask_token_id=5,
    ),
    "fast_dllm_v2": Shape(
        {
            **_SIZES, "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 32,
            "use_sliding_window": False,
        },
        mask_token_id=5,
    ),
    "llada": Shape(
        {
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "torch_dtype": "float32", "d_model": 768,
            "n_heads": 12, "n_kv_heads": 12, "n_layers": 12, "mlp_hidden_size": 2304, "vocab_size": 16000,
            "embedding_size": 16000, "max_sequence_length": 2048, "rms_norm_eps": 1e-5, "rope": True,
            "rope_theta": 500000.0, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms",
            "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "weight_tying": False,
            "input_emb_norm": False, "scale_logits": False, "alibi": False, "mask_token_id": 5, "eos_token_id": 2,
            "pad_token_id": 2,
        }
    ),
    "dream": Shape(
        {
            **_SIZES, "architectures": ["DreamModel"], "model_type": "Dream", "use_sliding_window": False,
            "mask_token_id": 5, "bos_token_id": 2, "pad_token_id": 2,
        }
    ),
}  # fmt: skip
"""By the family's name; Nemotron's has 350 million parameters."""


def write_shape(directory: Path, name: str = "nemotron", *, tokenizer: bool = False) -> None:
    """Writes a model directory without weights. tokenizer: with the built-in model's. Raises ConfigError."""
    if name not in SHAPES:
        raise ConfigError(f"There is no shape {name!r}: give one of {', '.join(SHAPES)}.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(SHAPES[name].config, indent=1) + "\n")
        if tokenizer:
            shutil.copy(model_directory("builtin") / "tokenizer.json", directory)
    except OSError as error:
        raise ConfigError(f"cannot write {directory}: {error.strerror}") from None
