"""Published names of mixture models' tensors, and the stacked ones of transformers' modules."""

from __future__ import annotations

import re

import torch

Tensors = dict[str, torch.Tensor]

LLADA2_LAYER = {
    "self_attn.o_proj.weight": "attention.dense.weight", "self_attn.q_norm.weight": "attention.query_layernorm.weight",
    "self_attn.k_norm.weight": "attention.key_layernorm.weight",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
}  # fmt: skip
"""GLM-4-MoE's names within a layer -> LLaDA2's."""
QKV = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def published(state: Tensors, *, llada2: bool = False) -> Tensors:
    """A module's tensors under the names of a published file: one an expert; for LLaDA2 q, k and v in one."""
    found: Tensors = {}
    for name, tensor in state.items():
        stack = re.fullmatch(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)", name)
        if stack is None:
            found[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            parts = STACKS[stack[2]]
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                found[f"{stack[1]}.{expert}.{part}.weight"] = rows.contiguous()
    return _as_llada2(found) if llada2 else found


def module_state(tensors: Tensors, *, llada2: bool = False) -> Tensors:
    """The way back."""
    tensors = _from_llada2(tensors) if llada2 else tensors
    found: Tensors = {}
    stacks: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        matrix = re.fullmatch(r"(.+\.mlp\.experts)\.(\d+)\.(\w+)\.weight", name)
        if matrix is None:
            found[name] = tensor
        else:
            stacks.setdefault(matrix[1], {}).setdefault(int(matrix[2]), {})[matrix[3]] = tensor
    for prefix, experts in stacks.items():
        for stack, parts in STACKS.items():
            matrices = [torch.cat([experts[number][part] for part in parts]) for number in range(len(experts))]
            found[f"{prefix}.{stack}"] = torch.stack(matrices)
    return found


def _as_llada2(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name == "model.embed_tokens.weight":
            found["model.word_embeddings.weight"] = tensor
        elif name.endswith(QKV[0]):
            prefix = name.removesuffix(QKV[0])
            found[f"{prefix}attention.query_key_value.weight"] = torch.cat([tensors[prefix + part] for part in QKV])
        elif not name.endswith(QKV[1:]):
            own = next((own for own in LLADA2_LAYER if name.endswith(own)), "")
            found[name.removesuffix(own) + LLADA2_LAYER.get(own, "")] = tensor
    return found


def _from_llada2(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    back = {own: name for name, own in LLADA2_LAYER.items()}
    for name, tensor in tensors.items():
        fused = "attention.query_key_value.weight"
        if name == "model.word_embeddings.weight":
            found["model.embed_tokens.weight"] = tensor
        elif name.endswith(fused):
            prefix = name.removesuffix(fused)
            queries = tensors[f"{prefix}attention.dense.weight"].shape[1]
            rest = (tensor.shape[0] - queries) // 2
            for part, rows in zip(QKV, tensor.split([queries, rest, rest]), strict=True):
                found[prefix + part] = rows
        else:
            own = next((own for own in back if name.endswith(own)), "")
            found[name.removesuffix(own) + back.get(own, "")] = tensor
    return found
