"""The model families. What is not listed is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.dream import describe_dream
from engine.models.families.fast_dllm_v2 import describe_fast_dllm_v2
from engine.models.families.llada import describe_llada, describe_llada_moe
from engine.models.families.llada2 import describe_llada2, describe_llada2_1
from engine.models.families.nemotron import describe_nemotron_labs_diffusion
from engine.models.families.overrides import NO_OVERRIDES, Overrides
from engine.models.families.refining.diffusion_gemma import describe_diffusion_gemma
from engine.models.families.sdar import describe_idlm, describe_sdar, describe_sdar_moe
from engine.models.families.stable_diffcoder import describe_stable_diffcoder
from engine.models.files import ConfigFile

Describe = Callable[[ConfigFile, ConfigFile, Overrides], ModelDescription]
"""(config.json, generation_config.json, what the operator says) -> description."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: how its checkpoints are described, and the architectures by which config.json names it."""

    describe: Describe
    architectures: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "nemotron_labs_diffusion": Family(
        describe=describe_nemotron_labs_diffusion, architectures=("NemotronLabsDiffusionModel",)
    ),
    "llada": Family(describe=describe_llada, architectures=("LLaDAModelLM",)),
    "llada_moe": Family(describe=describe_llada_moe, architectures=("LLaDAMoEModelLM",)),
    "llada2": Family(describe=describe_llada2, architectures=("LLaDA2MoeModelLM",)),
    "llada2_1": Family(describe=describe_llada2_1, architectures=()),  # config.json is llada2's
    "dream": Family(describe=describe_dream, architectures=("DreamModel",)),
    "sdar": Family(describe=describe_sdar, architectures=("SDARForCausalLM",)),
    "sdar_moe": Family(describe=describe_sdar_moe, architectures=("SDARMoeForCausalLM",)),
    "idlm": Family(describe=describe_idlm, architectures=()),  # config.json is SDAR's
    "stable_diffcoder": Family(
        describe=describe_stable_diffcoder, architectures=("StableDiffcoderForCausalLM", "SeedDiffcoderForCausalLM")
    ),
    "fast_dllm_v2": Family(describe=describe_fast_dllm_v2, architectures=("Fast_dLLM_QwenForCausalLM",)),
    "diffusion_gemma": Family(describe=describe_diffusion_gemma, architectures=("DiffusionGemmaForBlockDiffusion",)),
}
"""By the name that the option `model_family` gives it."""


def describe_model(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """Describes a checkpoint as one of the operator's family, else by its first known architecture.

    Raises ModelLoadError naming what was asked for and what exists; never runs code that a checkpoint brings.
    """
    if overrides.family is not None:
        if overrides.family not in FAMILIES:
            raise ModelLoadError(f"model_family must be one of {', '.join(FAMILIES)}, not {overrides.family!r}.")
        return FAMILIES[overrides.family].describe(config, generation, overrides)
    architectures = config.values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise config.error("architectures", "a list with the model's architecture (or give --model-family)")
    known = {name: family for family in FAMILIES.values() for name in family.architectures}
    for architecture in architectures:
        if isinstance(architecture, str) and architecture in known:
            return known[architecture].describe(config, generation, overrides)
    raise ModelLoadError(
        f"{config.path}: architecture {', '.join(map(str, architectures))} is not supported. "
        f"Supported: {', '.join(known)}. --model-family ({', '.join(FAMILIES)}) says what else it is, if you know."
    )
