"""A recorder in place of gcloud, xpk and docker, and the calls that tpu_scripts/ must make."""

import shlex
import shutil
import subprocess
from pathlib import Path

from .paths import TPU_SCRIPTS

QUEUED, GKE = TPU_SCRIPTS / "queued", TPU_SCRIPTS / "gke"
WORKER = QUEUED / "worker.sh"
RUNNABLE = sorted(path for path in TPU_SCRIPTS.glob("*/*.sh") if path != WORKER)
WHEEL = "deberta_jax-1.0.0-py3-none-any.whl"
TRAIN = ("deberta-jax", "pretrain", "--output", "bucket/my run", "--steps", "5")
ENVIRONMENT = {"TPU_PROJECT": "p-1", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-256", "TPU_CLUSTER": "c1"}
PLACE = ("--project=p-1", "--zone=us-west4-a")
IN_CLUSTER = ("--cluster=c1", *PLACE)
EVERYWHERE = ("--node=all", "--worker=all")
PATIENCE = ("--ssh-flag=-oConnectTimeout=30", "--ssh-flag=-oServerAliveInterval=30")
GKE_LOGS = [
    *("gcloud", "logging", "read"),
    "resource.type=k8s_container AND resource.labels.cluster_name=c1 AND resource.labels.pod_name:base-slice-job-",
    *(
        "--limit=30",
        "--freshness=30d",
        "--format=value(timestamp,resource.labels.pod_name,textPayload)",
        "--project=p-1",
    ),
]
GKE_LOGS_100 = [word.replace("--limit=30", "--limit=100") for word in GKE_LOGS]

# Records its name and arguments, prints the next answer and exits with its status. In bash, which starts faster than
# Python: a test of watch.sh makes dozens of calls.
RECORDER = """#!/bin/bash
number=$(<{folder}/count)
echo $((number + 1)) > {folder}/count
printf '%s\\0' "${{0##*/}}" "$@" $'\\n' >> {folder}/calls
text='' status=0
if [[ -e {folder}/answers/$number ]]; then {{ read -r status; IFS= read -rd '' text; }} < {folder}/answers/$number; fi
printf '%s\\n' "$text"
exit "$status"
"""
END_OF_CALL = "\n"


class Machine:
    """A machine with recorders first in PATH, an empty home, and a working folder with a wheel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "home", "work"):
            (folder / name).mkdir()
        (folder / "work" / WHEEL).touch()
        self.install("gcloud", "xpk", "docker")

    def install(self, *programs: str) -> None:
        for program in programs:
            path = self.folder / "bin" / program
            path.write_text(RECORDER.format(folder=shlex.quote(str(self.folder))))
            path.chmod(0o755)

    def run(
        self, script: Path, *arguments: str, answers: list[tuple[str, int]] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script in the working folder, without the environment of this process.

        Args:
          script: the script.
          arguments: its arguments.
          answers: the output and exit status of each recorded call (default: empty, 0).
        """
        (self.folder / "calls").write_text("")
        (self.folder / "count").write_text("0\n")
        shutil.rmtree(self.folder / "answers", ignore_errors=True)
        (self.folder / "answers").mkdir()
        for number, (text, status) in enumerate(answers or []):
            (self.folder / "answers" / str(number)).write_text(f"{status}\n{text}")
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder / "home"), **ENVIRONMENT}
        return subprocess.run(
            [str(script), *arguments],
            cwd=self.folder / "work",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,  # only ends a hang
        )

    def calls(self) -> list[list[str]]:
        """Returns the calls of the last run, each as the name of the program and its arguments."""
        calls, words = [], []
        for word in (self.folder / "calls").read_text().split("\0")[:-1]:
            if word == END_OF_CALL:
                calls.append(words)
                words = []
            else:
                words.append(word)
        return calls


def xla_flags(generation: str) -> str:
    done = subprocess.run(
        ["bash", "-c", f"source '{TPU_SCRIPTS / 'xla_flags.sh'}'; xla_flags {generation}"],
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
SCP = queued("scp", str(WORKER), f"{QUEUED}/../constraints.txt", WHEEL, "base:", *EVERYWHERE)
SETUP = ssh(f"bash worker.sh setup {WHEEL} texts")
TRAINING = f"env 'LIBTPU_INIT_ARGS={xla_flags('v5e')}' deberta-jax pretrain --output 'bucket/my run' --steps 5"
START = ssh(f"bash worker.sh start {TRAINING}")
STOP = ssh("bash worker.sh stop")
LOGS = ssh("bash worker.sh logs 30")
DELETE = queued("delete", "base", "--force", "--quiet")
