# Two images of one server:
#   docker build --target cpu  --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels> -t lightcone:cpu .
#   docker build --target cuda -t lightcone:cuda .
# TORCH_INDEX is an extra index for torch's wheels. Without it both targets hold the default build of torch, which brings
# the CUDA libraries along: it runs on a CPU too, in an image some gigabytes larger. No model is downloaded at build.

FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/lightcone
COPY constraints.txt ./
# A layer of its own: by far the largest part, and the one that changes least.
RUN /opt/lightcone/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY engine/ engine/
COPY server/ server/
COPY bench/ bench/
COPY loadtest/ loadtest/
RUN /opt/lightcone/bin/pip install -c constraints.txt '.[tracing]'

FROM python:3.11-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 lightcone \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lightcone \
    && install -d -o lightcone -g lightcone /models
COPY --from=build /opt/lightcone /opt/lightcone
COPY configs/ /etc/lightcone/
# Only /tmp and, where models are fetched from the hub, /models are ever written: the root file system can be read-only.
ENV PATH=/opt/lightcone/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/models \
    HF_HUB_DISABLE_TELEMETRY=1 \
    LIGHTCONE_HOST=0.0.0.0 \
    LIGHTCONE_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Liveness: 200 while the model loads, 503 once the server has given up. For readiness ask /ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['LIGHTCONE_PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
# No shell between: tini hands SIGTERM on to the server, from its first moment on, and reaps what others leave behind.
ENTRYPOINT ["tini", "--", "lightcone"]
CMD ["serve"]

FROM base AS cuda
USER root
# Kernels are compiled on first use: Triton calls a C compiler and loads what it built from /tmp, which must allow exec.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/tmp/triton
USER 10001:10001

FROM base AS cpu
