"""The share of time in which the GPU is idle between passes, from a profile."""

from __future__ import annotations

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from engine.engine import Engine
from engine.request import DecodingParams, Request, SamplingParams
from tools.gpu_check.report import Bar, Part

Interval = tuple[float, float]


def idle_share(intervals: list[Interval]) -> float:
    """Share of the time from the first start to the last end that no interval covers."""
    if not intervals:
        return 1.0
    covered, end = 0.0, intervals[0][0]
    for start, stop in sorted(intervals):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    first = min(start for start, _ in intervals)
    return 1.0 - covered / (end - first) if end > first else 0.0


def idle(engine: Engine, batches: list[int], steps: int, bar: float) -> Part:
    """Idle share of AR decoding, by batch. On a CPU there is no such thing as a gap between passes: operations count,
    so that the part itself can be tested."""
    part = Part("Idle share between passes")
    cuda = engine.device.type == "cuda"
    activity, kind = (ProfilerActivity.CUDA, DeviceType.CUDA) if cuda else (ProfilerActivity.CPU, DeviceType.CPU)
    low = max(engine.info.banned_token_ids) + 1
    for batch in batches:
        for i in range(batch):
            engine.add(
                Request(
                    request_id=f"idle-{i}", prompt_token_ids=[low + i % 7] * 16, max_tokens=steps + 8, ignore_eos=True,
                    sampling=SamplingParams(temperature=0.0), decoding=DecodingParams(mode="ar"),
                )
            )  # fmt: skip
        for _ in range(4):  # prompts, and whatever is slow the first time
            engine.step()
        with profile(activities=[activity], acc_events=True) as trace:
            for _ in range(steps):
                engine.step()
            if cuda:
                torch.cuda.synchronize(engine.device)
        while engine.has_work:
            engine.step()
        intervals = [
            (event.time_range.start, event.time_range.end) for event in trace.events() if event.device_type == kind
        ]
        share = idle_share(intervals)
        part.rows.append({"batch": batch, "steps": steps, "idle share": share, "events": len(intervals)})
        if cuda:
            part.bars.append(Bar(f"idle share at batch {batch}", share, bar, at_most=True))
    return part
