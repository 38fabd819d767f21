"""Manifests for GKE: hosts follow from shapes, ends are treated by the one list, and Kubernetes takes them.

The schemas of Kubernetes come with the package kubernetes-validate (100 MB, not in the extra `dev`). The schema of
JobSet is not published as a package: LOOPLM_JOBSET_CRD names the file `jobset.x-k8s.io_jobsets.yaml` of its repository.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from looplm.errors import UserError
from looplm.launch.exit_codes import starts_again
from looplm.launch.gke.machines import hosts_of
from looplm.launch.gke.manifest import jobset
from looplm.launch.gke.values import Values, read_values

FOLDER = Path(__file__).parents[2] / "launch" / "gke"
FILES = sorted(FOLDER.glob("*.toml"))
SMALL = {
    "name": "mine", "image": "i:1", "config": "ouro:tiny", "workdir": "/runs/mine", "accelerator": "v5e",
    "topology": "4x4", "mounts": [{"path": "/runs", "bucket": "b"}],
}  # fmt: skip
JOBSET_FIELDS = {
    "spec": {"network", "failurePolicy", "replicatedJobs"},
    "failurePolicy": {"maxRestarts", "rules"},
    "rules": {"name", "action", "onJobFailureReasons"},
    "replicatedJobs": {"name", "replicas", "template"},
    "network": {"enableDNSHostnames", "publishNotReadyAddresses"},
}
"""Of its API v1alpha2, those that are used."""


def data_jobs() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "data.yaml").read_text()))


def test_pods_build_the_parts_of_a_dataset(tmp_path: Path) -> None:
    parts, join = data_jobs()
    (looplm := tmp_path / "looplm").write_text('#!/bin/sh\necho "$@"\n')
    looplm.chmod(0o755)
    (container,) = parts["spec"]["template"]["spec"]["containers"]
    count = parts["spec"]["completions"]
    for index in (0, count - 1):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run(container["command"], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.endswith(f"--out gs://BUCKET/parts --workers 8 --part {index + 1}/{count}\n")
    fail, ignore = parts["spec"]["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [code for code in range(1, 256) if code != 75 and not starts_again(code)]
    assert (fail["action"], ignore["action"]) == ("FailIndex", "Ignore")
    assert fail["onExitCodes"]["containerName"] == container["name"]
    assert join["spec"]["suspend"]
    assert join["spec"]["template"]["spec"]["containers"][0]["command"][:4] == [
        "looplm",
        "data",
        "join",
        "gs://BUCKET/parts",
    ]


def test_kubernetes_takes_the_jobs_of_a_dataset() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for manifest in data_jobs():
        for version in ("1.31", "1.34"):
            validator.validate(manifest, version, strict=True)


def values(**changes: Any) -> Values:
    return Values.model_validate({**SMALL, **changes})


def job(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return job(manifest)["template"]["spec"]


@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts"),
    [("v5e", "1x1", (1, 1)), ("v5e", "2x4", (1, 8)), ("v5e", "4x4", (4, 4)), ("v5e", "16x16", (64, 4)),
     ("v5p", "2x2x1", (1, 4)), ("v5p", "4x4x8", (32, 4)), ("v6e", "2x2", (1, 4)), ("v6e", "4x8", (8, 4)),
     ("tpu7x", "2x2x2", (2, 4)), ("tpu7x", "4x4x4", (16, 4))],
)  # fmt: skip
def test_hosts_of_a_slice(accelerator: str, topology: str, hosts: tuple[int, int]) -> None:
    """As Google's tables list them."""
    assert hosts_of(accelerator, topology) == hosts


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_becomes_a_jobset(path: Path) -> None:
    manifest = jobset(read_values(path))
    assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
    spec = manifest["spec"]
    for name, part in [("spec", spec), ("failurePolicy", spec["failurePolicy"]), ("network", spec["network"])]:
        assert set(part) <= JOBSET_FIELDS[name]
    for name, parts in [("rules", spec["failurePolicy"]["rules"]), ("replicatedJobs", spec["replicatedJobs"])]:
        assert all(set(part) <= JOBSET_FIELDS[name] for part in parts)
    assert all(
        re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", r["name"]) for r in spec["failurePolicy"]["rules"]
    )
    hosts = job(manifest)["completions"]
    # The webhook of JobSet: names of pods are host names.
    last = f"{manifest['metadata']['name']}-workers-{spec['replicatedJobs'][0]['replicas'] - 1}-{hosts - 1}-xxxxx"
    assert len(last) <= 63


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kubernetes_takes_an_example(path: Path) -> None:
    """A JobSet's template is that of a Job, for which Kubernetes has a schema."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": job(jobset(read_values(path))),
    }
    for version in ("1.31", "1.34"):
        validator.validate(manifest, version, strict=True)
        with pytest.raises(validator.ValidationError):
            validator.validate({**manifest, "spec": {**manifest["spec"], "backofLimit": 0}}, version, strict=True)


@pytest.mark.skipif("LOOPLM_JOBSET_CRD" not in os.environ, reason="LOOPLM_JOBSET_CRD names JobSet's schema")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_jobset_takes_an_example(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load(Path(os.environ["LOOPLM_JOBSET_CRD"]).read_text())
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1alpha2"]
    check = jsonschema.Draft202012Validator(closed(schema))
    check.validate(manifest := jobset(read_values(path)))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 1
    assert not check.is_valid(manifest)


def closed(schema: Any) -> Any:
    """As a server with strict validation reads it: no unknown field."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
        if set(schema["properties"]) >= {"apiVersion", "kind", "metadata"}:
            result["properties"]["metadata"] = {"type": "object"}
    return result


