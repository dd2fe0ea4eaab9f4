"""The files that a deployment starts from: they load, agree with each other and name only what there is."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray import serve
from ray.serve.schema import ServeDeploySchema

from rollout_service.cli import app
from rollout_service.cli.sizing import ClusterSize, ModelShape
from rollout_service.cluster import SERVE_ENVIRONMENT
from rollout_service.config import RolloutConfig
from tests.support import sglang

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
CONFIGS = sorted((ROOT / "deploy/configs").glob("*.yaml"))
MANIFESTS = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))
QWEN3_4B = ModelShape(parameters=4_022_468_096, layers=36, heads=32, kv_heads=8, head_dim=128)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [*DOCUMENTS, DOCKERFILE, *CONFIGS, *MANIFESTS]


def loaded(name: str, **overrides: Any) -> RolloutConfig:
    return RolloutConfig.load(ROOT / "deploy/configs" / f"{name}.yaml", overrides, environ={})


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/kuberay" / f"{name}.yaml").read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterConfig") or spec["rayClusterSpec"]


def nodes(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def pods(name: str) -> list[dict[str, Any]]:
    """Every pod that the manifest describes, the head's first."""
    submitter = manifest(name)["spec"].get("submitterPodTemplate")
    return [*nodes(cluster_of(name)), *([submitter["spec"]] if submitter else [])]


def in_image(path: str) -> Path:
    """Where the repository has what lies at that path in the image."""
    folder = re.search(r"^WORKDIR (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert folder is not None
    return ROOT / Path(path).relative_to(folder[1])


def by_name(path: Path) -> str:
    return path.name


def comment_after(path: Path, start: str) -> str:
    """The lines of a comment from the one that starts so, uncommented."""
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith(start)) :])


# Configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_a_configuration_loads(path):
    RolloutConfig.load(path, environ={})


def test_the_laptop_needs_neither_model_nor_key():
    config = loaded("laptop")
    assert config.policy.engine == "scripted"
    assert config.user_kind == "scripted"
    assert config.policy.tokenizer_name is None


def test_the_laptop_s_other_configuration_loads_too(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(comment_after(ROOT / "deploy/configs/laptop.yaml", "tasks:"))
    config = RolloutConfig.load(other, environ={})
    assert config.policy.engine == "transformers"
    assert config.policy.model == "Qwen/Qwen3-0.6B"


def test_the_node_s_episodes_fit_into_the_caches_of_its_eight_gpus():
    config = loaded("node-8gpu")
    in_flight = config.service.actors * config.service.slots
    fraction = config.policy.engine_arguments["mem_fraction_static"]
    needed = ClusterSize(QWEN3_4B, 80, in_flight, 12_000, memory_fraction=fraction)
    assert needed.gpus <= config.policy.replicas == 8
    text = (ROOT / "deploy/configs/node-8gpu.yaml").read_text()
    assert f"{in_flight} episodes are in flight" in text
    assert f"holds {needed.episodes_per_replica} of them" in text


def test_a_configuration_can_use_the_rayservice_s_application():
    application = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])["applications"][0]["name"]
    assert f"# application: {application}\n" in (ROOT / "deploy/configs/multi-node.yaml").read_text()
    assert loaded("multi-node", **{"policy.application": application}).policy.application == application


@pytest.mark.parametrize("path", [*CONFIGS, *MANIFESTS, DOCKERFILE], ids=by_name)
def test_no_key_stands_in_a_file(path):
    assert not re.search(r"\b(sk|hf|key)[-_][A-Za-z0-9]{8,}", path.read_text())


# Kubernetes ------------------------------------------------------------------------------------------------------


def test_the_rayservice_serves_the_policy_with_a_configuration_that_exists():
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, attribute = application.import_path.partition(":")
    assert (module, attribute) == ("deploy.policy", "app")
    path = in_image(application.args["config"])
    assert RolloutConfig.load(path, environ={}).policy.engine == "sglang"
    builder = getattr(importlib.import_module(module), attribute)
    assert isinstance(builder(application.args | {"config": str(path)}), serve.Application)


