# The pipeline's environment, from the same lock as `make demo`. It could not be built where it was written: no Docker there.
#   docker build -t lucavirus .
#   docker run --gpus all --ipc=host --network=host -u "$(id -u):$(id -g)" -v "$PWD":/clone -w /clone lucavirus snakemake train_full
# The clone is mounted, so that results/ and work/ stay outside of the image. Trainings share the GPUs out among themselves by
# names that are known within one network namespace: the host's.
FROM python:3.11-slim-bookworm

# gcc: torch compiles layers for GPUs with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev procps \
    && rm -rf /var/lib/apt/lists/*

# torch's wheel brings its CUDA libraries; the driver is the host's.
COPY requirements.lock /opt/lucavirus/
RUN python -m venv /opt/lucavirus/venv \
    && /opt/lucavirus/venv/bin/pip install --no-cache-dir --requirement /opt/lucavirus/requirements.lock

# A user without a name has no home folder, where Snakemake keeps a cache, and Snakemake asks for the name.
ENV PATH=/opt/lucavirus/venv/bin:$PATH HOME=/tmp USER=lucavirus
