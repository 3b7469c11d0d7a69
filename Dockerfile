# syntax=docker/dockerfile:1
# One image for the web server, the workers, beat and the migrations; docker-compose.yml says which command runs where.

FROM node:22-slim AS assets
WORKDIR /assets
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM python:3.11-slim
# An additional package index, for example for the CPU builds of torch: docker compose build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN groupadd --gid 10001 illume \
 && useradd --uid 10001 --gid illume --create-home illume \
 && install -d -o illume -g illume /data
WORKDIR /srv/illume

# The packages come first because they change less often than the code.
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE NOTICE ./
RUN mkdir app illume worker \
 && touch app/__init__.py illume/__init__.py worker/__init__.py \
 && pip install --constraint constraints.txt --editable .

COPY app app
COPY illume illume
COPY worker worker
COPY migrations migrations
COPY templates templates
COPY static static
COPY starter starter
COPY --from=assets /assets/node_modules/htmx.org/dist/htmx.min.js static/vendor/htmx.min.js
COPY --from=assets /assets/node_modules/chartist/dist/index.umd.js static/vendor/chartist.js

USER illume
VOLUME /data
EXPOSE 8000
CMD ["illume", "serve"]
