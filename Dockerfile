# A CPU image by default; for CUDA:
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 -t sra .
# Run it on a folder of yours:
#   docker run --rm --gpus all -v "$PWD:/workspace" sra sra-data align --teacher ... --student ...
FROM python:3.12-slim

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/sra
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --index-url "${TORCH_INDEX_URL}" "$(grep '^torch==' constraints.txt)"
COPY sra_data ./sra_data
COPY sra_train ./sra_train
RUN pip install -c constraints.txt ".[lora]"

RUN useradd --create-home --uid 1000 sra && mkdir /workspace && chown sra /workspace
USER sra
WORKDIR /workspace

CMD ["sra-data", "--help"]
