"""Which policies a model gets. Explicit: a decoding that is not listed here does not exist."""

from __future__ import annotations

import torch

from engine.config import EngineConfig
from engine.decoding.auto import Auto
from engine.decoding.autoregressive import Autoregressive
from engine.decoding.contract import DecodingPolicy
from engine.decoding.diffusion import Diffusion
from engine.decoding.infill import Infill
from engine.decoding.self_speculation import SelfSpeculation
from engine.decoding.width import WidthController
from engine.models.spec import ModelSpec
from engine.sampling.sampler import Sampler


def make_policies(
    config: EngineConfig,
    spec: ModelSpec,
    sampler: Sampler,
    device: torch.device,
    controller: WidthController,
) -> dict[str, DecodingPolicy]:
    """The policies of one engine by name: every `decoding` the model supports, and `infill` where it can."""
    mask = spec.mask_token_id
    shared = config.shared_verify_below
    policies: list[DecodingPolicy] = [
        Autoregressive(sampler, mask, device),
        Diffusion(sampler, mask, device, config.shared_commit),
        SelfSpeculation(sampler, mask, device, controller, shared),
        Auto(sampler, mask, device, controller, shared),
    ]
    by_name = {policy.name: policy for policy in policies if policy.name in spec.decodings}
    if spec.can_infill:
        by_name["infill"] = Infill(sampler, mask, device, frozenset(spec.end_token_ids))
    return by_name
