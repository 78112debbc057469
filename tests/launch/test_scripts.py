"""Every launch script: lint, what --print shows, and what bad arguments end in."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from freezejax import UserError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("launch", "benchmarks", "results") for path in (ROOT / folder).glob("*.sh"))
SCRIPTS += sorted((ROOT / ".ci").iterdir())
FAKES = sorted((ROOT / "tests" / "launch" / "bin").iterdir())
CONFIGS = sorted((ROOT / "experiments" / "configs").glob("[a-z]*.py"))
ODD = r"--config.freeze.pattern=blocks/\d+/.*(a|b) & \"c\" $(X) @X"  # what shells and YAML would change
# Options and WORKDIR that each script asks for.
ASKED = {
    "workstation.sh": ([], "runs/x"),
    "node.sh": ([], "runs/x"),
    "slurm.sh": (["--nodes=2", "--time=04:00:00"], "runs/x"),
    "tpu_pod.sh": (["--name=pod", "--zone=us-west4-a"], "/mnt/shared/x"),
    "gke.sh": (["--image=registry/freezejax:1", "--claim=filestore", "--nodes=2"], "/shared/x"),
}
PYTHON = ["-m", "experiments.progressive", "--config=experiments/configs/progressive.py:h100x8"]


def printed(launch, name, *flags, path, study="progressive", scale="h100x8", **environment):
    options, workdir = ASKED[name]
    found = launch(name, "--print", *options, study, scale, workdir, *flags, path=path, **environment)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, *FAKES], ids=lambda script: script.name)
def test_shellcheck_and_bash_find_nothing(script):
    tool = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert tool, "shellcheck is missing: install the dev extra"
    for command in ([tool, "-x", str(script)], ["bash", "-n", str(script)]):
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_counterpart_shellcheck_finds_an_unquoted_variable(tmp_path):
    (tmp_path / "x.sh").write_text("#!/usr/bin/env bash\nrm $1\n")
    tool = shutil.which("shellcheck", path=Path(sys.executable).parent)
    found = subprocess.run([tool, str(tmp_path / "x.sh")], capture_output=True, text=True)
    assert "SC2086" in found.stdout


@pytest.mark.parametrize("name", ["workstation.sh", "node.sh"])
def test_print_shows_the_command_with_nothing_installed(name, launch, bare_path):
    command = shlex.split(printed(launch, name, ODD, path=bare_path))
    start = command.index("-m")
    asks = ["--require_accelerator"] * (name == "node.sh")  # as a GPU is there
    assert command[start:] == [*PYTHON, "--workdir=runs/x", *asks, ODD]
    python = command[command.index("uv") : start]
    assert python == (
        ["uv", "run", "python"] if name == "workstation.sh" else ["uv", "run", "--extra", "cuda12", "python"]
    )


def test_a_node_says_that_its_one_process_has_all_gpus(launch, bare_path):
    command = shlex.split(printed(launch, "node.sh", path=bare_path, FREEZEJAX_PYTHON="python3"))
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in command
    assert command[command.index("-m") - 1] == "python3"


def test_slurm_submits_itself(launch, bare_path):
    command = shlex.split(printed(launch, "slurm.sh", ODD, path=bare_path))
    script = command.index(str(ROOT / "launch" / "slurm.sh"))
    assert command[0] == "sbatch"
    assert command[script + 1 :] == ["--in-job", "progressive", "h100x8", "runs/x", ODD]
    assert {"--requeue", "--ntasks-per-node=1", "--signal=TERM@300", f"--chdir={ROOT}"} < set(command[:script])
    assert command[:script].index("--nodes=1") < command[:script].index("--nodes=2")  # the last one wins


def test_tpu_pod_runs_the_workstation_script_on_every_host(launch, bare_path):
    command = shlex.split(printed(launch, "tpu_pod.sh", ODD, path=bare_path, scale="v5e"))
    assert command[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-west4-a", "--worker=all"]
    remote = shlex.split(command[-1].removeprefix("--command="))
    assert remote[:6] == ["cd", "freezejax", "&&", "launch/workstation.sh", "progressive", "v5e"]
    assert remote[6:] == ["/mnt/shared/x", "--distributed=on", ODD]


def test_gke_renders_a_manifest_whose_pods_find_pod_0(launch, bare_path):
    service, job = yaml.safe_load_all(printed(launch, "gke.sh", ODD, path=bare_path))
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"job-name": "progressive"},
    }
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    (container,) = pod["containers"]
    first, last = container["args"][:4], container["args"][4:]
    assert container["command"] == ["launch/node.sh"]
    assert first == ["progressive", "h100x8", "/shared/x", ODD.replace("$(", "$$(")]
    assert last[:3] == [
        "--coordinator=progressive-0.progressive:12345",
        "--num_processes=2",
        "--process_id=$(PROCESS_ID)",
    ]
    assert container["env"][0]["name"] == "PROCESS_ID"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # A pod's command is one that the node script takes.
    command = shlex.split(launch("node.sh", "--print", *container["args"], path=bare_path).stdout)
    assert command[-len(last) :] == last


def test_gke_starts_again_what_may_do_better_and_not_bad_input(launch):
    """Exit code 2 is bad input of a study; 75, of processes that did not meet, is not listed and so tried again."""
    options = ["--image=x", "--claim=y", "--nodes=2"]
    _, job = yaml.safe_load_all(launch("gke.sh", "--print", *options, "selective", "h100", "/shared/runs").stdout)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which Kubernetes wants with a podFailurePolicy
    fail, ignore = spec["podFailurePolicy"]["rules"]
    codes = {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [2]}
    assert fail == {"action": "FailJob", "onExitCodes": codes}
    assert ignore["action"] == "Ignore"
    assert spec["backoffLimit"] > 0
    assert any(argument.startswith("--join_timeout=") for argument in pod["containers"][0]["args"])


def test_gke_with_one_node_needs_no_coordinator(launch):
    options = ["--image=x", "--claim=y", "--mount=/data", "--name=a-b"]
    text = launch("gke.sh", "--print", *options, "selective", "h100", "/data/runs").stdout
    assert "coordinator" not in text
    assert "@" not in text.split("\n", 1)[1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_scripts_know_the_scales_and_the_module_of_every_config(config, launch, bare_path):
    spec = importlib.util.spec_from_file_location(config.stem, config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    error = launch("workstation.sh", config.stem, "nosuch", "runs/x", path=bare_path).stderr
    scales = error.strip().split("scales: ")[1].split()
    for scale in scales:
        found = module.get_config(scale)
        command = launch("workstation.sh", "--print", config.stem, scale, "runs/x", path=bare_path).stdout
        assert f"-m experiments.{found.experiment} --config=experiments/configs/{config.stem}.py:{scale} " in command
    with pytest.raises(UserError) as refused:
        module.get_config("nosuch")
    assert set(scales) >= {word.strip(",") for word in str(refused.value).split("; ")[1].split()} & {"tiny", "h100x8"}


BAD = [
    ("workstation.sh", ["progresive", "tiny", "x"], "no study 'progresive'; studies: adapters adaptive"),
    ("workstation.sh", ["../cli", "tiny", "x"], "no study '../cli'"),
    ("node.sh", ["progressive", "h100x9", "x"], "no scale 'h100x9'; scales: tiny cpu h100 h100x8"),
    ("node.sh", ["progressive", "tiny"], "usage: "),
    ("node.sh", ["progressive", "tiny", ""], "WORKDIR is ''"),
    ("node.sh", ["--nodes=2", "progressive", "tiny", "x"], "unknown option '--nodes=2'"),
    ("slurm.sh", ["progressive", "tiny", "x", "more"], "unexpected argument 'more'"),
    ("slurm.sh", ["progressive", "tiny", "x", "--workdir=y"], "--workdir=y: STUDY, SCALE and WORKDIR say that already"),
    ("tpu_pod.sh", ["--name=a", "progressive", "v5e", "/x"], "--zone= is missing"),
    ("tpu_pod.sh", ["--name=a", "--zone=b", "progressive", "v5e", "x"], "expected an absolute path"),
    ("gke.sh", ["--image=a", "progressive", "h100x8", "/shared/x"], "--claim= is missing"),
    ("gke.sh", ["--image=a", "--claim=b", "--nodes=0", "progressive", "h100x8", "/shared/x"], "--nodes=0: expected"),
    (
        "gke.sh",
        ["--image=a", "--claim=b", "--node=2", "progressive", "h100x8", "/shared/x"],
        "unknown option '--node=2'",
    ),
    ("gke.sh", ["--image=a b", "--claim=b", "progressive", "h100x8", "/shared/x"], "'a b': expected letters"),
    ("gke.sh", ["--image=a", "--claim=b", "--name=A", "progressive", "h100x8", "/shared/x"], "--name=A: expected"),
    ("gke.sh", ["--image=a", "--claim=b", "progressive", "h100x8", "/other/x"], "a folder under --mount=/shared"),
]


@pytest.mark.parametrize("printing", [False, True], ids=["run", "print"])
@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=[f"{row[0]} {row[2][:24]}" for row in BAD])
def test_bad_arguments_are_one_line_and_exit_code_2(name, arguments, message, printing, launch, bare_path):
    found = launch(name, *["--print"] * printing, *arguments, path=bare_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr


@pytest.mark.parametrize(
    ("name", "tool"), [("slurm.sh", "sbatch"), ("tpu_pod.sh", "gcloud"), ("gke.sh", "kubectl")], ids=lambda x: x
)
def test_a_missing_tool_is_one_line_and_nothing_is_written(name, tool, launch, bare_path, python):
    options, workdir = ASKED[name]
    scale = "v5e" if name == "tpu_pod.sh" else "h100x8"
    found = launch(name, *options, "progressive", scale, workdir, path=bare_path, FREEZEJAX_PYTHON=python)
    assert found.returncode == 2
    assert f"{tool} is missing" in found.stderr
    assert found.stderr.count("\n") == 1
    assert not (ROOT / "runs" / "x").exists()


SUBMITTING = [("slurm.sh", "sbatch"), ("tpu_pod.sh", "gcloud"), ("gke.sh", "kubectl")]


@pytest.fixture
def submit(launch, bare_path, tmp_path):
    """Runs a script that submits where its tool is there; `submitted` is made by the tool."""

    def run(name, tool, *flags, **environment):
        options, workdir = ASKED[name]
        if name == "slurm.sh":  # which makes it
            workdir = str(tmp_path / "work")
        fake = Path(bare_path, tool)
        fake.write_text(f"#!/bin/bash\ncat > {tmp_path / 'submitted'}\n")
        fake.chmod(0o755)
        scale = "v5e" if name == "tpu_pod.sh" else "h100x8"
        return launch(name, *options, "progressive", scale, workdir, *flags, path=bare_path, **environment)

    return run


WRONG = [
    ("--config.train.stepz=3", "--config.train.stepz=3: the config has no field 'stepz'; nearest: steps"),
    ("--config.train.steps=many", "--config.train.steps=many: expected an integer"),
    ("--tensorbord", "there is no flag --tensorbord; nearest: tensorboard"),
]


@pytest.mark.parametrize(("script", "wrong"), [*zip(SUBMITTING, WRONG, strict=True)], ids=lambda pair: pair[0])
def test_a_wrong_field_is_told_before_anything_is_submitted(script, wrong, submit, python, tmp_path):
    found = submit(*script, wrong[0], FREEZEJAX_PYTHON=python)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert wrong[1] in found.stderr
    assert not (tmp_path / "submitted").exists()
    assert not (tmp_path / "work").exists()


def test_counterpart_right_fields_are_submitted(submit, python, tmp_path):
    found = submit("slurm.sh", "sbatch", "--config.train.steps=30", FREEZEJAX_PYTHON=python)
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "submitted").exists()


def test_a_machine_that_only_submits_says_that_nothing_was_checked(submit, tmp_path):
    found = submit("gke.sh", "kubectl", "--config.train.stepz=3", FREEZEJAX_PYTHON="/no/python")
    assert found.returncode == 0
    assert found.stderr.startswith("note: the flags are not checked here")
    assert (tmp_path / "submitted").exists()


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", [*ASKED, "benchmarks/gpu.sh", "benchmarks/wheels.sh"])
def test_help_is_the_head_of_the_script_and_no_error(script, option, launch, bare_path):
    found = launch(script, option, path=bare_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"{script if '/' in script else f'launch/{script}'} [--print]" in found.stdout
    assert not any(line.startswith("#") for line in found.stdout.splitlines())
    assert "set -euo" not in found.stdout


def test_a_node_without_its_8_gpus_is_refused(launch, bare_path):
    found = launch("node.sh", "progressive", "h100x8", "runs/x", path=bare_path)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "this node has 0 GPUs, not 8" in found.stderr


DOCS = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in DOCS.splitlines() if line.startswith(("launch/", "benchmarks/"))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:40])
def test_the_commands_of_the_page_are_accepted(command, launch, bare_path):
    found = launch(command[0], "--print", *command[1:], path=bare_path)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_page_shows_a_command_of_every_script():
    assert {command[0].split("/")[1] for command in COMMANDS} == {*ASKED, "gpu.sh", "wheels.sh"}
