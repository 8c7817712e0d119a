"""docs/operations/kubernetes-gpu-pool.json: the pod that Prefect makes of it, and that a server takes it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = Path(__file__).parents[3] / "docs" / "operations" / "kubernetes-gpu-pool.json"
IMAGE = "registry.example.org/latebloom:0.1.0"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return json.loads(TEMPLATE.read_text())


def _rendered(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The configuration of a job: defaults of the pool, then what a deployment sets, as Prefect does it."""
    from prefect.utilities.templating import apply_values
    from prefect.workers.base import BaseJobConfiguration

    variables = template["variables"]["properties"]
    defaults = BaseJobConfiguration._get_base_config_defaults(variables)
    return apply_values(template["job_configuration"], {**defaults, "image": IMAGE, **values})


def _pod(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    return _rendered(template, **values)["job_manifest"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("values", "gpus"), [({}, 1), ({"gpus": 0}, 0), ({"gpus": 4}, 4)])
def test_the_gpu_field_is_the_limit_of_the_container(template, values, gpus):
    (container,) = _pod(template, **values)["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": gpus}, "requests": {}}  # 0 is Kubernetes' default


def test_the_pod(template):
    pod = _pod(
        template, node_selector={"gpu": "h200"}, shared_memory="8Gi", memory_limit="32Gi", environment_secret="keys"
    )
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert container["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    assert pod["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")


def test_every_variable_is_used_and_every_placeholder_is_a_variable(template):
    from prefect.utilities.templating import find_placeholders

    placeholders = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    assert placeholders == set(template["variables"]["properties"])


def test_no_field_for_a_credential(template):
    names = " ".join(template["variables"]["properties"])
    assert not any(word in names for word in ("token", "password", "key", "cluster_config"))


@pytest.mark.slow
def test_a_server_takes_it_and_refuses_wrong_numbers_of_gpus(server, tmp_path):
    create = ["work-pool", "create", "gpus", "--type", "kubernetes", "--base-job-template", str(TEMPLATE)]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *create], env=server.env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert asyncio.run(_accepted({"image": IMAGE, "gpus": 2}))
    assert asyncio.run(_accepted({"image": IMAGE, "gpus": 0}))
    assert not asyncio.run(_accepted({"image": IMAGE, "gpus": -1}))
    assert not asyncio.run(_accepted({"image": IMAGE, "gpus": "two"}))
    assert not asyncio.run(_accepted({"gpus": 1}))  # without an image that Latebloom is in


async def _accepted(job_variables: dict[str, Any]) -> bool:
    """Whether the server makes a deployment with these on the pool `gpus`, and a run of it."""
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    async with get_client() as client:
        flow = await client.create_flow_from_name("on-kubernetes")
        try:
            made = await client.create_deployment(flow, "gpus", work_pool_name="gpus", job_variables=job_variables)
            await client.create_flow_run_from_deployment(made)
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (409, 422):
                raise
            return False
    return True
