# The server on AWS Inferentia2: this repository on AWS's inference image, whose torch 2.8, compiler, runtime (SDK 2.26.1)
# and Python 3.11 are the ones that optimum-neuron 0.4.5 asks for.
#
#   docker build -f docker/server.neuron.Dockerfile -t tokenclock-neuron .
#   docker build -f docker/server.neuron.Dockerfile --target sagemaker -t tokenclock-neuron:sagemaker .
#
# The same steps on a machine without a device:
#   docker build -f docker/server.neuron.Dockerfile --build-arg BASE=python:3.11-slim --build-arg EXTRA=cpu -t tokenclock-cpu .
#   docker run --rm -e TOKENCLOCK_BACKEND=cpu -p 127.0.0.1:8080:8080 tokenclock-cpu
#
# Source of the base: aws-neuron/deep-learning-containers@2.26.1, pytorch/inference/2.8.0/Dockerfile.neuronx.
ARG BASE=public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04

# SageMaker expects containers to run as root; docs/deploy-sagemaker.md. Everything but the user is decided here.
FROM ${BASE} AS sagemaker
ARG EXTRA=neuron
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/tokenclock

# What pip may choose. Of what the base holds, torch, the Neuron packages and what those are bound to stay to the letter;
# the rest may be raised where it must. What it doesn't hold, and the Hugging Face packages, come as tested:
# constraints.txt, with optimum-neuron 0.4.5.
COPY constraints.txt ./
RUN python -m pip list --format=freeze > /tmp/held.txt \
 && if [ "${EXTRA}" = neuron ] && ! grep -q '^torch[-_]neuronx==2\.8\.' /tmp/held.txt; then \
      echo 'BASE holds no torch-neuronx 2.8, which optimum-neuron 0.4.5 needs; for a CPU say --build-arg EXTRA=cpu' >&2; \
      exit 1; \
    fi \
 && awk -F == ' \
      { name = tolower($1); gsub(/[-_.]+/, "-", name) } \
      NR == FNR { held[name] = 1 } \
      NR == FNR && name ~ /^(torch|neuron|libneuron|nki|numpy|scipy|protobuf|networkx|ml-dtypes)/ { print } \
      NR > FNR && (!(name in held) || name ~ /^(transformers|tokenizers|huggingface-hub|safetensors|optimum.*)$/) { print } \
    ' /tmp/held.txt constraints.txt > pins.txt \
 && grep -q '^optimum-neuron==0\.4\.5$' pins.txt

# PyPI's torch brings gigabytes of CUDA; PyTorch's own index has a CPU build. On Neuron torch is there already.
RUN if [ "${EXTRA}" = cpu ]; then \
      python -m pip install --no-cache-dir --retries 1 --timeout 20 --extra-index-url "${TORCH_INDEX}" --constraint pins.txt torch; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY server server
RUN python -m pip install --no-cache-dir --constraint pins.txt ".[${EXTRA}]"

# The linter takes the TOKEN of TOKENCLOCK for a secret.
# hadolint ignore=DL3064
ENV TOKENCLOCK_BACKEND=neuron \
    TOKENCLOCK_HOST=0.0.0.0 \
    TOKENCLOCK_PORT=8080 \
    HF_HUB_DISABLE_TELEMETRY=1
# The base says that it listens where SAGEMAKER_BIND_TO_PORT tells it to. This server doesn't: TOKENCLOCK_PORT, else 8080.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=false
EXPOSE 8080
# Until the weights are on the device /health is 503. Fifteen minutes of that are no failure.
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['TOKENCLOCK_PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
# Exec form: SIGTERM reaches the server, and `docker run IMAGE serve` says what CMD says.
ENTRYPOINT ["tokenclock-server"]
CMD ["serve"]

# Everywhere else: no root. The driver's udev rule makes /dev/neuron* readable and writable by everyone.
FROM sagemaker AS server
RUN useradd --no-log-init --uid 10001 --create-home tokenclock \
 && install --directory --owner=tokenclock /models
USER 10001
WORKDIR /home/tokenclock
