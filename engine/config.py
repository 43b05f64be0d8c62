"""The engine's frozen configuration with its valid values, and what a loaded engine reports about itself. No torch."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import msgspec

from engine.errors import ConfigError
from engine.request import EditSetting


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be. Always finite ones."""

    above: float | None = None
    """Lower bound, itself not valid."""
    least: float | None = None
    """Lower bound, itself valid."""
    most: float | None = None
    """Upper bound, itself valid."""
    power_of_two: bool = False

    def __contains__(self, value: float) -> bool:
        if self.power_of_two and (value < 1 or value != 1 << int(value).bit_length() - 1):
            return False
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        """The valid values in words, to follow "must be"."""
        if self.power_of_two:
            return "a power of two"
        if self.least is not None and self.most is not None:
            return f"between {self.least} and {self.most}"
        lower = f"greater than {self.above}" if self.above is not None else f"at least {self.least}"
        return lower if self.most is None else f"{lower} and at most {self.most}"


POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(least=0)


DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]

Quantization = Literal[
    "auto", "none", "int8", "int8-weights", "int4-weights", "int4-weights-64", "int4-weights-128", "fp8"
]

DraftQuantization = Literal["none", "int8", "int8-weights", "int4-weights", "int4-weights-64", "int4-weights-128"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the engine process. Lengths and capacities are in tokens unless the name says otherwise."""

    model: str = "builtin"
    """A directory in a published layout, or `builtin`; to `lightcone serve` also a repository on a hub (org/name)."""
    load_format: Literal["auto", "dummy"] = "auto"
    """`dummy`: random weights for a config.json alone, to measure any size without a checkpoint."""
    model_family: str | None = None
    """Family of the model, whatever architecture its config.json names. A wrong one gives plausible nonsense."""
    block_length: Annotated[int | None, Range(least=2, most=1024)] = None
    """Block length that the model was trained with, where its config.json does not say it or says it wrongly."""
    mask_token_id: Annotated[int | None, NOT_NEGATIVE] = None
    """Id of the model's mask token, where neither config.json nor the tokenizer says it."""
    draft_adapter: str | None = None
    """Directory of a LoRA in PEFT's layout, which is applied where the model drafts. None: the checkpoint's own, if it
    has one."""
    dtype: DType = "auto"
    """Type of weights, activations and KV. `auto`: the checkpoint's on a GPU; on a CPU bfloat16 where the checkpoint
    says so and the processor multiplies it natively (avx512_bf16 or AMX), else float32."""
    quantization: Quantization = "auto"
    """How matrices are stored. `auto`: a quantized checkpoint's as they come, where they can be multiplied so, else in
    `dtype`, like plain ones. `none`: always in `dtype`. The others quantize while they load. `int8`: 8-bit weights by
    channel and activations by token, the fastest on a CPU. `int8-weights`, `int4-weights`: weights alone, on a CPU, for
    less memory and for `ar` (4 bits in groups of 32, or as named; the output head in 8). `fp8`: weights by channel and
    activations by token, on NVIDIA GPUs from compute capability 8.9, so far never run on one."""
    draft_quantization: DraftQuantization = "none"
    """A further, narrower copy of the weights for passes that only draft. Verification uses the full ones, so answers
    stay the same. For few requests at once: in a pass that others' prompts or verifications share, drafts use the full
    weights, too. `shared_verify_below` counts as 0 with it."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`. `auto`: the first GPU, or the CPU where there is none."""
    tensor_parallel_size: Annotated[int, POSITIVE] = 1
    """Ranks that run the model together, each with a share of its weights and of the KV pool: processes of one machine,
    on so many GPUs from `device` on (NCCL), or on a CPU (gloo; for tests). It must divide the model's heads, inner
    size, experts and vocabulary. With more than one, passes are not captured and matrices are not packed. So far run on
    CPUs, never on GPUs."""
    kernels: Literal["torch", "triton"] = "torch"
    """`torch`: torch's own, on any device. `triton`: paged attention, rotation, activation and sampling in kernels for
    NVIDIA GPUs, and captured passes. They need the `triton` extra; so far they have been compiled for GPUs and run in
    Triton's interpreter, never on a GPU."""
    enforce_eager: bool = False
    """Capture no passes: each runs operation by operation. On a GPU with `kernels` triton small passes are otherwise
    captured (CUDA graphs) at start-up, which takes up to half a minute."""
    max_model_len: Annotated[int | None, POSITIVE] = None
    """Longest prompt plus answer. None: what the model's config says, as far as the KV pool can hold it. Where
    context is made of blocks, it holds a whole number of them."""
    max_running: Annotated[int, POSITIVE] = 64
    """Most sequences decoding or prefilling at once."""
    max_batch_tokens: Annotated[int, POSITIVE] = 2048
    """Most query tokens in one pass."""
    max_block_length: Annotated[int, Range(least=2, most=1024)] = 64
    """Longest block a request may ask for. Where a model sees the whole text: any that a pass holds."""
    max_infill_window: Annotated[int, NOT_NEGATIVE] = 1024
    """Longest gap plus suffix of an infill request: the window is encoded again in every pass. No limit where a model
    sees the whole text, and encodes it anyway."""
    page_size: Annotated[int, Range(power_of_two=True)] = 16
    """KV positions a page holds; a power of two."""
    kv_cache_tokens: Annotated[int | None, POSITIVE] = None
    """KV pool size. None: sized from the device's free memory, or from `max_running` on a CPU."""
    gpu_memory_utilization: Annotated[float, Range(above=0, most=1)] = 0.9
    """Share of a GPU's memory that weights and an automatically sized KV pool may take together. The rest is for
    activations (a pass of `max_batch_tokens`) and captured passes."""
    prefix_caching: bool = True
    """KV of prompts stays for later requests that begin alike; see also `cache_salt` of a request."""
    context_cache: Literal["none", "prefix", "dual"] = "none"
    """For models that see the whole text both ways: what a pass does not run again until its block is finished. `none`:
    nothing, every pass is exact. `prefix`: all before the block; `dual`: all but the block. The last two are
    approximations (Fast-dLLM): faster, and other answers."""
    shared_commit: bool = True
    """Diffusion: the commit pass of a finished block carries the first denoising step of the next one. A different
    schedule (that step sees a mask where the anchor would stand), so it changes answers: configuration, never load. On
    the built-in model it is as often right and takes up to a third fewer passes. Where context is encoded by blocks it
    changes no answer."""
    shared_verify_below: Annotated[int, NOT_NEGATIVE] = 3
    """Speculation: with at most this many running sequences a verifying pass also drafts the next block. Never
    changes an answer."""
    calibration_seconds: Annotated[float, NOT_NEGATIVE] = 2.0
    """Time spent at start-up on measuring what passes cost, for `auto`. 0: a rough assumption instead."""
    threads: Annotated[int | None, POSITIVE] = None
    """torch intra-op threads on a CPU. None: all cores but one, which the API process needs."""


def check_config(config: EngineConfig, places: Mapping[str, str] | None = None) -> None:
    """Raises ConfigError for an option out of its range, or for options that contradict each other.

    places: where options were set, by name, for messages; those that kept their default are not in it.
    """
    check_ranges(config, places)
    if config.draft_quantization != "none" and config.draft_quantization == config.quantization:
        where = _where(places, "quantization", "draft_quantization")
        raise ConfigError(
            f"draft_quantization ({config.draft_quantization}) is how all weights are quantized: leave it out, or "
            f"choose a narrower one{where}."
        )
    widest = max(2 * config.max_block_length, config.max_infill_window)
    # A quarter of the budget is kept for prompts while any wait; what remains must hold the widest single span pair.
    if config.max_batch_tokens - config.max_batch_tokens // 4 < widest:
        needed = 4 * (widest - 1) // 3 + 1
        where = _where(places, "max_batch_tokens", "max_block_length", "max_infill_window")
        raise ConfigError(
            f"max_batch_tokens ({config.max_batch_tokens}) cannot hold two blocks of max_block_length "
            f"({config.max_block_length}) or one max_infill_window ({config.max_infill_window}): "
            f"at least {needed} is needed{where}."
        )


def check_ranges(options: msgspec.Struct, places: Mapping[str, str] | None = None) -> None:
    """Raises ConfigError naming the first option that is out of its range, what is valid, and where it was set."""
    for name, valid in ranges_of(type(options)).items():
        value = getattr(options, name)
        if value is None:
            continue
        expected = str(valid) if math.isfinite(value) else "a finite number"
        if not math.isfinite(value) or value not in valid:
            raise ConfigError(f"{name} must be {expected}, not {value}{_where(places, name)}")


@cache
def ranges_of(struct: type[msgspec.Struct]) -> dict[str, Range]:
    """The range of every option that has one, as it stands beside the field."""
    return {
        name: entry
        for name, hint in typing.get_type_hints(struct, include_extras=True).items()
        for entry in getattr(hint, "__metadata__", ())
        if isinstance(entry, Range)
    }


def _where(places: Mapping[str, str] | None, *names: str) -> str:
    found = [places[name] for name in names if name in places] if places else []
    return f" ({', '.join(found)})" if found else ""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a loaded engine that the API process needs to validate requests and to describe the model."""

    family: str
    vocab_size: int
    max_model_len: int
    mask_token_id: int
    banned_token_ids: tuple[int, ...]
    """Never generated and never accepted in a prompt: mask and pad."""
    bos_token_id: int | None
    end_token_ids: tuple[int, ...]
    """Union of the end tokens of config.json and generation_config.json."""
    decodings: tuple[str, ...]
    """Values of `decoding` this model supports, for example ("ar", "diffusion", "speculative", "auto")."""
    default_decoding: str
    block_length: int
    """The model's own block length: the default of a request. 0: the whole answer is one block."""
    fixed_block_length: bool = False
    """A request may ask for no other block length."""
    default_threshold: float | None = 0.9
    """`threshold` of a request that sets none. None: an even schedule."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Values of `remasking` that this model supports, the default first."""
    edit_settings: tuple[EditSetting, ...] = ()
    """What a request's `editing` may name, the default first. Empty: the model does not edit."""
    sees_whole_text: bool = False
    """Every pass runs prompt and answer as a whole: the answer's length is an input and nothing is cached."""
    context_cache: str = "none"
    """As in EngineConfig; anything but `none` means that answers are approximate."""
    max_pass_tokens: int = 2048
    """Most tokens of a pass: the longest text where `sees_whole_text`."""
    limits_steps: bool = True
    """A request may set `max_denoising_steps`."""
    refines: bool = False
    """Blocks are canvases of random tokens, every one of which may change in every step."""
    default_steps: int | None = None
    """`max_denoising_steps` of a request that sets none. None: the block's length."""
    max_block_length: int
    max_infill_window: int
    """0 where the model cannot infill."""
    page_size: int
    num_pages: int
    dtype: str
    device: str
    num_parameters: int
    quantization: str = "none"
    """Of the weights; see EngineConfig."""
    draft_quantization: str = "none"
    tensor_parallel_size: int = 1
    """Ranks that run the model together."""
    storage: str = "dense"
    """How the layers' matrices are stored: a name of engine.models.linear.storages."""
    weight_bytes: int = 0
    """Bytes of all weights as they are stored, the embedding included, over all ranks."""
    published: str = ""
    """What a quantized checkpoint brings and how it is stored, in words; empty for plain weights."""
    device_bandwidth: float = 0.0
    """Memory bandwidth of the device (of one rank) in bytes a second, measured at start-up; 0: not measured."""
    device_rate: float = 0.0
    """Matrix operations a second of the device (of one rank; a multiply-add is two), measured at start-up; 0: not
    measured."""
