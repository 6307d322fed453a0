# A CPU image by default; for CUDA:
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 -t sra .
# Run it on a folder of yours, as yourself, so that what it writes is yours; the volume keeps the Hub's downloads:
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/workspace" -v sra-hub:/hub \
#     sra sra-data align --teacher ... --student ...
FROM python:3.12-slim

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/hub \
    HOME=/tmp

WORKDIR /opt/sra
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --index-url "${TORCH_INDEX_URL}" "$(grep '^torch==' constraints.txt)"
COPY sra_data ./sra_data
COPY sra_train ./sra_train
RUN pip install -c constraints.txt ".[lora]"

# Whoever it runs as may write to both; a new volume takes over the mode of /hub.
RUN mkdir -m 1777 /workspace /hub
VOLUME /hub
USER 1000:1000
WORKDIR /workspace

CMD ["sra-data", "--help"]