def test_the_rayjob_s_arguments_are_those_of_collect():
    words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "deploy.job"]
    collect = typer.main.get_command(app).commands["collect"]
    context = collect.make_context("collect", ["--address", "auto", "--start", *words[3:]])
    assert context.params["n"] % context.params["group_size"] == 0
    RolloutConfig.load(in_image(str(context.params["config"])), environ={})
    mounts = {
        mount["mountPath"] for node in nodes(cluster_of("rayjob")) for mount in node["containers"][0]["volumeMounts"]
    }
    assert str(context.params["output"].parent) in mounts


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_a_cluster_asks_for_a_token_and_runs_the_image_s_ray(name):
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"rayproject/ray:{cluster['rayVersion']}-py312" in DOCKERFILE.read_text()


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_every_node_has_serve_s_settings_and_shared_memory(name):
    for node in nodes(cluster_of(name)):
        (container,) = node["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment.items() >= SERVE_ENVIRONMENT.items()
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in node["volumes"]}
        assert set(mounted.values()) == volumes.keys() - {"kubernetes-token"}
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_the_key_is_on_the_pod_that_starts_the_service_and_on_no_other(name):
    variable = loaded("multi-node").user.api_key_var
    head, *workers = pods(name)
    secrets = {entry["name"]: entry["valueFrom"] for entry in head["containers"][0]["env"] if "valueFrom" in entry}
    assert secrets == {variable: {"secretKeyRef": {"name": "rollout-keys", "key": variable}}}
    for pod in workers:
        assert all("valueFrom" not in entry for entry in pod["containers"][0].get("env", ()))
    assert all("envFrom" not in container for pod in (head, *workers) for container in pod["containers"])
    text = (ROOT / f"deploy/kuberay/{name}.yaml").read_text()
    assert f"kubectl create secret generic rollout-keys --from-literal={variable}=" in text


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_every_container_keeps_to_the_restricted_pod_security_standard(name):
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {kind for volume in pod.get("volumes", ()) for kind in volume} <= {
            *("name", "persistentVolumeClaim", "emptyDir", "projected")
        }
    containers = [container for pod in pods(name) for container in pod["containers"]]
    for container in (*containers, cluster_of(name)["autoscalerOptions"]):  # KubeRay puts the autoscaler on the head
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_the_autoscaler_alone_has_a_token_for_kubernetes(name):
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(name))
    cluster = cluster_of(name)
    (mount,) = cluster["autoscalerOptions"]["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    (volume,) = [each for each in next(nodes(cluster))["volumes"] if each["name"] == mount["name"]]
    paths = [
        source.get("path") or source["items"][0]["path"]
        for projected in volume["projected"]["sources"]
        for source in projected.values()
    ]
    assert paths == ["token", "ca.crt", "namespace"]
    assert cluster["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("name", ["rayservice", "rayjob"])
def test_the_workers_have_room_for_all_replicas_and_actors(name):
    config = loaded("multi-node")
    gpus = cpus = 0
    for group in cluster_of(name)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += group["maxReplicas"] * limits.get("nvidia.com/gpu", 0)
        cpus += 0 if "nvidia.com/gpu" in limits else group["minReplicas"] * limits["cpu"]
    assert gpus >= config.policy.autoscaling.max_replicas
    assert cpus >= config.service.actors


# The image and what the documents name ---------------------------------------------------------------------------


def test_all_that_the_image_copies_exists_and_is_sent_to_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources >= allowed
    assert all(source in allowed or source.split("/")[0] in allowed for source in sources)
    assert all((ROOT / source).exists() for source in sources)


# Versions ---------------------------------------------------------------------------------------------------------


TESTED, IMAGE = ROOT / "constraints.txt", ROOT / "deploy/docker/constraints.txt"
COMPROMISED = ["1.82.7", "1.82.8", "1.107.0"]
"""Releases of litellm that somebody else put on the index."""


def pinned(path: Path) -> dict[str, str]:
    requirements = [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def asked_for(lines: Iterable[str], python: str) -> list[Requirement]:
    requirements = [Requirement(line) for line in lines]
    environment = {"python_version": python, "platform_machine": "x86_64", "sys_platform": "linux", "extra": ""}
    return [each for each in requirements if each.marker is None or each.marker.evaluate(environment)]


def unmet(requirements: list[Requirement], versions: dict[str, str]) -> list[str]:
    return [
        str(each)
        for each in requirements
        if not each.specifier.contains(versions[canonicalize_name(each.name)], prereleases=True)
    ]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_compromised_releases_of_litellm_are_never_installed():
    (litellm,) = [each for each in asked_for(project()["dependencies"], "3.12") if each.name == "litellm"]
    assert [version for version in COMPROMISED if litellm.specifier.contains(version)] == []
    assert litellm.specifier.contains("1.106.2")


@pytest.mark.parametrize(("path", "python"), [(TESTED, "3.11"), (IMAGE, "3.12")], ids=["tested", "image"])
def test_the_constraints_are_versions_that_this_package_asks_for(path, python):
    assert unmet(asked_for(project()["dependencies"], python), pinned(path)) == []


@pytest.mark.sglang
@sglang.needed
def test_the_constraints_of_the_image_are_versions_that_sglang_asks_for():
    (metadata,) = importlib.metadata.distributions(name="sglang", path=[str(sglang.INSTALLED)])
    versions = pinned(IMAGE)
    assert versions["sglang"] == metadata.version
    assert unmet(asked_for(metadata.requires or [], "3.12"), versions) == []


def test_the_image_s_ray_is_the_constraints():
    assert f"rayproject/ray:{pinned(IMAGE)['ray']}-py312" in DOCKERFILE.read_text()


def test_the_image_is_installed_with_its_constraints():
    (install,) = re.findall(r"^RUN pip install (.*'\.\[sglang\]')$", DOCKERFILE.read_text(), re.MULTILINE)
    assert "-c constraints.txt" in install
    assert re.search(r"^COPY .* deploy/docker/constraints\.txt \./$", DOCKERFILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [*DOCUMENTS, *CONFIGS, ROOT / "Makefile"], ids=by_name)
def test_the_package_is_installed_with_constraints_wherever_a_document_says_how(path):
    lines = [
        line for line in path.read_text().splitlines() if re.search(r"pip install (-\S+ (\S+ )?)*'?\.(\[|'|$)", line)
    ]
    assert lines or path.suffix == ".yaml" or path.parent.name == "docs"
    for line in lines:
        (constraints,) = re.findall(r"-c (\S+)", line)
        assert (ROOT / constraints) == (IMAGE if "[sglang]" in line else TESTED)


def test_the_image_s_node_is_not_root():
    assert re.findall(r"^USER (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1] == "ray"


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_files_that_a_document_names_exist(path):
    named = re.findall(r"(?<![\w./-])(?:/home/ray/app/)?(deploy/[\w./-]*\w)", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
