"""The files to copy: what qsweep is called with there is what it takes."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qsweep.launch.ray import RayLauncher
from qsweep.sweep.compose import register_resolvers
from qsweep.sweep.config import sweep_config

ROOT = Path(__file__).parents[3]


def commands(file):
    content = yaml.safe_load((ROOT / "docs" / "examples" / file).read_text())
    text = content.get("run") or content["spec"]["entrypoint"]
    return [shlex.split(line) for line in re.findall(r"^ *(qsweep .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("file", ["kuberay.yaml", "skypilot.yaml"])
def test_the_commands_of_the_examples_are_sweeps_on_ray(file):
    register_resolvers()
    (words,) = commands(file)
    first = [re.sub(r",.*", "", word) for word in words if "=" in word]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.2"):
        config = OmegaConf.to_container(compose("config", first), resolve=True)
    launcher = sweep_config(config).launcher
    assert isinstance(launcher, RayLauncher) and launcher.address
    assert config["outputs_dir"] == "/outputs"


def test_kuberays_pods_all_mount_the_outputs():
    spec = yaml.safe_load((ROOT / "docs/examples/kuberay.yaml").read_text())["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/outputs"]
        assert container["resources"]["limits"]["nvidia.com/gpu"]
