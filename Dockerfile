# A server of bundles, without PyTorch (docs/serving.md). For the CPU, or with a GPU:
#     docker build -t onnxpress .
#     docker build -t onnxpress:gpu --build-arg ACCELERATOR=gpu .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/bundle:/bundles/bundle:ro" onnxpress /bundles/bundle
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG ACCELERATOR=cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY exporter exporter
COPY quantize quantize
COPY runtime runtime
COPY models models
# CUDA and cuDNN are the packages that onnxruntime-gpu asks for, so they fit it whatever its version; no CUDA image is
# needed below them. The driver comes from the host.
RUN case "$ACCELERATOR" in \
        cpu) set -- ".[cpu,serve,traces]" ;; \
        gpu) set -- ".[gpu,serve,traces]" "onnxruntime-gpu[cuda,cudnn]" ;; \
        *) echo "ACCELERATOR is $ACCELERATOR; give cpu or gpu" >&2; exit 1 ;; \
    esac \
    && python -m venv --without-pip /opt/onnxpress \
    && python -m pip --python /opt/onnxpress/bin/python install --no-cache-dir "$@" \
    && mkdir /cache

FROM python:${PYTHON}-slim
COPY --from=build /opt/onnxpress /opt/onnxpress
# Weights that workers share, engines, figures: what can be made again. All else may be read-only.
COPY --from=build --chown=10001:10001 /cache /cache
ENV PATH=/opt/onnxpress/bin:$PATH \
    HOME=/cache \
    ONNXPRESS_CACHE=/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# With TLS or another port: -e HEALTH_URL=https://127.0.0.1:8000/health/ready
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; r.urlopen(os.environ.get('HEALTH_URL', 'http://127.0.0.1:8000/health/ready'), timeout=4, context=ssl._create_unverified_context())"]
# A list, so that the server itself is the process that gets the signal to end.
ENTRYPOINT ["onnxpress", "serve", "--host", "0.0.0.0"]
CMD ["/bundle"]
