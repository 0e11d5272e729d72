"""The recipes of conf/cluster: valid by Ray's own schema and KubeRay's fields, and their commands really parse."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from engine.config import CONF, ROOT, load

CLUSTER = CONF / "cluster"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)


@pytest.fixture(scope="module")
def ray_up() -> dict:
    return yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())


@pytest.fixture(scope="module")
def rayjob() -> dict:
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())


def rayjob_schema() -> dict:
    return json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())


def test_ray_up_fits_rays_own_schema(ray_up):
    import ray.autoscaler

    schema = json.loads(Path(ray.autoscaler.__path__[0], "ray-schema.json").read_text())
    jsonschema.validate(ray_up, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ray_up | {"no_such_key": 1}, schema)
    kinds = ray_up["available_node_types"]
    assert ray_up["head_node_type"] in kinds
    assert kinds["gpu"]["max_workers"] <= ray_up["max_workers"]
    assert "AWS_SECRET" not in (CLUSTER / "ray_up.yaml").read_text()


def test_rayjob_fits_kuberay(rayjob):
    schema = rayjob_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(rayjob, schema)
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    for spoil in (
        lambda job: job["spec"].pop("entrypoint"),
        lambda job: job["spec"].update(entryPoint="a misspelt field"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ):
        bad = copy.deepcopy(rayjob)
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_every_volume_mount_has_its_volume(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", ())}
        assert mounted <= {v["name"] for v in pod.get("volumes", ())}


def test_the_entrypoint_is_a_command_that_parses(rayjob):
    shell, flag, command = shlex.split(rayjob["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    command, _, forgiven = command.partition("||")
    assert forgiven.strip() == "[ $? = 2 ]"  # quarantined clips are no reason for another cluster
    python, flag, module, *words = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "engine.unroll")
    options = load(words)
    assert (options.runner.kind, options.runner.ray.address) == ("ray", "auto")
    assert rayjob["spec"]["metadata"]["output"] == options.output


def test_ray_start_flags_exist(ray_up, rayjob):
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    lines = [*ray_up["head_start_ray_commands"], *ray_up["worker_start_ray_commands"]]
    used = {flag for line in lines for flag in re.findall(r"(--[a-z-]+)", line)}
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        used |= {f"--{name}" for name in group["rayStartParams"]}
    assert used <= known
