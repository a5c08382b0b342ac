"""A recorder in place of gcloud, xpk and docker, and the calls that the scripts of tpu_scripts/ are to make."""

import json
import subprocess
import sys
from pathlib import Path

from .paths import TPU_SCRIPTS

QUEUED, GKE = TPU_SCRIPTS / "queued", TPU_SCRIPTS / "gke"
WORKER = QUEUED / "worker.sh"
RUNNABLE = sorted(path for path in TPU_SCRIPTS.glob("*/*.sh") if path != WORKER)
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
    *(
        "--limit=30",
        "--freshness=30d",
        "--format=value(timestamp,resource.labels.pod_name,textPayload)",
        "--project=p-1",
    ),
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


class Machine:
    """A folder with recorders first in PATH, an empty home, and a folder with the wheel to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "home", "work"):
            (folder / name).mkdir()
        (folder / "work" / WHEEL).touch()
        self.install("gcloud", "xpk", "docker")

    def install(self, *programs: str) -> None:
        for program in programs:
            path = self.folder / "bin" / program
            path.write_text(RECORDER.format(python=sys.executable, folder=str(self.folder)))
            path.chmod(0o755)

    def run(self, script: Path, *arguments: str, answers: list | None = None) -> subprocess.CompletedProcess[str]:
        """In the folder to work in, with nothing of this environment. answers: text and exit status of each call."""
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


def xla_flags(generation: str) -> str:
    done = subprocess.run(
        ["bash", "-c", f"source {TPU_SCRIPTS / 'xla_flags.sh'}; xla_flags {generation}"],
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
