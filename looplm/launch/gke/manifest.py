"""From values to the JobSet: pods that run `looplm train`, and what becomes of them when they end.

A pod that ends with 75 is made anew, beside the count of restarts: all processes of a run save after the same step and
end so together. Ends that a new start would only repeat fail the whole. Any other end, and a lost node, starts all pods
anew, so often.
"""

from typing import Any

from looplm.errors import Preempted
from looplm.launch.exit_codes import DONE, FINAL
from looplm.launch.gke.machines import GPUS, TPUS
from looplm.launch.gke.values import Mount, Values

JOB, CONTAINER = "workers", "train"
PORT = 9876
GPU_FLAGS = " ".join(
    f"--xla_gpu_{flag}"
    for flag in (
        "enable_latency_hiding_scheduler=true",
        "all_reduce_combine_threshold_bytes=134217728",
        "all_gather_combine_threshold_bytes=134217728",
        "reduce_scatter_combine_threshold_bytes=134217728",
    )
)


def jobset(values: Values) -> dict[str, Any]:
    """Build the manifest: plain dictionaries, lists, texts and numbers."""
    annotations = {}
    if values.is_tpu:
        # A slice is a node pool, and a job has one for itself.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    labels = {"kueue.x-k8s.io/queue-name": values.queue} if values.queue else {}
    metadata = {"name": values.name, "labels": labels, "annotations": annotations}
    job = {"name": JOB, "replicas": values.slices, "template": {"spec": _job(values)}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": values.restarts,
                "rules": [
                    {"name": "noUse", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [job],
        },
    }


def _job(values: Values) -> dict[str, Any]:
    def on_codes(action: str, codes: list[int]) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes}}

    metadata = {"annotations": {"gke-gcsfuse/volumes": "true"}} if any(m.bucket for m in values.mounts) else {}
    pod: dict[str, Any] = {"spec": _pod(values)}
    if metadata:
        pod["metadata"] = metadata
    return {
        "completionMode": "Indexed",
        "parallelism": values.hosts.number,
        "completions": values.hosts.number,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [on_codes("FailJob", sorted(FINAL - {DONE})), on_codes("Ignore", [Preempted.code])]
        },
        "template": pod,
    }


def _pod(values: Values) -> dict[str, Any]:
    machine = TPUS.get(values.accelerator) or GPUS[values.accelerator]
    selector = {f"cloud.google.com/gke-{'tpu-' if values.is_tpu else ''}accelerator": machine.label}
    if values.is_tpu:
        selector["cloud.google.com/gke-tpu-topology"] = str(values.topology)
    if values.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if values.reservation:
        selector["cloud.google.com/reservation-name"] = values.reservation
    resource = "google.com/tpu" if values.is_tpu else "nvidia.com/gpu"
    volumes = [_volume(f"mount-{number}", mount, values.user) for number, mount in enumerate(values.mounts)]
    if not values.is_tpu:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})  # NCCL speaks through it
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if values.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": values.grace_s,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "securityContext": {
            "runAsNonRoot": values.user != 0,
            **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), values.user),
        },
        "containers": [_container(values, resource)],
        "volumes": volumes,
    }
    if values.service_account:
        pod["serviceAccountName"] = values.service_account
    return pod


def _container(values: Values, resource: str) -> dict[str, Any]:
    command = ["looplm", "train", values.config, "--workdir", values.workdir]
    if values.compiled:
        command += ["--compiled", values.compiled]
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.environment.items()]
    for name, place in values.secrets.items():
        secret, key = place.split("/")
        variables.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    mounts = [
        {"name": f"mount-{number}", "mountPath": mount.path, "readOnly": mount.read_only}
        for number, mount in enumerate(values.mounts)
    ]
    resources: dict[str, Any] = {"limits": {resource: values.hosts.chips}}
    if values.memory:
        resources["requests"] = {"memory": values.memory}
    if not values.is_tpu:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        variables += [] if "XLA_FLAGS" in values.environment else [{"name": "XLA_FLAGS", "value": GPU_FLAGS}]
        if values.hosts.number > 1:
            index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            variables.append({"name": "PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}})
            command += [
                "--coordinator", f"{values.name}-{JOB}-0-0.{values.name}:{PORT}",
                "--num-processes", str(values.hosts.number), "--process-id", "$(PROCESS_ID)",
            ]  # fmt: skip
    return {
        "name": CONTAINER,
        "image": values.image,
        "command": [*command, *values.options],
        "env": variables,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def _volume(name: str, mount: Mount, user: int) -> dict[str, Any]:
    if mount.claim is not None:
        return {"name": name, "persistentVolumeClaim": {"claimName": mount.claim, "readOnly": mount.read_only}}
    options = f"uid={user},gid={user},implicit-dirs" + (f",only-dir={mount.folder}" if mount.folder else "")
    attributes = {"bucketName": mount.bucket, "mountOptions": options}
    return {
        "name": name,
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": mount.read_only,
            "volumeAttributes": attributes,
        },
    }
