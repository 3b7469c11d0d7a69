# syntax=docker/dockerfile:1
# One image for the web server, the workers, beat and the migrations; docker-compose.yml says which command runs where.
# The last stage is built unless another is named: `--target cuda` builds the one for NVIDIA graphics cards.
# It writes to /data and /tmp alone, and runs as any user of the group 0: the root file system may be read-only.

FROM node:22-slim AS assets
WORKDIR /assets
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

# The guide under /help. What builds it stays in this stage: only its pages get into the image.
FROM python:3.11-slim AS guide
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 NO_MKDOCS_2_WARNING=1
WORKDIR /guide
COPY pyproject.toml constraints.txt ./
# The extra `docs` without Illume, whose docstrings are read from the files.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])' \
  | xargs pip install --constraint constraints.txt
COPY mkdocs.yml ./
COPY bench/RESULTS.md bench/RESULTS.md
COPY tools/docs_hooks.py tools/docs_hooks.py
COPY docs docs
COPY illume illume
COPY static static
RUN python -m mkdocs build --quiet

FROM python:3.11-slim AS illume
# An additional package index, for example for the CPU builds of torch: docker compose build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=
# Extras of Illume, separated by commas, such as `s3`.
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Any user may run this: HOME and USER stand in for the line of /etc/passwd that an arbitrary user does not have.
ENV HOME=/data USER=illume ILLUME_DATA_DIR=/data HF_HOME=/data/huggingface

RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /data illume \
 && install -d -o 10001 -g 0 -m 0770 /data
WORKDIR /srv/illume

# The packages come first because they change less often than the code.
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE NOTICE ./
RUN mkdir app illume worker \
 && touch app/__init__.py illume/__init__.py worker/__init__.py \
 && pip install --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}"

COPY app app
COPY illume illume
COPY worker worker
COPY migrations migrations
COPY templates templates
COPY static static
COPY starter starter
COPY --from=assets /assets/node_modules/htmx.org/dist/htmx.min.js static/vendor/htmx.min.js
COPY --from=assets /assets/node_modules/chartist/dist/index.umd.js static/vendor/chartist.js
COPY --from=guide /guide/static/help static/help
# The modes of a checkout are those of its owner: everybody may read here, and nobody but root may write.
RUN chmod -R u=rwX,go=rX .

# A number, not a name: Kubernetes checks `runAsNonRoot` by it.
USER 10001:0
VOLUME /data
EXPOSE 8000
CMD ["illume", "serve"]

FROM illume AS cuda
# The driver comes from the host. The torch of PyPI for Linux on x86-64 brings CUDA; the build fails where it does not.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -c 'import torch; assert torch.version.cuda, "this torch was built without CUDA"'

FROM illume
