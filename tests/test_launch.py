"""What starts training elsewhere can be read, asks for what it needs, and restarts after exit code 75 alone.

Nothing here was run on the systems that it is for; `local.sh` is run.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from editjax.cluster import ADDRESS, PROCESS, PROCESSES, Job, job
from editjax.errors import TryAgainError
from editjax.journal import read_journal

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("fill.sh", "local.sh", "slurm.sbatch", "tpu-vm.sh")
JOBSETS = ("jobset-gpu.yaml", "jobset-tpu.yaml")
WANTED = {
    "slurm.sbatch": {"CONFIG", "SHARDS", "RUN"},
    "tpu-vm.sh": {"NAME", "ZONE", "TYPE", "VERSION", "SETUP", "SHARED", "CONFIG"},
    "jobset-gpu.yaml": {"NAME", "NODES", "GPUS", "IMAGE", "CONFIG", "CLAIM"},
    "jobset-tpu.yaml": {"NAME", "HOSTS", "CHIPS", "ACCELERATOR", "TOPOLOGY", "IMAGE", "CONFIG", "CLAIM"},
    "sky.yaml": {"CONFIG", "SHARED", "MOUNT"},
}
GIVEN = {"NAME": "pointer", "NODES": "2", "HOSTS": "4", "GPUS": "8", "CHIPS": "4", "CONFIG": "configs/a.py"}
AGAIN = TryAgainError.exit_code


def bash(*words, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *map(str, words)],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def filled(name: str) -> dict:
    done = bash(LAUNCH / "fill.sh", LAUNCH / name, **(dict.fromkeys(WANTED[name], "x") | GIVEN))
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_parses(name):
    done = bash("-n", LAUNCH / name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", WANTED)
def test_what_must_be_set_is_asked_for_with_a_reason(name):
    assert set(re.findall(r"\$\{(\w+):\?\w", (LAUNCH / name).read_text())) == WANTED[name]


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu-vm.sh", *JOBSETS])
def test_what_is_missing_is_named_and_nothing_is_started(name):
    words = [LAUNCH / "fill.sh", LAUNCH / name] if name in JOBSETS else [LAUNCH / name]
    for missing in WANTED[name]:
        done = bash(*words, **(dict.fromkeys(WANTED[name] - {missing}, "x")))
        assert done.returncode and not done.stdout and f"{missing}: " in done.stderr


def fields(content, allowed: dict, where: str = "") -> None:
    """Fails for a field that is not in the schema written down below."""
    if isinstance(content, list):
        for one in content:
            fields(one, allowed, where)
    elif isinstance(content, dict):
        for name, value in content.items():
            assert name in allowed, f"{where}: no field {name}"
            if allowed[name] is not ...:
                fields(value, allowed[name], f"{where}.{name}")


EXIT_CODES = {"containerName": ..., "operator": ..., "values": ...}
POD_RULE = {"action": ..., "onExitCodes": EXIT_CODES, "onPodConditions": {"type": ..., "status": ...}}
CONTAINER = dict.fromkeys(("name", "image", "command", "args", "resources"), ...) | {
    "env": {"name": ..., "value": ..., "valueFrom": {"fieldRef": {"fieldPath": ...}}},
    "volumeMounts": {"name": ..., "mountPath": ...},
}
POD = {
    "restartPolicy": ...,
    "terminationGracePeriodSeconds": ...,
    "nodeSelector": ...,
    "containers": CONTAINER,
    "volumes": {"name": ..., "persistentVolumeClaim": {"claimName": ...}, "emptyDir": {"medium": ...}},
}
JOB = dict.fromkeys(("parallelism", "completions", "completionMode", "backoffLimit"), ...) | {
    "podFailurePolicy": {"rules": POD_RULE},
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": ...,
    "kind": ...,
    "metadata": {"name": ..., "annotations": ...},
    "spec": {
        "failurePolicy": {"maxRestarts": ..., "rules": {"action": ..., "onJobFailureReasons": ...}},
        "replicatedJobs": {"name": ..., "replicas": ..., "template": {"spec": JOB}},
    },
}


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_restarts_all_pods_after_75_and_fails_after_any_other_code(name):
    content = filled(name)
    fields(content, JOBSET)
    assert (content["apiVersion"], content["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = content["spec"]["failurePolicy"]
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert policy["maxRestarts"] > 0
    (replicated,) = content["spec"]["replicatedJobs"]
    one = replicated["template"]["spec"]
    assert replicated["replicas"] == 1 and one["parallelism"] == one["completions"] > 1
    assert (one["completionMode"], one["backoffLimit"]) == ("Indexed", 0)
    lost, failed = one["podFailurePolicy"]["rules"]
    assert lost["action"] == "Count" and lost["onPodConditions"][0]["type"] == "DisruptionTarget"
    (container,) = one["template"]["spec"]["containers"]
    codes = {"containerName": container["name"], "operator": "NotIn", "values": [AGAIN]}
    assert failed == {"action": "FailJob", "onExitCodes": codes}
    assert one["template"]["spec"]["restartPolicy"] == "Never"
    assert container["command"] == ["editjax", "train", "configs/a.py"]


def test_the_pods_with_gpus_are_told_of_each_other(monkeypatch):
    (replicated,) = filled("jobset-gpu.yaml")["spec"]["replicatedJobs"]
    one = replicated["template"]["spec"]
    told = {it["name"]: it for it in one["template"]["spec"]["containers"][0]["env"]}
    assert told.keys() == {ADDRESS, PROCESSES, PROCESS}
    index = told[PROCESS]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    for name in (ADDRESS, PROCESSES):
        monkeypatch.setenv(name, told[name]["value"])
    monkeypatch.setenv(PROCESS, "1")
    assert job() == Job(f"pointer-{replicated['name']}-0-0.pointer:8476", one["completions"], 1)


def test_the_pods_of_a_slice_have_what_gke_needs_to_tell_them():
    pod = filled("jobset-tpu.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"].keys() == {
        "cloud.google.com/gke-tpu-accelerator",
        "cloud.google.com/gke-tpu-topology",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_the_sky_task_recovers_after_75_and_tells_each_machine_of_the_others():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "workdir", "envs", "resources", "setup", "run"}
    assert set(task["envs"]) == WANTED["sky.yaml"]
    assert task["resources"]["job_recovery"] == {
        "strategy": "EAGER_NEXT_REGION",
        "recover_on_exit_codes": [AGAIN],
    }
    told = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*"'
    program = task["run"].replace("exec editjax", "set --") + told
    machine = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = bash("-c", program, CONFIG="c.py", SHARED="/s", MOUNT=":", **machine)
    assert done.stdout == "10.0.0.1:8476 2 1 train c.py --data /s/shards --out /s/run\n", done.stderr


def commands(folder: Path, **bodies: str) -> str:
    """A PATH on which those commands are scripts of ours, which note how they were called."""
    for name, body in bodies.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    "code, restarts, requeued", [(0, "0", False), (75, "0", True), (75, "100", False), (65, "0", False)]
)
def test_slurm_requeues_after_75_alone_and_not_for_ever(tmp_path, code, restarts, requeued):
    path = commands(tmp_path, srun=f"exit {code}", scontrol="")
    given = {"CONFIG": "c.py", "SHARDS": "/s", "RUN": f"{tmp_path}/r", "SLURM_JOB_ID": "7"}
    done = bash(LAUNCH / "slurm.sbatch", "--seed", "1", **given, SLURM_RESTART_COUNT=restarts, PATH=path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code
    assert calls[0].endswith(f"editjax train c.py --data /s --out {tmp_path}/r --seed 1")
    assert calls[1:] == ["scontrol requeue 7"] * requeued


@pytest.mark.parametrize(
    "codes, ends, requeued",
    [
        ((0, 0), 0, False),
        ((75, 75), 75, True),
        ((65, 75), 65, False),
        ((75, 2), 2, False),
        ((75, 137), 137, True),
        ((137, 137), 137, False),
        ((137, 65), 65, False),
    ],
)
def test_slurm_heeds_every_process_not_the_largest_code_alone(tmp_path, codes, ends, requeued):
    srun = 'shift; most=0\nfor SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; c=$?; '
    srun += "[ $c -gt $most ] && most=$c; done\nexit $most"
    editjax = f"[ $SLURM_PROCID = 0 ] && exit {codes[0]}; exit {codes[1]}"
    path = commands(tmp_path, srun=srun, scontrol="", editjax=editjax)
    given = {"CONFIG": "c.py", "SHARDS": "/s", "RUN": f"{tmp_path}/a run", "SLURM_JOB_ID": "7", "PATH": path}
    for _ in range(2):  # what an earlier start left says nothing
        assert bash(LAUNCH / "slurm.sbatch", **given).returncode == ends
        assert ("requeue" in (tmp_path / "calls").read_text()) == requeued
        (tmp_path / "a run" / "ended" / "5").write_text("66\n")


@pytest.mark.parametrize("codes, ends", [("0", 0), ("75 0", 0), ("75 75 65", 65)])
def test_a_tpu_vm_trains_on_after_75_alone(tmp_path, codes, ends):
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    body = f"""
case "$*" in
*describe*) echo READY ;;
*train*) code=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; exit "$code" ;;
esac"""
    path = commands(tmp_path, gcloud=body, sleep="")
    done = bash(LAUNCH / "tpu-vm.sh", **(dict.fromkeys(WANTED["tpu-vm.sh"], "x") | {"PATH": path}))
    calls = (tmp_path / "calls").read_text()
    assert done.returncode == ends and calls.count("JAX_NUM_PROCESSES=detect") == len(codes.split())
    assert calls.count("sleep 30") == len(codes.split()) - 1


@pytest.mark.parametrize(
    "states, done",
    [
        ("READY", "train"),
        ("PREEMPTED NOT_FOUND READY", "delete create setup train"),
        ("TERMINATED DELETING NOT_FOUND READY", "delete sleep create setup train"),
        ("NOT_FOUND READY", "create setup train"),
        ("UNAVAILABLE CREATING READY", "sleep sleep train"),
    ],
)
def test_a_tpu_vm_is_deleted_only_when_it_was_taken_away(tmp_path, states, done):
    (tmp_path / "states").write_text("\n".join(states.split()) + "\n")
    body = f"""
