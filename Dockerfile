# sideswarmd as a container beside the engine that it serves:
#
#   docker build -t sideswarm .
#   docker run -d --name sideswarmd --restart always --network host --uts host \
#     -v /run:/run -v /var/lib/sideswarm:/var/lib/sideswarm sideswarm --engine unix:///run/docker.sock
#   export DOCKER_HOST=unix:///run/sideswarm/docker.sock
#
# The node uses the host's network and host name. /run is shared because the secrets of tasks are files there, which the
# engine mounts into their containers. BASE may be any image with Python 3.11 or newer and its venv module.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
RUN python3 -m venv /opt/sideswarm
COPY requirements/runtime.lock /tmp/
RUN /opt/sideswarm/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/runtime.lock
COPY pyproject.toml README.md LICENSE /src/
COPY certs /src/certs
COPY engine_api /src/engine_api
COPY overlay /src/overlay
COPY swarm /src/swarm
COPY integration /src/integration
RUN /opt/sideswarm/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /src

FROM ${BASE}
COPY --from=build /opt/sideswarm /opt/sideswarm
ENV PATH=/opt/sideswarm/bin:$PATH
ENTRYPOINT ["sideswarmd"]
