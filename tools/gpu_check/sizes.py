"""The sizes of a check: the 8B model on a GPU, and a toy at which the check itself is tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.timing.pass_times import PassKind
from engine.batch import Phase
from tools.gpu_check.kernels import KernelSizes
from tools.gpu_check.parity import Heads, Spans

_COMMON = {
    "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion", "dtype": "bfloat16",
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 11,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The sizes of one check."""

    config: dict[str, Any]
    """config.json of the model with random weights."""
    heads: list[Heads]
    spans: list[Spans]
    wide: Spans
    """Spans at which the attention kernel's bandwidth is measured."""
    kernels: KernelSizes
    """Sizes for the elementwise and choosing kernels."""
    requests: int
    """Number of requests in which modes are compared."""
    passes: list[tuple[PassKind, float]]
    """Passes to time, each with the largest multiple of the least time that it may take; 0: any."""
    in_flight: list[int]
    block_lengths: list[int]
    prompt: int
    answer: int
    max_model_len: int
    steps: int
    """Number of steps that are profiled."""
    bars: dict[int, float] = field(default_factory=dict)
    """Tokens a second of self-speculation by requests in flight."""


def _kind(phase: Phase, width: int, batch: int, context: int) -> PassKind:
    return PassKind(phase, width, batch, context)


SIZES = {
    "8b": Size(
        config=_COMMON | {
            "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
            "block_size": 32, "mask_token_id": 100, "rope_parameters": YARN,
        },
        heads=[Heads(32, 8, 128, 16), Heads(6, 2, 32, 16), Heads(16, 4, 64, 64), Heads(40, 8, 128, 1)],
        spans=[
            Spans("decode", [1, 17, 1000, 4095, 32767], 1, True),
            Spans("denoise", [0, 40, 1024, 8000], 32, False),
            Spans("verify", [3, 513, 2048], 32, True),
            Spans("prefill", [0, 5000], 700, True),
        ],
        wide=Spans("32 x 32 at 4096", [4096] * 32, 32, False),
        kernels=KernelSizes(
            intermediate=14336, tokens=[1, 33, 2048], vocabulary=131072, rows=[(1, 1), (1, 32), (32, 32)]
        ),
        requests=200,
        passes=[
            (_kind(Phase.DENOISE, 32, 1, 1024), 1.20), (_kind(Phase.DECODE, 1, 32, 1024), 1.35),
            (_kind(Phase.DECODE, 1, 1, 1024), 0.0), (_kind(Phase.VERIFY, 32, 1, 1024), 0.0),
            (_kind(Phase.VERIFY, 32, 32, 1024), 0.0), (_kind(Phase.VERIFY, 8, 64, 1024), 0.0),
            (_kind(Phase.PREFILL, 2048, 1, 0), 0.0),
        ],
        in_flight=[1, 64], block_lengths=[8, 16, 32], prompt=1024, answer=128, max_model_len=32768, steps=24,
        bars={1: 1000.0, 64: 9000.0},
    ),
    "toy": Size(
        config=_COMMON | {
            "vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
            "block_size": 8, "mask_token_id": 100, "rope_parameters": YARN | {"original_max_position_embeddings": 16},
        },
        heads=[Heads(4, 2, 32, 4), Heads(6, 2, 64, 1)],
        spans=[
            Spans("decode", [1, 17, 70], 1, True), Spans("denoise", [0, 40], 8, False),
            Spans("verify", [3, 30], 8, True), Spans("prefill", [0, 20], 20, True),
        ],
        wide=Spans("2 x 4 at 64", [64] * 2, 4, False),
        kernels=KernelSizes(intermediate=48, tokens=[3], vocabulary=160, rows=[(1, 2)]),
        requests=4,
        passes=[(_kind(Phase.DENOISE, 8, 1, 64), 0.0), (_kind(Phase.DECODE, 1, 2, 64), 0.0)],
        in_flight=[1, 2], block_lengths=[8], prompt=16, answer=12, max_model_len=256, steps=4,
    ),
}  # fmt: skip
