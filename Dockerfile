# sirius serve in a container. CPU:   docker build -t sirius .
# CUDA:  docker build -t sirius --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#        docker run --gpus all …   (torch's wheels bring CUDA's libraries; the host needs the driver alone)
# Run:   docker run -p 8000:8000 -v ./runs/mine:/run/model:ro -e SIRIUS_API_KEYS=… sirius
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

WORKDIR /opt/sirius
COPY constraints.txt ./
# torch first and alone: the layer of gigabytes stays while the project changes.
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt torch numpy
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt '.[train,serve]'

# A run folder is only read; what is written goes to the cache.
RUN useradd --create-home sirius
USER sirius
ENV SIRIUS_CACHE=/home/sirius/cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=15s CMD \
  ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
ENTRYPOINT ["sirius"]
CMD ["serve", "/run/model", "--host", "0.0.0.0"]
