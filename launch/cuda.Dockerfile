# musicssl on NVIDIA GPUs: launch/image.sh cuda IMAGE
# CUDA comes with jax's packages: the host needs only the driver and the container toolkit.
FROM python:3.12-slim
WORKDIR /musicssl
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "jax[cuda13]"
COPY configs configs
COPY data_pipelines data_pipelines
COPY musicssl musicssl
COPY launch launch
ARG COMMIT=""
ENV MUSICSSL_COMMIT=$COMMIT
ENTRYPOINT ["python", "-m", "musicssl.main"]
