"""deploy/kubernetes: Kubernetes' own schemas take it, and it runs what docker-compose.yml runs. No cluster is needed.

Kustomize is not needed either, except for the last class, which kubectl brings.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml

from app import broker, queue
from app.http.door import ANY_HOST
from app.processes.embedded import Embedded
from app.settings import ROOT, Settings
from tests.app.test_compose import SERVICES

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = kubernetes_validate.latest_version()
GUIDE = (ROOT / "docs" / "containers.md").read_text()
RELEASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NOT_IN_KUBERNETES = {"Kustomization", "Component", "ScaledObject", "TriggerAuthentication"}  # of kustomize, of KEDA

Document = dict[str, Any]


@functools.cache
def documents(folder: str) -> dict[tuple[str, str], Document]:
    """The objects in the files of a folder, by kind and name. Patches are not complete, and so not among them."""
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    files = [name for name in kustomization.get("resources", []) if not name.startswith("..")]
    found = [one for name in files for one in yaml.safe_load_all((FOLDER / folder / name).read_text())]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pods() -> dict[str, Document]:
    """The description of each pod, by the name of what makes it."""
    made = {name: one for (kind, name), one in documents("base").items() if kind in ("Deployment", "Job")}
    return {name.removeprefix("illume-"): one["spec"]["template"]["spec"] for name, one in made.items()}


def settings_of(folder: str) -> dict[str, str]:
    """What the ConfigMap of a folder sets."""
    (made,) = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["configMapGenerator"]
    return dict(one.split("=", 1) for one in made["literals"])


def validate(document: Document) -> None:
    """Raise where a document is not what its kind is in Kubernetes, or has a field more."""
    kubernetes_validate.validate(document, VERSION, strict=True)


class TestSchemas:
    def test_kubernetes_takes_each_object(self) -> None:
        found = [one for folder in ("base", "autoscaling", "example") for one in documents(folder).values()]
        checked = [one for one in found if one["kind"] not in NOT_IN_KUBERNETES]
        assert len(checked) == 7
        for document in checked:
            validate(document)

    def test_a_field_that_kubernetes_does_not_know_is_found(self) -> None:
        web = documents("base")["Deployment", "illume-web"]
        with pytest.raises(kubernetes_validate.ValidationError):
            validate({**web, "spec": {**web["spec"], "replica": 2}})

    def test_each_file_is_used(self) -> None:
        for path in FOLDER.glob("*/kustomization.yaml"):
            made = yaml.safe_load(path.read_text())
            used = {*made.get("resources", []), *(patch["path"] for patch in made.get("patches", []))}
            assert {one.name for one in path.parent.iterdir()} == {name for name in used if "/" not in name} | {
                path.name
            }


class TestPods:
    def test_they_run_what_compose_runs(self) -> None:
        ours = {name: one for name, one in SERVICES.items() if name not in ("postgres", "redis")}
        assert set(pods()) == set(ours)
        for name, pod in pods().items():
            (container,) = pod["containers"]
            assert container["command"] == ours[name]["command"]
            if name not in ("web", "migrate"):
                words = ours[name]["healthcheck"]["test"][1:]
                assert container["livenessProbe"]["exec"]["command"] == words
                assert container["startupProbe"]["exec"]["command"] == words

    def test_they_write_to_the_volumes_alone_as_any_user(self) -> None:
        for name, pod in pods().items():
            (container,) = pod["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
            assert {one["mountPath"] for one in container["volumeMounts"]} == {"/data", "/tmp"}  # noqa: S108 - in the container
            assert "runAsUser" not in str(pod)

    def test_no_service_sets_a_variable_of_ours(self) -> None:
        # Kubernetes would set ILLUME_WEB_PORT and the like, and for a service `illume` even ILLUME_PORT.
        assert all(pod["enableServiceLinks"] is False for pod in pods().values())

    def test_probes_are_answered_under_any_name(self) -> None:
        (container,) = pods()["web"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert ANY_HOST.fullmatch(asked["path"])
            assert asked["port"] == "http"
        (port,) = container["ports"]
        (outer,) = documents("base")["Service", "illume-web"]["spec"]["ports"]
        assert outer["targetPort"] == port["name"] == "http"
        assert str(port["containerPort"]) == settings_of("base")["ILLUME_PORT"]

    def test_each_says_what_it_needs(self) -> None:
        for name, pod in pods().items():
            resources = pod["containers"][0]["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}, name
            assert set(resources["limits"]) == {"memory"}, name

    def test_services_and_deployments_find_their_pods(self) -> None:
        made = documents("base")
        for (kind, name), one in made.items():
            if kind == "Deployment":
                labels = one["spec"]["template"]["metadata"]["labels"]
                assert one["spec"]["selector"]["matchLabels"] == labels, name
        web = made["Deployment", "illume-web"]["spec"]["selector"]["matchLabels"]
        assert made["Service", "illume-web"]["spec"]["selector"] == web


class TestSettings:
    @pytest.mark.parametrize("folder", ["base", "example"])
    def test_each_is_one_of_ours(self, folder: str) -> None:
        found = settings_of(folder)
        assert {name.removeprefix("ILLUME_").lower() for name in found} <= set(Settings.model_fields)
        Settings(**{name.removeprefix("ILLUME_").lower(): value for name, value in found.items()})  # type: ignore[arg-type]

    def test_no_secret_is_in_them(self) -> None:
        text = "".join(path.read_text() for path in FOLDER.glob("*/*.yaml"))
        assert "kind: Secret" not in text
        assert not {"SECRET_KEY", "DATABASE_URL", "REDIS_URL"} & set(text.replace("ILLUME_", " ").split())


class TestImages:
    def test_they_have_the_version_of_this_release(self) -> None:
        images = yaml.safe_load((FOLDER / "example" / "kustomization.yaml").read_text())["images"]
        assert {str(one["newTag"]) for one in images} == {RELEASE}
        assert set(re.findall(r"registry\.example\.org/illume[\w-]*:(\S+)", GUIDE)) == {RELEASE}


class TestAutoscaling:
    def test_it_reads_the_redis_of_the_guide(self) -> None:
        [url] = re.findall(r"--from-literal=ILLUME_REDIS_URL='([^']+)'", GUIDE)
        [command] = re.findall(r"create secret generic illume-redis (.*?)```", GUIDE, re.DOTALL)
        secret = dict(re.findall(r"--from-literal=(\w+)=(\S+)", command))
        found = broker.parse_broker(url)
        [(host, port)] = found.hosts
        account = found.username or "default"
        assert secret == {"address": f"{host}:{port}", "username": account, "password": found.password}
        made = documents("autoscaling")
        (trigger,) = made["ScaledObject", "illume-worker-model"]["spec"]["triggers"]
        assert trigger["type"] == "redis"
        assert trigger["metadata"]["enableTLS"] == ("false" if found.tls is None else "true")
        assert trigger["metadata"]["databaseIndex"] == str(found.database)
        references = made["TriggerAuthentication", trigger["authenticationRef"]["name"]]["spec"]["secretTargetRef"]
        assert {(one["name"], one["parameter"], one["key"]) for one in references} == {
            ("illume-redis", key, key) for key in secret
        }

    def test_it_counts_the_tasks_that_wait_in_redis(self, embedded: Embedded) -> None:
        scaled = documents("autoscaling")["ScaledObject", "illume-worker-model"]
        assert ("Deployment", scaled["spec"]["scaleTargetRef"]["name"]) in documents("base")
        (trigger,) = scaled["spec"]["triggers"]
        url = embedded.redis_url.removesuffix("/0") + "/6"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
            sender = queue.Sender(url)
            assert sender.send(queue.FILL_POOL, (1,))
            assert sender.send(queue.RUN_ROUND, (1,))
            assert sender.send(queue.RUN_IMPORT, (1,))
            assert client.llen(trigger["metadata"]["listName"]) == 2
            client.flushdb()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
class TestKustomize:
    def build(self, folder: Path) -> list[Document]:
        built = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True)
        return list(yaml.safe_load_all(built.stdout))

    def test_it_builds_the_example_with_all_additions(self, tmp_path: Path) -> None:
        shutil.copytree(FOLDER, tmp_path / "kubernetes")
        example = tmp_path / "kubernetes" / "example" / "kustomization.yaml"
        text = example.read_text()
        assert "components: []" in text
        example.write_text(text.replace("components: []", "components: [../autoscaling, ../gpu]"))
        built = self.build(example.parent)
        for document in built:
            if document["kind"] not in NOT_IN_KUBERNETES:
                validate(document)
        (config,) = (one for one in built if one["kind"] == "ConfigMap")
        assert config["data"] == {**settings_of("base"), **settings_of("example")}
        (model,) = (
            one for one in built if one["metadata"]["name"] == "illume-worker-model" and "replicas" in one["spec"]
        )
        (container,) = model["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"] == f"registry.example.org/illume-cuda:{RELEASE}"
        assert container["envFrom"][0]["configMapRef"]["name"] == config["metadata"]["name"]