case "$*" in
*describe*)
    state=$(head -n 1 {tmp_path}/states)
    [ "$state" = READY ] || sed -i 1d {tmp_path}/states
    case $state in
    NOT_FOUND | UNAVAILABLE) echo "ERROR: (gcloud.describe) $state: Resource x" >&2; exit 1 ;;
    *) echo "$state" ;;
    esac ;;
esac"""
    path = commands(tmp_path, gcloud=body, sleep="")
    given = dict.fromkeys(WANTED["tpu-vm.sh"], "x") | {"SETUP": "setup", "PATH": path}
    assert bash(LAUNCH / "tpu-vm.sh", **given).returncode == 0
    calls = (tmp_path / "calls").read_text()
    assert re.findall(r"\b(?:delete|create|setup|sleep|train)\b", calls) == done.split()


@pytest.mark.parametrize("codes, ends", [((0, 0), 0), ((75, 75), 75), ((75, 65), 65), ((0, 75), 75)])
def test_processes_on_one_machine_end_with_what_went_wrong(tmp_path, codes, ends):
    body = f'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES" >> {tmp_path}/told\n'
    body += f"[ $JAX_PROCESS_ID = 0 ] && exit {codes[0]}; exit {codes[1]}"
    path = commands(tmp_path, editjax=body)
    (tmp_path / "work" / "shards").mkdir(parents=True)
    (tmp_path / "work" / "shards" / "manifest.json").touch()
    done = bash(LAUNCH / "local.sh", "c.py", tmp_path / "work", "--seed", "1", PROCESSES="2", PATH=path)
    assert done.returncode == ends, done.stderr
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["0 of 2", "1 of 2"]
    calls = (tmp_path / "calls").read_text().splitlines()
    work = tmp_path / "work"
    assert calls == [f"editjax train c.py --data {work}/shards --out {work}/run --seed 1"] * 2


def two_ready(tmp_path, path) -> subprocess.Popen:
    """`local.sh` with two processes, both of which have said that they are ready."""
    (tmp_path / "work" / "shards").mkdir(parents=True)
    (tmp_path / "work" / "shards" / "manifest.json").touch()
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), "c.py", str(tmp_path / "work")],
        env={"PATH": path, "PROCESSES": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [process.stderr.readline() for _ in range(2)] == ["ready\n"] * 2
    return process


def test_processes_on_one_machine_are_all_told_to_stop(tmp_path):
    path = commands(tmp_path, editjax="trap 'exit 75' TERM; echo ready >&2; while :; do sleep 0.1; done")
    process = two_ready(tmp_path, path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == AGAIN


def test_signals_in_a_row_do_not_hide_how_a_process_on_this_machine_ended(tmp_path):
    body = f"trap : TERM; echo ready >&2; while [ ! -e {tmp_path}/end ]; do sleep 0.1; done; exit 75"
    path = commands(tmp_path, editjax=body)
    process = two_ready(tmp_path, path)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    (tmp_path / "end").touch()
    process.communicate(timeout=60)
    assert process.returncode == AGAIN


CONFIG = """
from editjax.data import DataSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig

