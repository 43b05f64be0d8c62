"""The backend that the configuration names, or a refusal in one line: never another one in its place, unasked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.attention.base import CapturableAttention
from engine.attention.sdpa import SdpaAttention
from engine.errors import ConfigError
from engine.runner.kernels import KERNELS, make_attention
from tests.conftest import MakeEngine
from tests.engine.attention.paged_sequences import NUM_HEADS, PagedSequences
from tests.engine.driving import ask, drive

ROOT = Path(__file__).parents[3]


def refusal(name: str, world: PagedSequences) -> str:
    with pytest.raises(ConfigError) as refused:
        make_attention(name, world.pool, NUM_HEADS)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_sdpa_runs_anywhere() -> None:
    assert isinstance(make_attention("torch", PagedSequences().pool, NUM_HEADS), SdpaAttention)


def test_an_unknown_backend_is_refused_by_name() -> None:
    assert "'flash'" in refusal("flash", PagedSequences())


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels cannot run on a CPU, and the first request would be the one to find out."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "run on NVIDIA GPUs, not on cpu" in refusal("triton", PagedSequences())


def test_triton_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("engine.runner.kernels.find_spec", lambda name: None)
    assert "lightcone[triton]" in refusal("triton", PagedSequences())


def test_a_model_that_the_kernel_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install lightcone[triton]")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "no kernel for heads of 8" in refusal("triton", PagedSequences(dtype=torch.float32))


def test_the_engine_without_triton_kernels_does_not_import_them() -> None:
    """The package is an extra: an engine would not start where it is not installed."""
    code = (
        "import sys, torch, engine.engine\n"
        "from engine.runner.kernels import KERNELS, make_attention\n"
        "from tests.engine.attention.paged_sequences import NUM_HEADS, PagedSequences\n"
        "make_attention('torch', PagedSequences().pool, NUM_HEADS)\n"
        "print([name for name in ('attention', 'choice', 'elementwise') if f'engine.gpu.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_kernels_that_claim_to_be_capturable_are() -> None:
    """The pool would keep a page for captured passes that are never captured."""
    pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)
    pool = PagedSequences(dtype=torch.float32, head_dim=32).pool
    for name, made in KERNELS.items():
        assert isinstance(made.attention(pool, NUM_HEADS), CapturableAttention) is made.capturable, name


@pytest.mark.parametrize("decoding", ["ar", "diffusion", "speculative"])
def test_the_built_in_model_answers_alike_through_the_kernel(decoding: str, builtin_engine: MakeEngine) -> None:
    """The whole path: the configuration, prompts and blocks in pages, and the same tokens as through sdpa."""
    pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)
    answers = []
    for kernels in ("torch", "triton"):
        engine = builtin_engine(kernels=kernels, max_running=2)
        requests = [
            ask(f"r{n}", list(range(8, 13 + 6 * n)), decoding, max_tokens=6, ignore_eos=True, temperature=0.8 * n)
            for n in range(2)
        ]
        answers.append({name: answer.outcome for name, answer in drive(engine, requests).items()})
    assert answers[0] == answers[1]
    assert any(tokens for tokens, *_ in answers[0].values())
