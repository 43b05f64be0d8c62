"""compressed-tensors (llm-compressor): integers and fp8, a byte an element or packed.

Source: the library's config classes and compressors, version 0.20.
"""

from __future__ import annotations

from engine.models.files import ConfigFile
from engine.models.quantized.fields import choice, names, refuse
from engine.models.quantized.scheme import (
    Activations,
    CheckpointQuantization,
    LayoutName,
    QuantizationScheme,
    SchemeGroup,
    Strategy,
)

METHOD = "compressed-tensors"
LAYOUT_OF: dict[str, tuple[LayoutName, str, tuple[int, ...]]] = {
    "int-quantized": ("plain", "int", (4, 8)),
    "float-quantized": ("plain", "float", (8,)),
    "naive-quantized": ("plain", "", (8,)),
    "pack-quantized": ("packed", "int", (4, 8)),
}
"""By `format`: the layout, the type that it must be, and the bits that are read."""
STRATEGIES: tuple[Strategy, ...] = ("tensor", "channel", "group", "block")


def describe_compressed_tensors(config: ConfigFile) -> CheckpointQuantization:
    """`quantization_config` -> the schemes of its groups. Raises ModelLoadError naming what cannot be read."""
    choice(config, "quantization_status", ("compressed",), default="compressed")
    refuse(config, "kv_cache_scheme", reason="a quantized KV cache is not supported")
    refuse(config, "transform_config", reason="transformed weights are not supported")
    sparsity = config.section("sparsity_config")
    if sparsity is not None:
        choice(sparsity, "format", ("dense",), default="dense")
    groups = config.section("config_groups")
    if groups is None or not groups.values:
        raise config.error("config_groups", "an object with at least one group")
    sections = [(name, groups.section(name)) for name in groups.values]
    found = tuple(_read_group(config, section) for _, section in sections if section is not None)
    return CheckpointQuantization(found, names(config, "ignore"))


def _read_group(config: ConfigFile, group: ConfigFile) -> SchemeGroup:
    own = group.values.get("format") is not None
    stored = choice(group if own else config, "format", tuple(LAYOUT_OF))
    layout, kind_of_format, bits = LAYOUT_OF[stored]
    weights = group.section("weights")
    if weights is None:
        raise group.error("weights", "an object")
    kind = choice(weights, "type", (kind_of_format,) if kind_of_format else ("int", "float"), default="int")
    strategy = _strategy(weights)
    refuse(weights, "dynamic")
    refuse(group, "output_activations")
    scheme = QuantizationScheme(
        method=METHOD,
        layout=layout,
        kind="int" if kind == "int" else "float",
        bits=choice(weights, "num_bits", bits),
        strategy=strategy,
        group_size=_group_size(weights, strategy),
        block_rows=_block(weights)[0] if strategy == "block" else 1,
        symmetric=weights.flag("symmetric", default=True),
        ordered=weights.values.get("actorder") in (None, False, "weight", "static"),
        activations=_activations(group.section("input_activations")),
    )
    return SchemeGroup(scheme, names(group, "targets").patterns)


def _strategy(weights: ConfigFile) -> Strategy:
    """What shares a scale. Older writers leave it out: a group size then means groups, none means the matrix."""
    size = weights.values.get("group_size")
    default: Strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    return choice(weights, "strategy", STRATEGIES, default=default)


def _group_size(weights: ConfigFile, strategy: Strategy) -> int | None:
    if strategy == "group":
        return weights.integer("group_size")
    return _block(weights)[1] if strategy == "block" else None


def _block(weights: ConfigFile) -> tuple[int, int]:
    """(rows, inputs) of a block."""
    block = weights.values.get("block_structure")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise weights.error("block_structure", "two positive integers")
    return block[0], block[1]


def _activations(inputs: ConfigFile | None) -> Activations:
    """How inputs are quantized. One scale for whatever is in a pass is refused: an answer would depend on others."""
    if inputs is None:
        return "none"
    if not inputs.values.get("dynamic"):
        choice(inputs, "strategy", ("tensor",), default="tensor")
        return "static"
    if inputs.values["dynamic"] is not True:
        raise inputs.error("dynamic", "true or false")
    if inputs.values.get("strategy") == "group":
        return "token"  # each token's own groups, as beside weights in blocks
    choice(inputs, "strategy", ("token",))
    return "token"
