"""The policies that a model gets. A mode that is not listed here does not exist."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.decoding.contract import DecodingPolicy
from engine.decoding.lookup import TextLookup
from engine.decoding.policies.autoregressive import Autoregressive
from engine.decoding.policies.block_diffusion import BlockDiffusion
from engine.decoding.policies.diffusion import Diffusion
from engine.decoding.policies.editing import EditingDiffusion
from engine.decoding.policies.infill import Infill
from engine.decoding.policies.introspective import IntrospectiveAuto, IntrospectiveSpeculation
from engine.decoding.policies.refine import Memory, Refine
from engine.decoding.policies.speculation import Auto, SelfSpeculation
from engine.decoding.policies.whole import Whole, WholeInfill
from engine.decoding.unmask import DenoisingTraits
from engine.decoding.width import WidthController
from engine.errors import ConfigError
from engine.models.spec import ModelSpec
from engine.sampling.sampler import Sampler


def _make_diffusion(config: EngineConfig, spec: ModelSpec, sampler: Sampler) -> DecodingPolicy:
    """The policy of mode `diffusion`, by the way in which the model encodes context."""
    if spec.context_attention == "block_causal":
        kind = EditingDiffusion if spec.edit_settings else BlockDiffusion
        return kind(sampler, spec, shared_commit=config.shared_commit)
    if spec.context_attention == "causal":
        return Diffusion(sampler, spec.mask_token_id, block_start=spec.block_start, shared_commit=config.shared_commit)
    raise ConfigError(f"No policy decodes a model whose context attention is {spec.context_attention}: {spec.family}.")


def _make_introspective(
    config: EngineConfig, spec: ModelSpec, sampler: Sampler, lookup: TextLookup
) -> dict[str, DecodingPolicy]:
    """The policies of a model whose masks see causally: it drafts in the passes that verify, and refines no blocks."""
    if config.draft_quantization != "none":
        raise ConfigError(
            f"draft_quantization '{config.draft_quantization}' is for models that draft in passes of their own; the "
            f"model family {spec.family} drafts in those that verify."
        )
    mask = spec.mask_token_id
    policies = (
        Autoregressive(sampler, mask, lookup),
        IntrospectiveSpeculation(sampler, mask, lookup),
        IntrospectiveAuto(sampler, mask, lookup),
    )
    return {policy.mode: policy for policy in policies}


def make_policies(
    config: EngineConfig,
    spec: ModelSpec,
    sampler: Sampler,
    controller: WidthController,
    memory: Memory | None = None,
) -> dict[str, DecodingPolicy]:
    """The policies of one engine by mode: each that the model supports, `infill` included where it can.

    memory: of canvases of random tokens, for a model that has them.
    """
    mask = spec.mask_token_id
    if spec.sees_whole_text:
        kinds = (Whole, WholeInfill)
        return {kind.mode: kind(sampler, mask, DenoisingTraits.of(spec), config.context_cache) for kind in kinds}
    if config.context_cache != "none":
        raise ConfigError(
            f"context_cache '{config.context_cache}' is for models that see the whole text in every pass; the model "
            f"family {spec.family} does not."
        )
    lookup = TextLookup(controller, config.max_block_length)
    if spec.drafts_causally:
        return _make_introspective(config, spec, sampler, lookup)
    if spec.refinement is not None:
        if memory is None:
            raise ConfigError(f"The model family {spec.family} needs a memory for its canvases.")
        return {Refine.mode: Refine(sampler, spec, spec.refinement, memory, shared_commit=config.shared_commit)}
    # A shared pass is multiplied by the full weights: narrower ones draft in passes of their own.
    shared = config.shared_verify_below if config.draft_quantization == "none" else 0
    policies: list[DecodingPolicy] = [
        Autoregressive(sampler, mask, lookup),
        _make_diffusion(config, spec, sampler),
        SelfSpeculation(sampler, mask, lookup, shared),
        Auto(sampler, mask, lookup, shared),
        Infill(sampler, mask),
    ]
    modes = (*spec.decodings, "infill") if spec.can_infill else spec.decodings
    return {policy.mode: policy for policy in policies if policy.mode in modes}
