# shardnet in a container: for the processor, CUDA or Vulkan, by one build argument (docs/running.md).
#   docker build -t shardnet .                                   the processor alone
#   docker build -t shardnet:cuda --build-arg BACKEND=cuda .     also vulkan
#   docker run --network host -v shardnet-home:/home/shardnet/.shardnet -v "$PWD/models_cache:/models_cache" shardnet node
ARG BACKEND=cpu
# Debian with Python 3.11, for all three: what CUDA and Vulkan need comes out of Debian's own archive.
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS toolchain-cpu
ENV BACKEND_ARGS=""

FROM ${BASE} AS toolchain-vulkan
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libvulkan-dev glslc spirv-headers \
    && rm -rf /var/lib/apt/lists/*
ENV BACKEND_ARGS="-DGGML_VULKAN=on"

FROM ${BASE} AS toolchain-cuda
RUN sed -i 's/^Components: main$/& contrib non-free/' /etc/apt/sources.list.d/debian.sources \
    && apt-get update \
    && apt-get install --yes --no-install-recommends nvidia-cuda-toolkit \
    && rm -rf /var/lib/apt/lists/*
ENV BACKEND_ARGS="-DGGML_CUDA=on"

# llama.cpp is compiled here, and stays compiled until the lock or the arguments change.
FROM toolchain-${BACKEND} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
COPY shardnet/inference/llama/native/llama.cmake shardnet/inference/llama/native/
# One instruction set for every machine that runs this image: AVX2 with FMA and F16C (docs/decisions/0015-instruction-set.md). CMAKE_ARGS comes last and prevails.
ARG CMAKE_ARGS=""
# As in the Makefile: without what shardnet never loads.
RUN python3 -m venv /opt/shardnet \
    && CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" \
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/shardnet/inference/llama/native/llama.cmake -DGGML_NATIVE=off ${BACKEND_ARGS} ${CMAKE_ARGS}" \
    /opt/shardnet/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY shardnet ./shardnet
# CUDA's own libraries go along, those alone that are linked; the driver's comes from the machine that runs the image.
RUN /opt/shardnet/bin/pip install --no-cache-dir --no-deps . \
    && mkdir -p /opt/shardnet/cuda \
    && find /opt/shardnet -name 'libggml-cuda.so' -exec ldd {} + \
    | sed -n 's|.*=> \(/[^ ]*/lib\(cudart\|cublas\|cublasLt\|nccl\)\.so[^ ]*\) .*|\1|p' | sort -u | xargs --no-run-if-empty cp --dereference --target-directory=/opt/shardnet/cuda

FROM ${BASE} AS runtime-cpu

FROM ${BASE} AS runtime-vulkan
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libvulkan1 mesa-vulkan-drivers \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility

FROM ${BASE} AS runtime-cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility LD_LIBRARY_PATH=/opt/shardnet/cuda

FROM runtime-${BACKEND}
ARG BACKEND
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="shardnet" \
    org.opencontainers.image.description="Run one large language model on several ordinary machines" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    net.shardnet.backend="${BACKEND}"
# tini is process 1: it passes signals on, and buries whoever is left to it. Any user may run the image, as long as the group is 0 (docker run
# --user 12345:0, OpenShift): what is written to belongs to that group too.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --gid 0 --no-create-home --home-dir /home/shardnet shardnet \
    && mkdir -p /home/shardnet/.shardnet /models_cache /join/1 /join/2 /join/3 \
    && chown -R 10001:0 /home/shardnet /models_cache /join \
    && chmod -R u=rwX,g=u,o= /home/shardnet /models_cache /join
COPY --from=build /opt/shardnet /opt/shardnet
ENV PATH=/opt/shardnet/bin:$PATH HOME=/home/shardnet SHARDNET_HOME=/home/shardnet/.shardnet LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
USER 10001:0
WORKDIR /
VOLUME ["/home/shardnet/.shardnet", "/models_cache"]
EXPOSE 7700 7701 7702/udp 7710 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["shardnet", "health"]
ENTRYPOINT ["tini", "--", "shardnet"]
CMD ["--help"]
