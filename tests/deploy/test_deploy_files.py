"""The files that a deployment starts from: they load, agree with each other and name only what there is."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from rollout_service.cli import app
from rollout_service.config import RolloutConfig
from rollout_service.policy.serve import SERVE_ENVIRONMENT
from rollout_service.sizing import ClusterSize, ModelShape

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
CONFIGS = sorted((ROOT / "deploy/configs").glob("*.yaml"))
MANIFESTS = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))
QWEN3_4B = ModelShape(parameters=4_022_468_096, layers=36, heads=32, kv_heads=8, head_dim=128)
FILES = [ROOT / "README.md", DOCKERFILE, *CONFIGS, *MANIFESTS]


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
def test_every_node_has_serve_s_settings_the_key_s_secret_and_shared_memory(name):
    variable = loaded("multi-node").user.api_key_var
    for node in nodes(cluster_of(name)):
        (container,) = node["containers"]
        environment = {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in container["env"]}
        assert environment.items() >= SERVE_ENVIRONMENT.items()
        assert environment[variable] == {"secretKeyRef": {"name": "rollout-keys", "key": variable}}
        assert node["securityContext"]["runAsNonRoot"] is True
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in node["volumes"]}
        assert set(mounted.values()) == volumes.keys()
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


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
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_s_node_is_not_root():
    assert re.findall(r"^USER (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1] == "ray"


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_files_that_a_document_names_exist(path):
    named = re.findall(r"(?<![\w./-])(?:/home/ray/app/)?(deploy/[\w./-]*\w)", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
