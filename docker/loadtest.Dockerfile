# The load tester: `tokenclock`, and `locust` with its page. compose.yaml builds and runs it; without compose:
#
#   docker build -f docker/loadtest.Dockerfile -t tokenclock-loadtest .
#   docker run --rm --network host tokenclock-loadtest probe http://127.0.0.1:8000/v1
#
# From a mirror: --build-arg BASE=...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=loadtest,http2,hub,sagemaker,tokenizer
WORKDIR /build
# The virtual environment holds no pip: the base's installs into it, and stays behind.
RUN python -m venv --without-pip /opt/tokenclock
COPY constraints.txt pyproject.toml README.md LICENSE ./
# First the dependencies, over an empty package: a change of ours doesn't fetch them again.
RUN mkdir loadtest \
 && touch loadtest/__init__.py \
 && python -m pip --python /opt/tokenclock/bin/python install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
COPY loadtest loadtest
RUN python -m pip --python /opt/tokenclock/bin/python install --no-cache-dir --no-deps --force-reinstall . \
 && ln -s /opt/tokenclock/lib/python3*/site-packages/loadtest /opt/tokenclock/loadtest

FROM ${BASE} AS loadtest
RUN useradd --no-log-init --uid 10001 --create-home tokenclock \
 && install --directory --owner=10001 /home/tokenclock/results
COPY --from=build /opt/tokenclock /opt/tokenclock
# What `locust` finds in the repository's root it finds here: its settings, and the locustfile that they name.
COPY pyproject.toml /home/tokenclock/
RUN ln -s /opt/tokenclock/loadtest /home/tokenclock/loadtest
ENV PATH=/opt/tokenclock/bin:$PATH \
    XDG_CACHE_HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    HF_HUB_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /home/tokenclock
# Exec form: SIGTERM ends a run with a report. `--entrypoint locust` for plain locust.
ENTRYPOINT ["tokenclock"]
CMD ["--help"]