def test_ends_are_treated_by_the_one_list() -> None:
    manifest = jobset(values())
    assert (job(manifest)["backoffLimit"], pod(manifest)["restartPolicy"]) == (0, "Never")
    fail, ignore = job(manifest)["podFailurePolicy"]["rules"]
    assert (fail["action"], ignore["action"]) == ("FailJob", "Ignore")
    fails = fail["onExitCodes"]["values"]
    assert fails == [code for code in range(1, 256) if not starts_again(code)]
    assert {2, 76} < set(fails)
    assert ignore["onExitCodes"]["values"] == [75]
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert all(
        part["onExitCodes"]["containerName"] == pod(manifest)["containers"][0]["name"] for part in (fail, ignore)
    )


def test_gpu_nodes_find_the_first_of_them() -> None:
    given = values(accelerator="h100", topology=None, nodes=3)
    container = pod(jobset(given))["containers"][0]
    words = container["command"]
    assert words[words.index("--coordinator") + 1] == "mine-workers-0-0.mine:9876"
    assert words[words.index("--num-processes") + 1] == "3"
    index = next(variable for variable in container["env"] if variable["name"] == "PROCESS_ID")
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    assert "--coordinator" not in pod(jobset(values()))["containers"][0]["command"]  # a TPU slice knows


def test_secrets_are_references() -> None:
    manifest = jobset(values(secrets={"WANDB_API_KEY": "wandb/key"}))
    (variable,) = pod(manifest)["containers"][0]["env"]
    assert variable == {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}}}


def test_examples_name_no_account() -> None:
    for path in FILES:
        given = tomllib.loads(path.read_text())
        assert "BUCKET" in {mount["bucket"] for mount in given["mounts"]}
        assert given["image"].startswith("REGION-docker.pkg.dev/PROJECT/")
        assert given["service_account"] == "SERVICE_ACCOUNT"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "4x4x4"}, "topology=4x4x4 is no shape of v5e, which has 2 sides; use e.g. 4x4"),
        ({"topology": "3x3"}, "topology=3x3 has 9 chips, which no whole hosts of v5e have"),
        ({"topology": None}, "topology is missing: accelerator=v5e is a TPU"),
        ({"accelerator": "h100"}, "topology and slices are for TPUs; accelerator=h100 takes nodes"),
        ({"workdir": "/else/mine"}, "workdir=/else/mine is on no mount, so the run would be gone with its pod"),
        ({"mounts": [{"path": "/runs"}]}, "mounts.0: give either bucket or claim"),
        ({"secrets": {"KEY": "abc123"}}, "secrets.KEY is not NAME/KEY of a Secret"),
        ({"environment": {"HF_TOKEN": "x"}}, "environment.HF_TOKEN looks like a secret; name a Secret under"),
        ({"nmae": "x"}, "nmae: Extra inputs are not permitted; there are name, image, config"),
        ({"name": "My_Run"}, "name: String should match"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    (path := tmp_path / "values.toml").write_text("\n".join(f"{key} = {toml(value)}" for key, value in given.items()))
    with pytest.raises(UserError) as refused:
        read_values(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else f'"{value}"'
