# docker build -t autoexplore .                              torch for CPUs
# docker build -t autoexplore --build-arg COMPUTE=cuda .     torch with CUDA; run with --gpus all
# docker run --rm --shm-size=2g -v $PWD/runs:/work/runs autoexplore pipeline --preset cpu --out runs/demo
FROM python:3.11-slim-bookworm
ARG COMPUTE=cpu
# The games' cores and OpenCV need these at run time; nothing is compiled.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 rsync \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/autoexplore
COPY requirements.lock .
# PyPI's torch brings CUDA along; the CPU build fits the same pin and is a tenth of its size.
RUN if [ "$COMPUTE" = cpu ]; then \
        pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements.lock)"; \
    elif [ "$COMPUTE" != cuda ]; then echo "COMPUTE=$COMPUTE: choose cpu or cuda" >&2; exit 2; fi \
    && pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . && python -m envs.roms \
    && useradd --create-home player && mkdir /work && chown player /work
USER player
WORKDIR /work
ENV RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
ENTRYPOINT ["autoexplore"]
CMD ["--help"]
