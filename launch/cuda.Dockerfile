# musicssl on NVIDIA GPUs: docker build -f launch/cuda.Dockerfile -t IMAGE .
# CUDA comes with jax's packages: the host needs the driver and the container toolkit alone.
FROM python:3.12-slim
WORKDIR /musicssl
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "jax[cuda13]"
COPY configs configs
COPY data_pipelines data_pipelines
COPY musicssl musicssl
COPY launch launch
ENTRYPOINT ["python", "-m", "musicssl.main"]
