"""The model families by architecture, as config.json names it. What is not listed is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.dream import describe_dream
from engine.models.families.llada import describe_llada
from engine.models.families.nemotron import describe_nemotron_labs_diffusion
from engine.models.files import ConfigFile

Describe = Callable[[ConfigFile, ConfigFile], ModelDescription]
"""(config.json, generation_config.json) -> description."""

FAMILIES: Mapping[str, Describe] = {
    "NemotronLabsDiffusionModel": describe_nemotron_labs_diffusion,
    "LLaDAModelLM": describe_llada,
    "DreamModel": describe_dream,
}
"""By architecture, as config.json names it."""


def describe_model(config: ConfigFile, generation: ConfigFile) -> ModelDescription:
    """Describes a checkpoint by its first known architecture. Raises ModelLoadError naming what was asked for and what
    exists; never runs code that a checkpoint brings."""
    architectures = config.values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise config.error("architectures", "a list with the model's architecture")
    for architecture in architectures:
        if isinstance(architecture, str) and architecture in FAMILIES:
            return FAMILIES[architecture](config, generation)
    asked, known = ", ".join(map(str, architectures)), ", ".join(FAMILIES)
    raise ModelLoadError(f"{config.path}: architecture {asked} is not supported. Supported: {known}.")
