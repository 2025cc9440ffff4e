# The pipeline on processors, from the locked versions: `docker build -t sam-distillery .`
# Runs as an ordinary user in a checkout mounted at /work: `docker run -v "$PWD:/work" sam-distillery distill --student ...`
FROM python:3.13-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock .
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir "uv>=0.9,<1" \
    && /venv/bin/uv pip sync --python /venv/bin/python --require-hashes --no-cache requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY presets presets
COPY pipeline pipeline
COPY flows flows
RUN /venv/bin/uv pip install --python /venv/bin/python --no-deps --no-cache .

FROM python:3.13-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 distiller
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true
USER 1001
WORKDIR /work
ENTRYPOINT ["sam-distillery"]
CMD ["--help"]
