"""One set of random weights as every server wants it: safetensors with two configs, and GGUF."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.peers.vocabulary import BOS, EOS, MASK, PAD, special_tokens, tokenizer_json
from engine.errors import ConfigError

MAX_POSITIONS = 4096
ROPE_THETA = 10000.0
NORM_EPS = 1e-5
SEED = 0


@dataclass(frozen=True)
class Shape:
    """A plain Llama-like decoder. The defaults have 350 million parameters."""

    hidden: int = 1024
    layers: int = 24
    inner: int = 2816
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 64
    vocabulary: int = 32000

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "hidden,layers,inner,heads,kv_heads,head_dim,vocabulary". Raises ArgumentTypeError."""
        sizes = [int(size) if size.isdecimal() else 0 for size in text.split(",")]
        if len(sizes) != 7 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"{text} must be seven positive integers with commas")
        shape = cls(*sizes)
        if shape.heads % shape.kv_heads or shape.head_dim % 2 or shape.vocabulary < 512:
            raise argparse.ArgumentTypeError(
                f"{text}: KV heads must divide heads, head_dim be even, and the vocabulary have at least 512 tokens"
            )
        return shape

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The layers' matrices, by the name that follows `model.layers.N.`: (outputs, inputs)."""
        q_dim, kv_dim = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj.weight": (q_dim, self.hidden),
            "self_attn.k_proj.weight": (kv_dim, self.hidden),
            "self_attn.v_proj.weight": (kv_dim, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, q_dim),
            "mlp.gate_proj.weight": (self.inner, self.hidden),
            "mlp.up_proj.weight": (self.inner, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.inner),
        }

    @property
    def config(self) -> dict[str, Any]:
        """The keys of config.json that all of them share."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": NORM_EPS,
            "max_position_embeddings": MAX_POSITIONS,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "rope_theta": ROPE_THETA,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "dtype": "bfloat16",
        }


@dataclass(frozen=True)
class Checkpoints:
    """The folders of one set of weights."""

    lightcone: Path
    llama: Path
    """With the config of a Llama, which other servers run."""

    @property
    def weights(self) -> Path:
        """The file with the tensors, under Llama's names."""
        return self.llama / "model.safetensors"


def write_checkpoints(folder: Path, shape: Shape) -> Checkpoints:
    """Writes random weights in bfloat16 once, and a config and a tokenizer for every server."""
    found = Checkpoints(folder / "lightcone", folder / "llama")
    for directory in (found.lightcone, found.llama):
        directory.mkdir(parents=True)
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(shape.vocabulary)))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        (directory / "tokenizer_config.json").write_text(json.dumps({**settings, **special_tokens()}))
    _write_config(found.llama, {**shape.config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    own = {"architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion"}
    _write_config(found.lightcone, {**shape.config, **own, "mask_token_id": MASK, "block_size": 32})
    save_file(_random_weights(shape), found.weights, metadata={"format": "pt"})
    (found.lightcone / "model.safetensors").symlink_to(found.weights.resolve())
    return found


def write_gguf(checkpoints: Checkpoints, shape: Shape, kind: str, path: Path) -> None:
    """Writes the weights as GGUF. kind: f32, bf16 or q8_0. Raises ConfigError without the package `gguf`.

    llama.cpp rotates neighbouring elements of a head where this decoder rotates its halves, so the rows of q and k are
    written in its order: the same products, in another place.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError("llama.cpp needs a GGUF file, and writing one the package gguf (extra `peers`).") from None

    writer = gguf.GGUFWriter(path, "llama")
    _write_gguf_facts(writer, shape)
    quantization = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0"}[kind]
    with safe_open(checkpoints.weights, framework="pt") as file:
        for name, target in _gguf_names(shape).items():
            tensor = file.get_tensor(name).float()
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = tensor.view(-1, 2, shape.head_dim // 2, shape.hidden).transpose(1, 2).reshape(tensor.shape)
            stored = gguf.GGMLQuantizationType["F32" if tensor.dim() == 1 else quantization]
            data = gguf.quants.quantize(tensor.contiguous().numpy(), stored)
            writer.add_tensor(target, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_gguf_facts(writer: Any, shape: Shape) -> None:
    writer.add_context_length(MAX_POSITIONS)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(shape.vocabulary)
    spec = tokenizer_json(shape.vocabulary)
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    special = {entry["content"] for entry in spec["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)


def _gguf_names(shape: Shape) -> dict[str, str]:
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for layer in range(shape.layers):
        names |= {
            f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in parts.items()
        }
    return names


def _random_weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Scaled so that activations stay near 1 and greedy choices are clear."""
    generator = torch.Generator().manual_seed(SEED)

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> torch.Tensor:
        deviation: float = scale * inputs**-0.5
        return (torch.randn(outputs, inputs, generator=generator) * deviation).bfloat16()

    tensors = {
        "model.embed_tokens.weight": torch.randn(shape.vocabulary, shape.hidden, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
        "lm_head.weight": matrix(shape.vocabulary, shape.hidden, 4.0),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
        tensors |= {prefix + name: matrix(*size) for name, size in shape.matrices.items()}
    return tensors


def _write_config(directory: Path, config: Mapping[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS, "bos_token_id": BOS}))
