# Build:  docker build -t streamadapt .
#   --build-arg TORCH_INDEX=URL  an extra package index that has PyTorch's CPU builds: without it the image works too,
#                                but contains the CUDA libraries, several gigabytes
#   --build-arg EXTRAS=[onnx]    extras to install: onnx for ONNX models, object-store for checkpoints in an object store
# Run:    docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#             -v ./config.toml:/config.toml:ro -v state:/state streamadapt

FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/streamadapt
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY streamadapt streamadapt
COPY connectors connectors
RUN /opt/streamadapt/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".$EXTRAS"
# Kernels for any x86-64 or ARM processor, compiled now: a container's root may be read-only.
ENV STREAMADAPT_CACHE=/opt/streamadapt/kernels NUMBA_CPU_NAME=generic
RUN /opt/streamadapt/bin/streamadapt warm

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /state streamadapt \
    && install -d -o streamadapt -g streamadapt /state
COPY --from=build /opt/streamadapt /opt/streamadapt
# Only /state is written to (no bytecode elsewhere), so the root file system may be read-only.
ENV PATH=/opt/streamadapt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    STREAMADAPT_CACHE=/opt/streamadapt/kernels NUMBA_CPU_NAME=generic
WORKDIR /state
VOLUME /state
USER 10001
EXPOSE 9108
ENTRYPOINT ["streamadapt"]
CMD ["run", "/config.toml"]
