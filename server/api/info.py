"""GET routes about the model, the server's state, its version and its metrics."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from server.api.common import json_response, service_of
from server.api.responses import Count, Response
from server.operation.loading import Stage
from server.operation.metrics import CONTENT_TYPE
from server.operation.service import Service
from server.text.served_model import ServedModel
from server.version import VERSION

router = APIRouter()


class Model(Response):
    """A name by which the model is served, in OpenAI's form with facts added."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    parent: str | None
    max_model_len: Count
    decoding: str
    decodings: list[str]
    block_length: Count
    threshold: float | None
    max_denoising_steps: int | None
    """Of a request that sets none. null: the block's length."""
    remaskings: list[str]
    editings: list[str]
    context_cache: str
    dtype: str
    quantization: str


class ModelList(Response):
    """The served model and its aliases."""

    object: Literal["list"]
    data: list[Model]


class LoadState(Response):
    """How far a model is that is being loaded. Numbers are 0 where they are not known."""

    stage: Stage
    bytes: Count
    """Of the files that are fetched, or of the weights that are read."""
    total_bytes: Count
    files: Count
    total_files: Count
    seconds: float


class Health(Response):
    """The answer of /health."""

    status: str
    engine: str
    restarts: Count
    loading: LoadState | msgspec.UnsetType = msgspec.UNSET
    """While a model is being loaded, for the first time or again."""


class Ready(Response):
    """The answer of /ready."""

    status: str
    loading: LoadState | msgspec.UnsetType = msgspec.UNSET
    """While a model is being loaded, for the first time or again."""


class Load(Response):
    """The answer of /load."""

    server_load: Count
    """Answers that have been asked for and not finished."""


class TokenizerInfo(Response):
    """The answer of /tokenizer_info."""

    tokenizer_class: str
    model_max_length: Count
    vocab_size: Count
    add_bos_token: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class Version(Response):
    """The answer of /version."""

    version: str


def _describe(model: ServedModel, name: str, created: int) -> Model:
    alias = name.rpartition(":")[2] if name != model.name else None
    return Model(
        id=name,
        object="model",
        created=created,
        owned_by="lightcone",
        root=model.name,
        parent=None if alias is None else model.name,
        max_model_len=model.info.max_model_len,
        decoding=alias or model.info.default_decoding,
        decodings=[alias] if alias else list(model.info.decodings),
        block_length=model.info.block_length,
        threshold=model.info.default_threshold,
        max_denoising_steps=model.info.default_steps,
        remaskings=list(model.info.remaskings),
        editings=[setting.name for setting in model.info.edit_settings],
        context_cache=model.info.context_cache,
        dtype=model.info.dtype,
        quantization=model.info.quantization,
    )


def _load_state(service: Service) -> LoadState | msgspec.UnsetType:
    progress = service.loading.progress
    if progress is None:
        return msgspec.UNSET
    return LoadState(**msgspec.structs.asdict(progress), seconds=round(service.loading.seconds, 1))


@router.get("/v1/models")
async def list_models(request: Request) -> HttpResponse:
    """The served model and its aliases, one a decoding mode. 503 until the model is loaded."""
    model, created = service_of(request).require_model(), request.app.state.created
    return json_response(ModelList(object="list", data=[_describe(model, name, created) for name in model.names]))


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> HttpResponse:
    """One model or alias. 404 for a name that is not served."""
    model = service_of(request).require_model()
    model.check_name(name)
    return json_response(_describe(model, name, request.app.state.created))


@router.get("/health")
async def health(request: Request) -> HttpResponse:
    """Liveness, answered from memory. 503 only when the server has given up."""
    service = service_of(request)
    body = Health(
        status=service.state,
        engine=service.engine.state.value,
        restarts=service.engine.restarts,
        loading=_load_state(service),
    )
    return json_response(body, 503 if service.state == "failed" else 200)


@router.get("/ready")
async def ready(request: Request) -> HttpResponse:
    """Readiness. 200 only when the model is loaded, the engine alive and nothing is draining."""
    service = service_of(request)
    if service.ready:
        return json_response(Ready(status="ready"))
    return json_response(Ready(status=service.state, loading=_load_state(service)), 503, {"Retry-After": "1"})


@router.get("/ping")
async def ping(request: Request) -> HttpResponse:
    """As /health, for platforms that probe this path."""
    return await health(request)


@router.get("/load")
async def load(request: Request) -> HttpResponse:
    """How many answers are being waited for, for balancers that ask."""
    return json_response(Load(server_load=len(service_of(request).engine.in_flight)))


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> HttpResponse:
    """The model's special tokens and its chat template, for evaluations that build their prompts themselves."""
    model = service_of(request).require_model()
    named = model.tokenizer.special_texts
    return json_response(
        TokenizerInfo(
            tokenizer_class="PreTrainedTokenizerFast",
            model_max_length=model.info.max_model_len,
            vocab_size=model.info.vocab_size,
            add_bos_token=model.tokenizer.adds_bos,
            bos_token=named.get("bos_token"),
            eos_token=named.get("eos_token"),
            pad_token=named.get("pad_token"),
            unk_token=named.get("unk_token"),
            chat_template=model.tokenizer.chat_template,
        )
    )


@router.get("/version")
async def get_version() -> HttpResponse:
    """The installed version."""
    return json_response(Version(version=VERSION))


@router.get("/metrics")
async def metrics(request: Request) -> HttpResponse:
    """The metrics in Prometheus's exposition format."""
    return HttpResponse(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})
