"""transformers' norms and routers without their detours over float32: a float64 module is one throughout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def keep_dtype(model: Any) -> None:
    """Gives every norm and router of a module a forward in the module's own dtype."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = _Norm(module)
        elif kind == "Qwen3MoeTopKRouter":
            module.forward = _Softmax(module)
        elif kind == "Glm4MoeTopkRouter":
            module.forward = _Sigmoid(module)


class _Norm:
    """RMSNorm."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.module.variance_epsilon)
        normed: torch.Tensor = self.module.weight * (hidden * scale)
        return normed


class _Softmax:
    """The best of one distribution over all experts."""

    def __init__(self, router: Any) -> None:
        self.router = router

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden.reshape(-1, hidden.shape[-1]), self.router.weight)
        weights, chosen = logits.softmax(dim=-1).topk(self.router.top_k)
        if self.router.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights, chosen


class _Sigmoid:
    """Row by row: the best experts by sigmoid and bias among those of the best groups."""

    def __init__(self, router: Any) -> None:
        self.router = router

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        router = self.router
        logits = F.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        scores = logits.sigmoid()
        weights, chosen = [], []
        for row in scores:
            by = row + router.e_score_correction_bias
            groups = by.view(router.num_group, -1)
            ranked = sorted(range(len(groups)), key=lambda g: -float(groups[g].sort().values[-2:].sum()))
            size = groups.shape[1]
            allowed = [g * size + i for g in ranked[: router.topk_group] for i in range(size)]
            best = sorted(allowed, key=lambda e: -float(by[e]))[: router.top_k]
            own = row[best]
            chosen.append(best)
            weights.append((own / (own.sum() + 1e-20) if router.norm_topk_prob else own) * router.routed_scaling_factor)
        return logits, torch.stack(weights), torch.tensor(chosen)
