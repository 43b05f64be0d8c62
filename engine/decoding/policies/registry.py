"""The policies that a model gets. A mode that is not listed here does not exist."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.autoregressive import Autoregressive
from engine.decoding.policies.diffusion import Diffusion
from engine.decoding.policies.infill import Infill
from engine.decoding.policies.speculation import Auto, SelfSpeculation
from engine.decoding.width import WidthController
from engine.models.spec import ModelSpec
from engine.sampling.sampler import Sampler


def make_policies(
    config: EngineConfig, spec: ModelSpec, sampler: Sampler, controller: WidthController
) -> dict[str, DecodingPolicy]:
    """The policies of one engine by mode: each that the model supports, `infill` included where it can."""
    mask = spec.mask_token_id
    # A shared pass is multiplied by the full weights: narrower ones draft in passes of their own.
    shared = config.shared_verify_below if config.draft_quantization == "none" else 0
    policies: list[DecodingPolicy] = [
        Autoregressive(sampler, mask),
        Diffusion(sampler, mask, block_start=spec.block_start, shared_commit=config.shared_commit),
        SelfSpeculation(sampler, mask, controller, shared),
        Auto(sampler, mask, controller, shared),
        Infill(sampler, mask),
    ]
    modes = (*spec.decodings, "infill") if spec.can_infill else spec.decodings
    return {policy.mode: policy for policy in policies if policy.mode in modes}
