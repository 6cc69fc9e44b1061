# anomics with all it needs; it reads and writes the folder mounted at /data (docs/running.md).
FROM python:3.12-slim

# Where pip gets torch. Empty: its usual place, whose build for Linux brings CUDA along and runs on
# machines without a GPU too. The address of an index of CPU builds saves several GB.
ARG TORCH_INDEX=""

WORKDIR /anomics
COPY requirements.txt constraints.txt ./
RUN grep '^torch==' requirements.txt > torch.txt \
    && PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir -r torch.txt \
    && pip install --no-cache-dir -r requirements.txt -c constraints.txt
COPY Snakefile config.yaml ./
COPY workflow workflow
COPY profiles profiles
COPY envs envs

RUN install --directory --owner=1000 /data
USER 1000
WORKDIR /data
# The cache folders, of whatever user it runs as, lie under HOME.
ENV HOME=/tmp OMP_NUM_THREADS=1
ENTRYPOINT ["snakemake", "--snakefile", "/anomics/Snakefile"]
CMD ["--cores", "2"]
