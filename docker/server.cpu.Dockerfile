# The server on a CPU. compose.yaml builds and runs it; without compose:
#
#   docker build -f docker/server.cpu.Dockerfile -t tokenclock-server .
#   docker run --rm --init -p 127.0.0.1:8080:8080 tokenclock-server
#
# For SageMaker, which expects root: --build-arg RUN_AS=0. From a mirror: --build-arg BASE=...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
# The virtual environment holds no pip: the base's installs into it, and stays behind.
RUN python -m venv --without-pip /opt/tokenclock
COPY constraints.txt ./
# Torch comes from this one index, so that PyPI's gigabytes of CUDA never do. Its tests and C++ headers stay behind.
RUN python -m pip --python /opt/tokenclock/bin/python install --no-cache-dir --no-deps --retries 1 --timeout 20 \
      --index-url "${TORCH_INDEX}" --constraint constraints.txt torch \
 && rm -r /opt/tokenclock/lib/python3*/site-packages/torch/test /opt/tokenclock/lib/python3*/site-packages/torch/include \
 && find /opt/tokenclock/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete
# First the dependencies, over an empty package: a change of ours doesn't fetch them again.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir server \
 && touch server/__init__.py \
 && python -m pip --python /opt/tokenclock/bin/python install --no-cache-dir --constraint constraints.txt '.[cpu]'
COPY server server
RUN python -m pip --python /opt/tokenclock/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM ${BASE} AS server
ARG RUN_AS=10001
RUN useradd --no-log-init --uid 10001 --create-home tokenclock \
 && install --directory --owner="${RUN_AS}" /models
COPY --from=build /opt/tokenclock /opt/tokenclock
# The linter takes the TOKEN of TOKENCLOCK for a secret.
# hadolint ignore=DL3064
ENV PATH=/opt/tokenclock/bin:$PATH \
    TOKENCLOCK_BACKEND=cpu \
    TOKENCLOCK_HOST=0.0.0.0 \
    TOKENCLOCK_PORT=8080 \
    HF_HUB_DISABLE_TELEMETRY=1
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=false
EXPOSE 8080
# 503 until the model is loaded. By bash's own sockets: 3 ms of CPU, where a Python takes 80 from what is measured.
HEALTHCHECK --start-period=15m --interval=5s --timeout=5s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$TOKENCLOCK_PORT && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
USER ${RUN_AS}
WORKDIR /home/tokenclock
# Exec form: SIGTERM reaches the server, and `docker run IMAGE serve` says what CMD says.
ENTRYPOINT ["tokenclock-server"]
CMD ["serve"]
