# musicssl on TPUs: launch/image.sh tpu IMAGE
FROM python:3.12-slim
WORKDIR /musicssl
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "jax[tpu]"
COPY configs configs
COPY data_pipelines data_pipelines
COPY musicssl musicssl
COPY launch launch
ARG COMMIT=""
ENV MUSICSSL_COMMIT=$COMMIT
ENTRYPOINT ["python", "-m", "musicssl.main"]
