"""Writes the weights, config and tokenizer of the built-in model from the training experiment's files.

    python tools/convert_builtin.py SOURCE_DIR [TARGET_DIR]

SOURCE_DIR holds config.json, model.safetensors (Llama-style names, tied head) and tokenizer.json. TARGET_DIR, by
default engine/builtin, receives the published Nemotron-Labs-Diffusion layout. The same source always gives the same
bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BUILTIN = Path(__file__).resolve().parent.parent / "engine" / "builtin"

CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- if not loop.first -%}{{- raise_exception('A system message must come first.') -}}{%- endif -%}"
    "{{- '<|system|>' + message['content'] -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user|>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + '<|eos|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('Roles are system, user and assistant, not ' + message['role'] + '.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def convert_config(source: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The published layout's config.json. Training saw 256 tokens; RoPE carries on to max_position_embeddings."""
    kept = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "block_size",
        "mask_token_id",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "dtype": "float16",
        "vocab_size": vocab_size,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": source["rope_theta"]},
        **{key: source[key] for key in kept},
    }


def convert_weights(source: dict[str, torch.Tensor], vocab_size: int) -> dict[str, torch.Tensor]:
    """Published names, head written out, rows of the vocabulary beyond the tokenizer's cut off.

    The rows were padding of the training run: no text maps to them, and an id without text must not be generated.
    """
    tensors = {"encoder." + name: tensor.to(torch.float16) for name, tensor in source.items()}
    embedding = tensors["encoder.embed_tokens.weight"][:vocab_size].clone()
    tensors["encoder.embed_tokens.weight"] = embedding
    tensors["diffusion_head.weight"] = embedding.clone()
    return {name: tensors[name] for name in sorted(tensors)}


def convert_tokenizer_config(source: dict[str, Any], tokens: dict[int, str]) -> dict[str, Any]:
    """tokenizer_config.json with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "bos_token": tokens[source["bos_token_id"]],
        "eos_token": tokens[source["eos_token_id"]],
        "pad_token": tokens[source["pad_token_id"]],
        "mask_token": tokens[source["mask_token_id"]],
        "chat_template": CHAT_TEMPLATE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert the training experiment into the built-in model.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=BUILTIN)
    arguments = parser.parse_args()
    source: Path = arguments.source
    target: Path = arguments.target
    target.mkdir(parents=True, exist_ok=True)

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {token: text for text, token in tokenizer["model"]["vocab"].items()}
    tokens |= {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    vocab_size = max(tokens) + 1

    weights = convert_weights(load_file(source / "model.safetensors"), vocab_size)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors makes its files private to the user
    write_json(target / "config.json", convert_config(config, vocab_size))
    write_json(target / "tokenizer_config.json", convert_tokenizer_config(config, tokens))
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(target / "generation_config.json", generation)
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
