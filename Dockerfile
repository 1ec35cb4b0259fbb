# The server's image, and with `--target data` one that adds numpy, pandas and matplotlib:
#
#   docker build -t notebook-runner:0.1.0 .
#
# docs/how-to/deploy.md explains how to run it and how to add packages and kernels.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS init
RUN apt-get update && apt-get install --yes --no-install-recommends tini

FROM ${BASE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/notebook-runner
COPY image/server.lock /locks/
RUN /opt/notebook-runner/bin/pip install --quiet --require-hashes --requirement /locks/server.lock \
 && /opt/notebook-runner/bin/pip freeze --all > /opt/notebook-runner/constraints.txt

# The project has its own layer: it changes with each release, its dependencies rarely do.
FROM dependencies AS project
COPY image/build.lock /locks/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --quiet --require-hashes --requirement /locks/build.lock
COPY pyproject.toml README.md LICENSE /source/
COPY client /source/client
COPY server /source/server
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels /source \
 && /opt/notebook-runner/bin/pip install --quiet --no-deps --no-index --prefix /project /wheels/*.whl

FROM dependencies AS data-dependencies
COPY image/data.lock /locks/
# Packages that are already installed stay out of this layer.
RUN /opt/notebook-runner/bin/pip install --quiet --require-hashes --prefix /data --requirement /locks/data.lock

FROM ${BASE} AS runner
LABEL org.opencontainers.image.title="notebook-runner" \
      org.opencontainers.image.description="Executes Jupyter notebooks on demand over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=init /usr/bin/tini-static /usr/local/bin/tini
# A numeric id, so that Kubernetes can verify that it is not root.
RUN groupadd --gid 65532 notebook-runner \
 && useradd --uid 65532 --gid 65532 --create-home --shell /usr/sbin/nologin notebook-runner \
 && install --directory --owner 65532 --group 65532 --mode 0700 /var/lib/notebook-runner \
 && install --directory /notebooks
COPY --from=dependencies /opt/notebook-runner /opt/notebook-runner
COPY --from=project /project /opt/notebook-runner
# Only a container's own processes can reach its loopback address. Without TLS and tokens, the server refuses to
# listen on this address, and says what to add.
ENV PATH=/opt/notebook-runner/bin:$PATH \
    NOTEBOOK_RUNNER_LISTEN=0.0.0.0:50051 \
    NOTEBOOK_RUNNER_STATE_DIR=/var/lib/notebook-runner/state \
    NOTEBOOK_RUNNER_NOTEBOOK_ROOT=/notebooks
USER 65532:65532
WORKDIR /var/lib/notebook-runner
EXPOSE 50051
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["notebook-runner", "health"]
# tini reaps orphaned processes of notebooks and forwards SIGTERM.
ENTRYPOINT ["tini", "--", "notebook-runner-server"]

FROM runner AS data
COPY --from=data-dependencies /data /opt/notebook-runner

# The default target.
FROM runner
