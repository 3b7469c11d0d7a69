"""docker-compose.yml: the specification's schema takes it, and what its containers run works on this machine too.

No Docker engine is needed: commands, environments and health checks are those of the file, with addresses exchanged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from sqlalchemy.engine import make_url

from app.cli.server import demo
from app.db.engine import sqlalchemy_url
from app.processes.embedded import Embedded, free_port, redis_program
from app.processes.postgres_install import find_binaries
from app.processes.supervise import start_child, stop_child
from app.settings import ROOT, get_settings
from tests.conftest import maintenance, numbers

HEALTHY_SECONDS = 200.0  # on a busy machine
OURS = ("migrate", "web", "worker-default", "worker-model", "beat")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of an .env that tools/make-env wrote."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "make-env", folder / "tools")
    shutil.copy(ROOT / ".env.example", folder)
    subprocess.run([folder / "tools" / "make-env"], check=True)
    made = folder / ".env"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    before = made.read_text()
    subprocess.run([folder / "tools" / "make-env"], check=True)
    assert made.read_text() == before
    return dict(line.split("=", 1) for line in before.splitlines() if line and not line.startswith("#"))


def filled(text: str, variables: Mapping[str, str]) -> str:
    """`text` with variables put in as Compose does it; one that is required and empty is an error."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        found = variables.get(match["name"], "")
        if match["how"] == ":?":
            assert found, f"{match['name']} is not set"
        return found or match["default"]

    return re.sub(r"(?P<dollar>\$\$)|\$\{(?P<name>\w+)(?P<how>:[-?])(?P<default>[^}]*)\}", value, text)


