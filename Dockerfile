# Two stages: llama.cpp is compiled in the first, the second carries only what runs.
#   docker build -t shardnet .
#   docker run --network host -v shardnet-home:/home/shardnet/.shardnet -v "$PWD/models_cache:/models_cache" shardnet node
# For CUDA: base both stages on an image with the CUDA toolkit and build with --build-arg CMAKE_ARGS=-DGGML_CUDA=on
FROM python:3.11-slim AS build
ARG CMAKE_ARGS=-DGGML_NATIVE=off
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY shardnet ./shardnet
# As in the Makefile: without what shardnet never loads.
RUN python -m venv /opt/shardnet \
    && CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/shardnet/inference/llama/native/llama.cmake ${CMAKE_ARGS}" \
    /opt/shardnet/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock \
    && /opt/shardnet/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home shardnet \
    && mkdir /models_cache && chown shardnet /models_cache
COPY --from=build /opt/shardnet /opt/shardnet
ENV PATH=/opt/shardnet/bin:$PATH
USER shardnet
WORKDIR /
VOLUME ["/home/shardnet/.shardnet", "/models_cache"]
ENTRYPOINT ["shardnet"]
CMD ["--help"]
