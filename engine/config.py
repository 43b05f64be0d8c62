"""The engine's frozen configuration, and what a loaded engine tells the API process about itself. A leaf: no torch."""

from typing import Literal

import msgspec

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is started with. Lengths and capacities are in tokens unless the name says otherwise."""

    model: str = "builtin"
    """A directory in a published layout, or `builtin`; to `lightcone serve` also a repository on a hub (org/name)."""
    load_format: Literal["auto", "dummy"] = "auto"
    """`dummy`: random weights for a config.json alone, to measure any size without a checkpoint."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Of weights, activations and KV. `auto`: the checkpoint's on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`. `auto`: the first GPU, or the CPU where there is none."""
    kernels: Literal["torch", "triton"] = "torch"
    """`torch`: torch's own, on any device. `triton`: paged attention, rotation, activation and sampling in kernels for
    NVIDIA GPUs, and captured passes. They need the `triton` extra; so far they have been compiled for GPUs and run in
    Triton's interpreter, never on a GPU."""
    enforce_eager: bool = False
    """Capture no passes: each runs operation by operation. On a GPU with `kernels` triton small passes are otherwise
    captured (CUDA graphs) at start-up, which takes up to half a minute."""
    max_model_len: int | None = None
    """Longest prompt plus answer. None: what the model's config says, as far as the KV pool can hold it."""
    max_running: int = 64
    """Most sequences decoding or prefilling at once."""
    max_batch_tokens: int = 2048
    """Most query tokens in one pass."""
    max_block_length: int = 64
    """Longest block a request may ask for."""
    max_infill_window: int = 1024
    """Longest gap plus suffix of an infill request: the window is encoded again in every pass."""
    page_size: int = 16
    """KV positions a page holds; a power of two."""
    kv_cache_tokens: int | None = None
    """KV pool size. None: sized from the device's free memory, or from `max_running` on a CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that weights and an automatically sized KV pool may take together. The rest is for
    activations (a pass of `max_batch_tokens`) and captured passes."""
    prefix_caching: bool = True
    """KV of prompts stays for later requests that begin alike; see also `cache_salt` of a request."""
    shared_commit: bool = True
    """Diffusion: the commit pass of a finished block carries the first denoising step of the next one. A different
    schedule (that step sees a mask where the seed would stand), so it changes answers: configuration, never load. On
    the built-in model it is as often right and takes up to a third fewer passes."""
    shared_verify_below: int = 3
    """Speculation: with at most this many running sequences a verifying pass also drafts the next block. Never
    changes an answer."""
    calibration_seconds: float = 2.0
    """Time spent at start-up on measuring what passes cost, for `auto`. 0: a rough assumption instead."""
    threads: int | None = None
    """torch intra-op threads on a CPU. None: all cores but one, which the API process needs."""


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
    """The model's own block length: the default of a request."""
    max_block_length: int
    max_infill_window: int
    """0 where the model cannot infill."""
    page_size: int
    num_pages: int
    dtype: str
    device: str
    num_parameters: int
    device_bandwidth: float = 0.0
    """Memory bandwidth of the device in bytes a second, measured at start-up; 0: not measured."""
    device_rate: float = 0.0
    """Matrix operations a second of the device (a multiply-add is two), measured at start-up; 0: not measured."""
