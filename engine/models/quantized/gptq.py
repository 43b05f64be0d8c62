"""GPTQ and AWQ: integers with scales and zero points of groups of inputs.

Sources: the configs and packers of AutoGPTQ, GPTQModel and AutoAWQ.
"""

from __future__ import annotations

from engine.models.files import ConfigFile
from engine.models.quantized.fields import choice, columns, names, refuse
from engine.models.quantized.scheme import (
    CheckpointQuantization,
    ModuleNames,
    QuantizationScheme,
    SchemeGroup,
    bad_pattern,
)


def describe_gptq(config: ConfigFile) -> CheckpointQuantization:
    """GPTQ's first and second version. Raises ModelLoadError naming what cannot be read."""
    version = choice(config, "checkpoint_format", ("gptq", "gptq_v2"), default="gptq")
    choice(config, "pack_dtype", ("int32",), default="int32")
    group_size = columns(config)
    scheme = QuantizationScheme(
        method="gptq",
        layout="gptq" if version == "gptq" else "gptq_v2",
        kind="int",
        bits=choice(config, "bits", (2, 4, 8)),
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
        symmetric=config.flag("sym", default=False),
        ordered=not config.flag("desc_act", default=False),
    )
    return CheckpointQuantization((SchemeGroup(scheme),), _skipped(config))


def _skipped(config: ConfigFile) -> ModuleNames:
    """Modules that `dynamic` leaves as they were (`-:pattern`). Raises for those that it quantizes otherwise."""
    section = config.section("dynamic")
    patterns = list(section.values) if section is not None else []
    for pattern in patterns:
        if section is not None and not pattern.startswith("-:"):
            raise section.error(pattern, "left out: other settings for some modules are not supported")
    skipped = tuple("re:" + pattern.removeprefix("-:") for pattern in patterns)
    if bad_pattern(skipped) is not None:
        raise config.error("dynamic", "regular expressions after -: or +:")
    return ModuleNames(skipped)


def describe_awq(config: ConfigFile) -> CheckpointQuantization:
    """AWQ, packed for its `gemm`. Raises ModelLoadError naming what cannot be read."""
    version = config.values.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise config.error("version", "'gemm'")
    refuse(config, "modules_to_fuse")
    if not config.flag("zero_point", default=True):
        raise config.error("zero_point", "true")
    group_size = columns(config, "group_size" if "group_size" in config.values else "q_group_size")
    scheme = QuantizationScheme(
        method="awq",
        layout="awq",
        kind="int",
        bits=choice(config, "bits" if "bits" in config.values else "w_bit", (4,)),
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
        symmetric=False,
    )
    return CheckpointQuantization((SchemeGroup(scheme),), names(config, "modules_to_not_convert"))
