"""`python -m engine.measure.inspection`: what this machine has and what a model needs, without loading a weight.

Standard input is an EngineConfig as JSON, standard output an Inspection. The model is loaded as ever, but onto torch's
device `meta`, which has no memory: names, shapes, types and configuration are checked by the loader's own code, and the
files' contents are not read.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

import msgspec
import torch

from engine.config import EngineConfig, EngineInfo, check_config
from engine.device import huge_pages
from engine.device.devices import default_threads, resolve_device
from engine.errors import EngineError
from engine.messages import Gpu, Inspection, ModelNeeds
from engine.models.files import model_directory
from engine.models.loader import DTYPES, LoadedModel, load_model
from engine.runner.kernels import KERNELS
from engine.runner.pool_size import page_bytes_of
from engine.runner.rank_parts import overrides_of

META = torch.device("meta")


def inspect(config: EngineConfig) -> Inspection:
    """Looks at the machine and at the model that the configuration names. Raises nothing."""
    device, needs, problem = None, None, ""
    try:
        device = resolve_device(config.device)
        check_config(config)
        needs = _needs(config, device)
    except EngineError as error:
        problem = str(error)
    return Inspection(
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        threads=default_threads(),
        huge_pages=huge_pages.setting(),
        kernels={name: _obstacle(name, device) for name in KERNELS},
        device="" if device is None else str(device),
        model=needs,
        problem=problem,
    )


def _gpu(index: int) -> Gpu:
    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(facts.name, f"{facts.major}.{facts.minor}", total, free)


def _obstacle(kernels: str, device: torch.device | None) -> str:
    """Why kernels cannot run on a device; empty where they can."""
    if kernels != "triton":
        return ""
    try:
        version("triton")
    except PackageNotFoundError:
        return "the package triton is not installed: install lightcone[triton]"
    return "" if device is not None and device.type == "cuda" else "there is no NVIDIA GPU to run them on"


def _needs(config: EngineConfig, device: torch.device) -> ModelNeeds:
    model = load_model(
        model_directory(config.model),
        load_format=config.load_format,
        dtype=DTYPES.get(config.dtype),
        device=META,
        runs_on=device,
        max_positions=config.max_model_len,
        overrides=overrides_of(config),
    )
    decoder, shape = model.decoder, model.config
    page = page_bytes_of(shape, 1, decoder.dtype)
    targets = {**decoder.targets(), **decoder.adapter_targets()}
    elements = sum(torch.Size(target.shape).numel() for target in targets.values())
    return ModelNeeds(_info(config, model, device), elements * decoder.dtype.itemsize, page)


def _info(config: EngineConfig, model: LoadedModel, device: torch.device) -> EngineInfo:
    spec = model.spec
    return EngineInfo(
        family=spec.family,
        vocab_size=model.config.vocab_size,
        max_model_len=min(config.max_model_len or model.config.max_positions, model.config.max_positions),
        mask_token_id=spec.mask_token_id,
        banned_token_ids=spec.banned_token_ids,
        bos_token_id=spec.bos_token_id,
        end_token_ids=spec.end_token_ids,
        decodings=spec.decodings,
        default_decoding=spec.default_decoding,
        block_length=min(spec.block_length, config.max_block_length),
        max_block_length=config.max_block_length,
        max_infill_window=config.max_infill_window if spec.can_infill else 0,
        page_size=config.page_size,
        num_pages=0,
        dtype=str(model.decoder.dtype).removeprefix("torch."),
        device=str(device),
        num_parameters=model.decoder.num_parameters,
    )


def main() -> int:
    """Inspects what standard input names."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    sys.stdout.buffer.write(msgspec.json.encode(inspect(config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
