# docker build -t autoexplore .                              torch for CPUs
# docker build -t autoexplore --build-arg COMPUTE=cuda .     torch with CUDA; run with --gpus all
# docker run --rm --shm-size=2g -v $PWD/runs:/work/runs autoexplore pipeline --preset cpu --out runs/demo
# With `-v $PWD/roms:/roms -e AUTOEXPLORE_ROMS=/roms --entrypoint bash`, `python -m envs.roms` imports your ROMs.
FROM python:3.11-slim-bookworm
ARG COMPUTE=cpu
# The games' cores and OpenCV need the libraries at run time; nothing is compiled. On a cluster Ray copies files with
# rsync, its autoscaler on the head reaches the other machines by ssh, and KubeRay asks for a node's health with wget.
RUN apt-get update && apt-get install -y --no-install-recommends \
        libgl1 libglib2.0-0 libgomp1 openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/autoexplore
COPY requirements.lock .
# PyPI's torch brings CUDA along; the CPU build fits the same pin and is a tenth of its size.
RUN if [ "$COMPUTE" = cpu ]; then \
        pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements.lock)"; \
    elif [ "$COMPUTE" != cuda ]; then echo "COMPUTE=$COMPUTE: choose cpu or cuda" >&2; exit 2; fi \
    && pip install --no-cache-dir -r requirements.lock
COPY . .
# The player owns the games' folders, where ROMs are stored, and ~/.ray, where a cluster mounts its token. Its id 1000
# is that of the first user of most machines, so that both can write to a shared folder.
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . && python -m envs.roms \
    && useradd --create-home --uid 1000 player && install -d -o player /work /home/player/.ray \
    && find "$(python -c 'import stable_retro.data as data; print(data.path())')" -type d -exec chown player {} +
USER player
WORKDIR /work
# Ray's cluster launcher reads HOME from the image to mount files there.
ENV HOME=/home/player RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
ENTRYPOINT ["autoexplore"]
CMD ["--help"]