def environment_of(service: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """The environment of a service."""
    return {name: filled(str(value), secrets) for name, value in SERVICES[service].get("environment", {}).items()}


def compose_schema() -> Any:
    """What checks a file against the Compose specification."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


class TestFile:
    def test_the_specification_takes_it(self) -> None:
        validator = compose_schema()
        validator.validate(COMPOSE)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**COMPOSE, "services": {"web": {"comand": "illume serve"}}})

    def test_only_the_web_server_is_published_and_only_here(self) -> None:
        assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
            "web": ["127.0.0.1:8000:8000"]
        }
        for service in SERVICES.values():
            assert not {"network_mode", "expose"} & set(service)

    def test_it_holds_no_secret(self, secrets: Mapping[str, str]) -> None:
        kept = [name for name in secrets if "PASSWORD" in name or "KEY" in name]
        assert sorted(kept) == ["ILLUME_SECRET_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD"]
        assert all(len(secrets[name]) == 64 for name in kept)
        text = (ROOT / "docker-compose.yml").read_text()
        for name in kept:
            assert re.findall(rf"\$\{{{name}[^}}]*\}}", text)
            assert set(re.findall(rf"\$\{{{name}(..)", text)) == {":?"}

    def test_other_settings_come_from_a_file_that_may_be_missing(self) -> None:
        page = (ROOT / "docs" / "containers.md").read_text()
        named = set(re.findall(r"^(AWS_\w+|ILLUME_\w+)=", page, re.MULTILINE))
        assert {"AWS_SECRET_ACCESS_KEY", "ILLUME_QUANTIZATION", "ILLUME_ACCELERATE_CONFIG"} <= named
        assert ".env.services" in (ROOT / ".gitignore").read_text().splitlines()
        for name, service in SERVICES.items():
            given = [{"path": ".env.services", "required": False}] if name in OURS else None
            assert service.get("env_file") == given
            assert named.isdisjoint(service.get("environment", {}))  # which would win

    def test_it_runs_what_the_demo_runs(self) -> None:
        def essence(words: list[str]) -> list[str]:
            return [word for word in words if word not in ("illume", "worker")]

        of_demo = {child.name: demo.commands()[child.name] for child in demo.processes(get_settings())}
        for name, command in of_demo.items():
            assert essence(command[3:]) == essence(SERVICES[name]["command"])
        assert set(SERVICES) == {"postgres", "redis", "migrate", *of_demo}

    def test_each_waits_for_what_it_needs(self) -> None:
        assert set(SERVICES["migrate"]["depends_on"]) == {"postgres"}
        for name in OURS[1:]:
            assert set(SERVICES[name]["depends_on"]) == {"migrate", "redis"}
        assert all("healthcheck" in service for name, service in SERVICES.items() if name != "migrate")

    def test_the_addresses_are_those_of_its_services(self, secrets: Mapping[str, str]) -> None:
        for name in OURS:
            environment = environment_of(name, secrets)
            database = make_url(sqlalchemy_url(environment["ILLUME_DATABASE_URL"]))
            of_server = environment_of("postgres", secrets)
            assert (database.host, database.port, database.username, database.password, database.database) == (
                "postgres",
                5432,
                of_server["POSTGRES_USER"],
                of_server["POSTGRES_PASSWORD"],
                of_server["POSTGRES_DB"],
            )
            assert environment["ILLUME_REDIS_URL"] == f"redis://:{secrets['REDIS_PASSWORD']}@redis:6379/0"

    def test_they_write_to_the_volumes_alone(self) -> None:
        for name in OURS:
            service = SERVICES[name]
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert filled(service["user"], {}) == "10001:0"
            assert [filled(one, {}) for one in service["volumes"]] == ["data:/data", "/tmp"]  # noqa: S108 - in the container
            assert filled(service["volumes"][0], {"CONTAINER_DATA": "/srv/illume"}) == "/srv/illume:/data"

    def test_the_specification_takes_the_addition_for_graphics_cards(self) -> None:
        addition = yaml.safe_load((ROOT / "docker-compose.cuda.yml").read_text())
        compose_schema().validate(addition)
        assert set(addition["services"]) <= set(SERVICES)
        assert addition["services"]["worker-model"]["build"]["target"] in stages()


def stages() -> dict[str, list[str]]:
    """The stages of the Dockerfile by name, the last one as "": each with its instructions, comments left out."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for line in (line for line in text.splitlines() if line.strip() and not line.startswith("#")):
        if line.startswith("FROM "):
            name = line.partition(" AS ")[2]
            found[name] = []
        found[name].append(line)
    return found


class TestImage:
    def test_any_user_of_the_group_0_may_run_it(self) -> None:
        image = stages()["illume"]
        places = {line: number for number, line in enumerate(image)}
        user = image.index("USER 10001:0")
        assert places["RUN chmod -R u=rwX,go=rX ."] > max(places[line] for line in image if line.startswith("COPY "))
        assert user > places["RUN chmod -R u=rwX,go=rX ."]
        assert not [line for line in image[user:] if line.startswith(("RUN ", "COPY "))]
        assert any("install -d -o 10001 -g 0 -m 0770 /data" in line for line in image[:user])
        environment = dict(
            part.split("=", 1) for line in image if line.startswith("ENV ") for part in shlex.split(line)[1:]
        )
        assert environment["HOME"] == environment["ILLUME_DATA_DIR"] == "/data"
        assert environment["USER"]  # `getpass.getuser` looks for a line of /etc/passwd otherwise

    def test_the_last_stage_needs_no_graphics_card(self) -> None:
        assert list(stages()) == ["assets", "guide", "illume", "cuda", ""]
        assert stages()[""] == ["FROM illume"]
        assert stages()["cuda"][0].startswith("FROM illume ")

    def test_the_guide_is_built_in_a_stage_of_its_own(self) -> None:
        """With all that MkDocs reads, and nothing of what builds it in the image."""
        guide, image = stages()["guide"], stages()["illume"]
        copied = {source for line in guide if line.startswith("COPY ") for source in shlex.split(line)[1:-1]}
        pages = [page.read_text() for page in ROOT.glob("docs/**/*.md")]
        included = {name for page in pages for name in re.findall(r'^--8<-- "([^":]+)', page, re.MULTILINE)}
        assert included
        settings = {"mkdocs.yml", "tools/docs_hooks.py", "pyproject.toml", "constraints.txt"}
        assert copied == {"docs", "illume", "static", *settings, *included}
        assert guide[-1] == "RUN python -m mkdocs build --quiet"
        assert "COPY --from=guide /guide/static/help static/help" in image
        assert not [line for line in image if "mkdocs" in line]
        assert "static/help" in (ROOT / ".dockerignore").read_text().splitlines()  # an old one of the checkout

    def test_all_it_copies_is_there_and_let_in(self) -> None:
        let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for line in (ROOT / "Dockerfile").read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                for source in shlex.split(line)[1:-1]:
                    assert (ROOT / source).exists(), source
                    assert source in let_in, source


@pytest.fixture
def place(embedded: Embedded, data_dir: Path, secrets: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment of the containers, with an empty database and a free port of this machine."""
    name = f"compose_{next(numbers)}"
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    folder = Path(tempfile.mkdtemp(dir=data_dir))
    environments = [environment_of(service, secrets) for service in OURS]
    assert all(environment == environments[0] for environment in environments)
    yield {
        **{key: value for key, value in os.environ.items() if not key.startswith("ILLUME_")},
        **environments[0],
        "ILLUME_DATABASE_URL": embedded.database_url.replace("/illume?", f"/{name}?"),
        "ILLUME_REDIS_URL": embedded.redis_url.removesuffix("/0") + "/5",
        "ILLUME_DATA_DIR": str(folder),
        "ILLUME_HOST": "127.0.0.1",
        "ILLUME_PORT": str(free_port()),
        "ILLUME_TORCH_THREADS": "1",
    }
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


CONTAINED = """
set -e
mount --make-rprivate /
mount --bind /tmp /tmp
mount --bind "$ILLUME_DATA_DIR" "$ILLUME_DATA_DIR"
for place in "$(findmnt --noheadings --output TARGET --target "$PWD")" /; do mount -o remount,bind,ro "$place"; done
if touch "$PWD/written" 2>/dev/null; then exit 99; fi
chown -R 23456:0 "$ILLUME_DATA_DIR"
export HOME="$ILLUME_DATA_DIR" USER=illume
exec setpriv --reuid 23456 --regid 0 --clear-groups --no-new-privs \\
  --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search "$@"
"""
"""A shell program that runs a command as in the container: nothing but /tmp and the data folder can be written to, by a
user that no file names. It may read all, because this machine's Python may be where others cannot look."""


def contained() -> list[str]:
    """What stands before a command that runs like that; skips the test where this machine does not allow it."""
    tools = ("unshare", "setpriv", "findmnt")
    if not all(map(shutil.which, tools)) or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("only root may mount file systems here")
    return ["unshare", "--mount", "sh", "-c", CONTAINED, "sh"]


class TestContainers:
    @pytest.mark.parametrize("read_only", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_all_of_ours_start_and_become_healthy(
        self, place: dict[str, str], embedded: Embedded, read_only: bool
    ) -> None:
        before = contained() if read_only else []
        if read_only:  # the socket of the tests' own PostgreSQL is otherwise for its account alone
            (Path(embedded.database_url.split("host=")[1].split("&")[0]) / ".s.PGSQL.5432").chmod(0o777)

        def command_of(words: list[str]) -> list[str]:
            assert words[0] == "illume"
            return [*before, sys.executable, "-m", "app.cli", *words[1:]]

        def run(words: list[str]) -> int:
            return subprocess.run(command_of(words), cwd=ROOT, env=place, capture_output=True, check=False).returncode

        checks = {name: SERVICES[name]["healthcheck"]["test"] for name in OURS[1:]}
        assert all(check[0] == "CMD" for check in checks.values())
        assert run(SERVICES["migrate"]["command"]) == 0
        assert run(checks["web"][1:]) == 1
        logs = Path(place["ILLUME_DATA_DIR"])
        children = {
            name: start_child(command_of(SERVICES[name]["command"]), env=place, log=logs / f"{name}.log")
            for name in checks
        }
        try:
            end = time.monotonic() + HEALTHY_SECONDS
            for name, check in checks.items():
                while run(check[1:]) != 0:
                    assert children[name].poll() is None, (logs / f"{name}.log").read_text()
                    assert time.monotonic() < end, f"{name} did not become healthy"
                    time.sleep(3.0)  # a check is a process of its own, and takes from those that start
        finally:
            codes = {name: stop_child(child, patience=30) for name, child in children.items()}
        assert codes["web"] in (0, -15)
        assert run(checks["worker-default"][1:]) == 1

    def test_redis_becomes_healthy_and_asks_for_its_password(self, secrets: Mapping[str, str]) -> None:
        service, port = SERVICES["redis"], free_port()
        variables = environment_of("redis", secrets)
        path = f"{redis_program().parent}:{os.environ['PATH']}"
        shell, flag, line = (filled(word, secrets) for word in service["command"])
        line = line.replace("redis-server", f"redis-server --bind 127.0.0.1 --port {port}")
        check = service["healthcheck"]["test"][1].replace("redis-cli", f"redis-cli -p {port}")
        server = start_child([shell, flag, line], env={"PATH": path, **variables})
        try:
            end = time.monotonic() + HEALTHY_SECONDS
            while subprocess.run(["sh", "-c", check], env={"PATH": path, **variables}, check=False).returncode:
                assert server.poll() is None
                assert time.monotonic() < end, "Redis did not become healthy"
            stranger = subprocess.run(["sh", "-c", check], env={"PATH": path}, capture_output=True, check=False)
            assert stranger.returncode == 1
        finally:
            stop_child(server)

    def test_postgres_becomes_healthy(self, embedded: Embedded) -> None:
        check = SERVICES["postgres"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "pg_isready"]
        sockets = embedded.database_url.split("host=")[1].split("&")[0]
        command = [str(find_binaries() / "pg_isready"), *check[2:]]
        assert subprocess.run(command, env={"PGHOST": sockets, "PGPORT": "5432"}, check=False).returncode == 0
        assert subprocess.run(command, env={"PGHOST": sockets, "PGPORT": "5433"}, check=False).returncode == 2