def config():
    return TrainConfig(
        model=PointerSettings(
            width=16, heads=1, frame_width=8, landmark_layers=1, landmark_window=8, frame_window=8, matches=1,
            style_width=0,
        ),
        data=DataSettings(batch_frames=4096, batch_multiple=2, buckets=((2048, 2048),), threads=1),
        optim=OptimSettings(learning_rate=1e-2, warmup_steps=1, steps=3),
        validate_every=0,
    )
"""


@pytest.mark.slow
def test_two_processes_of_the_script_train_what_one_with_two_devices_trains(tmp_path):
    """Simulated, prepared and trained by the commands themselves; products of matrices add up in another
    order on one core than on two, so not bit for bit (`test_multi_process` is).
    """
    from editjax.checkpoint import Checkpoints
    from editjax.cli import main

    sessions, config = tmp_path / "sessions", tmp_path / "config.py"
    config.write_text(CONFIG)
    assert (
        main(["simulate", str(sessions), "--count", "2", "--max-length-s", "40", "--min-length-s", "30"]) == 0
    )
    learned = {}
    for count in (1, 2):
        folder, bin_ = tmp_path / f"work{count}", tmp_path / f"bin{count}"
        assert main(["prepare", str(sessions), str(folder / "shards"), "--workers", "1"]) == 0
        bin_.mkdir()
        path = commands(bin_, editjax=f'exec {sys.executable} -m editjax "$@"')
        kept_names = ("HOME", "TMPDIR", "JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
        environment = {name: os.environ[name] for name in kept_names if name in os.environ}
        environment |= {"PYTHONPATH": str(LAUNCH.parent), "EDITJAX_CACHE": "off", "PATH": path}
        environment |= {"PROCESSES": str(count), "JAX_NUM_CPU_DEVICES": str(2 // count)}
        done = bash(LAUNCH / "local.sh", config, folder, "--seed", "1", **environment)
        assert done.returncode == 0, done.stderr
        with Checkpoints(folder / "run" / "last", writable=False) as last:
            assert last.newest_whole() == 3
        rows = [row for row in read_journal(folder / "run" / "metrics.jsonl") if "loss" in row]
        learned[count] = [(row["loss"], row["gradient_norm"]) for row in rows]
    assert len(learned[1]) == 3
    np.testing.assert_allclose(learned[2], learned[1], rtol=1e-5)
    np.testing.assert_allclose(learned[2][0][0], learned[1][0][0], rtol=1e-6)
