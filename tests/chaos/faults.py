"""The faults. Each function injects one into a running start, and returns once everything that follows has happened."""

import random
import re
import shutil
import signal
import time
from pathlib import Path

from ..support.cluster import wait_until
from ..support.recorded_runs import DEAD_AFTER, STALL_AFTER, checkpoints, last_step
from ..support.small_disk import fill
from .broken_run import COUNT, PATIENCE
from .scene import Fault, Scene

# A process exits at most so long after it has noticed that another one is lost: a broken collective waits for the
# verdict of the watchdog, the message of process 0 has to be read, and two cores are shared by all.
_VERDICT = 30.0
_DISK_FULL = "the disk is full; trying again"


def _at_some_moment(scene: Scene) -> None:
    scene.run.go_on(scene.chance.randint(1, 4))
    time.sleep(scene.chance.uniform(0, 0.5))
    scene.begin()


def _signal_victim(scene: Scene, number: signal.Signals) -> None:
    scene.run.processes[scene.victim].popen.send_signal(number)


# ---------------------------------------------------------------------------------------------- lost processes


def kill(scene: Scene) -> None:
    _at_some_moment(scene)
    _signal_victim(scene, signal.SIGKILL)
    scene.expect_end(victim_codes=(-signal.SIGKILL,), named=True)


def kill_during_save(scene: Scene) -> None:
    scene.run.go_on(scene.chance.randint(1, 4))
    folder = scene.run.output / "checkpoints"
    scene.run.wait_for(lambda: any(folder.glob("*.orbax-checkpoint-tmp")), purpose="a save", interval=0.0)
    scene.begin()
    _signal_victim(scene, signal.SIGKILL)
    scene.expect_end(victim_codes=(-signal.SIGKILL,), named=True)


def freeze(scene: Scene) -> None:
    _at_some_moment(scene)
    _signal_victim(scene, signal.SIGSTOP)
    scene.expect_end(frozen=True, named=True)


def hang_loader(scene: Scene) -> None:
    _at_some_moment(scene)
    with scene.run.switched_on(f"stuck-{scene.victim}"):
        scene.expect_end(named=True)


def terminate(scene: Scene) -> None:
    _at_some_moment(scene)
    _signal_victim(scene, signal.SIGTERM)
    scene.expect_end((42,))
    scene.expect("preempted (SIGTERM)" in scene.run.printed(0), "process 0 does not say that it was preempted")


# ---------------------------------------------------------------------------------------------- damaged checkpoints


def truncate(scene: Scene) -> None:
    """Truncates every file, since some files hold nothing that is referred to any more."""
    for path in _array_files(scene, _kill_with_checkpoints(scene)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(scene: Scene) -> None:
    """Flips one bit of every file."""
    for path in _array_files(scene, _kill_with_checkpoints(scene)):
        content = bytearray(path.read_bytes())
        content[scene.chance.randrange(len(content))] ^= 1 << scene.chance.randrange(8)
        path.write_bytes(content)


def _kill_with_checkpoints(scene: Scene) -> int:
    """Kills all processes once there are two checkpoints. Returns the step of the newest, which is to be damaged."""
    _at_some_moment(scene)
    scene.run.wait_for(lambda: len(checkpoints(scene.run.output)) > 1, purpose="two checkpoints")
    scene.begin()
    scene.run.kill()
    scene.seen.append("all killed")
    step = checkpoints(scene.run.output)[-1]
    scene.run.expect_message(f"the checkpoint of step {step} in")
    return step


def _array_files(scene: Scene, step: int) -> list[Path]:
    folder = scene.run.output / "checkpoints" / str(step)
    return [path for path in folder.rglob("d/*") if path.is_file() and path.stat().st_size > 1000]


# ---------------------------------------------------------------------------------------------- a full disk


def fill_disk(scene: Scene) -> None:
    """The run must continue once there is room again, without a restart and with every line of its logs."""
    filler = _fill_until_noticed(scene)
    time.sleep(scene.chance.uniform(0, 4))
    filler.unlink()
    for log in ("metrics.jsonl", "goodput.jsonl"):
        scene.run.wait_for(lambda log=log: _is_written_again(scene, log), purpose=f"{log} to be written again")
    scene.expect_to_go_on(6)  # more than the steps whose lines waited for room
    given_up = scene.run.printed(0).count("tensorboard/ is no longer written")
    scene.expect(given_up <= 1, f"process 0 says {given_up} times that TensorBoard's file is given up")


def _is_written_again(scene: Scene, log: str) -> bool:
    printed = scene.run.printed(0)
    return printed.count(f"{log} is written again") == printed.count(f"{log} cannot be written")


def terminate_on_full_disk(scene: Scene) -> None:
    """The run must end soon, because a scheduler does not wait, and say so if nothing could be saved.

    What a failed save leaves behind is removed, which may be room enough for the next one.
    """
    filler = _fill_until_noticed(scene)
    _signal_victim(scene, signal.SIGTERM)
    scene.expect_end((42,))
    filler.unlink()
    printed = scene.run.printed(0)
    said = re.search(r"preempted \(SIGTERM\): step \d+ is saved|could not write a checkpoint into", printed)
    scene.expect(bool(said), f"process 0 does not say whether it could save: {printed[-300:]!r}")


def _fill_until_noticed(scene: Scene) -> Path:
    """Fills the disk up, and waits until a save has failed. Returns the file that takes all the room."""
    scene.run.go_on(scene.chance.randint(1, 4))
    # Right after a save, so that metrics of steps are to be written before the next one waits for room.
    every = scene.run.settings["save_every"]
    scene.run.wait_for(lambda: last_step(scene.run.output) % every == 1, purpose="a step after a save")
    time.sleep(scene.chance.uniform(0, 0.2))
    scene.begin()
    filler, failures = scene.run.output / "filler", scene.run.printed(0).count(_DISK_FULL)
    fill(filler)
    for log in ("metrics.jsonl", "goodput.jsonl"):  # there is still room in the last page of each file
        fill(scene.run.output / log, b"\n")
    scene.run.wait_for(lambda: scene.run.printed(0).count(_DISK_FULL) > failures, purpose="a save to fail")
    late = "metrics.jsonl cannot be written" in scene.run.printed(0)
    scene.seen.append("save failed" + ", metrics late" * late)
    return filler


# ---------------------------------------------------------------------------------------------- wrong starts


def start_second_run(scene: Scene) -> None:
    """The second run must end at once and name the first one, which must continue."""
    _at_some_moment(scene)
    owner = scene.run.processes[0].popen.pid
    with (
        scene.run.switched_on("slow"),  # otherwise the run ends while the second one starts
        scene.run.other_start("second", scene.run.command()) as processes,
    ):
        scene.expect_refusal(processes, rf"{re.escape(str(scene.run.output))} is in use by process {owner} on")
    scene.expect_to_go_on(1)


def start_unshared(scene: Scene) -> None:
    """Every process but the first sees another disk under the same path. Nothing may be trained or written."""
    scene.run.kill()
    output = scene.run.output
    disks = {index: output.parent / f"disk-{index}" for index in range(1, COUNT)}
    for disk in disks.values():
        disk.mkdir(exist_ok=True)
    before, rows = _contents(output), _contents(output / "records")
    scene.begin()
    command = scene.run.command(Path(output.name))
    with scene.run.other_start("unshared", command, {0: output.parent, **disks}) as processes:
        scene.expect_refusal(processes, f"--output {output.name} is not the same folder on all hosts: process 1 on")
    scene.expect(_contents(output) == before, "the folder of the run was changed")
    scene.expect(_contents(output / "records") == rows, "batches were read")
    for index, disk in disks.items():
        written = [path for path in disk.rglob("*") if path.is_file()]
        scene.expect(not written, f"process {index} wrote {written}")
        shutil.rmtree(disk)


def _contents(folder: Path) -> dict[str, bytes]:
    """Returns the files in a folder, without those behind symbolic links and without locks of killed processes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---------------------------------------------------------------------------------------------- a writer that hangs


def hang_log_writer(scene: Scene) -> None:
    """No step waits for the writer, and neither does the end of the run for long."""
    _at_some_moment(scene)
    with scene.run.switched_on("hung-log"):
        _wait_until_writer_hangs(scene)
        scene.expect_to_go_on(3)
        _signal_victim(scene, signal.SIGTERM)
        scene.expect_end((42,))
    _expect_loss_of_events(scene)


def hang_log_writer_at_the_end(scene: Scene) -> None:
    """The last round: trains to the end, which has to come although the writer hangs."""
    steps = scene.run.settings["steps"]
    scene.run.go_on(max(1, steps - 8 - last_step(scene.run.output)))
    scene.begin()
    with scene.run.switched_on("hung-log"):
        _wait_until_writer_hangs(scene)
        scene.expect_end((0,))
    _expect_loss_of_events(scene)


def _wait_until_writer_hangs(scene: Scene) -> None:
    mark = scene.run.output / "records" / "log-hangs"
    wait_until(mark.exists, seconds=PATIENCE, purpose="the writer of TensorBoard's file to hang")
    mark.unlink()


def _expect_loss_of_events(scene: Scene) -> None:
    lost = re.search(r"tensorboard/: \d+ entries could not be written", scene.run.printed(0))
    scene.expect(bool(lost), "process 0 does not say that events of TensorBoard are lost")


LAST = Fault("hung log writer until the end", hang_log_writer_at_the_end, bound=120, share=1)
FAULTS = (
    Fault("SIGKILL", kill, bound=DEAD_AFTER + _VERDICT, share=3),
    Fault("SIGKILL during a save", kill_during_save, bound=DEAD_AFTER + _VERDICT, share=3),
    Fault("SIGSTOP", freeze, bound=DEAD_AFTER + _VERDICT, share=1),
    Fault("stuck data loader", hang_loader, bound=STALL_AFTER + _VERDICT, share=1),
    Fault("SIGTERM", terminate, bound=_VERDICT, share=1),
    Fault("checkpoint truncated", truncate, bound=10, share=1),
    Fault("checkpoint with flipped bits", flip_bits, bound=10, share=1),
    Fault("disk full, then freed", fill_disk, bound=90, share=2, fills_disk=True),
    Fault("SIGTERM on a full disk", terminate_on_full_disk, bound=60, share=1, fills_disk=True),
    Fault("second run in the folder", start_second_run, bound=120, share=2),
    Fault("unshared output", start_unshared, bound=180, share=1),
    Fault("hung log writer", hang_log_writer, bound=90, share=2),
)


def plan(rounds: int, chance: random.Random, *, small_disk: bool) -> list[Fault]:
    """Returns the faults of so many rounds, in a random order; 20 rounds have each of them.

    Args:
      small_disk: whether the run's folder is on a disk that may be filled up.
    """
    mix = [fault for fault in FAULTS for _ in range(fault.share) if small_disk or not fault.fills_disk]
    faults: list[Fault] = []
    while len(faults) < rounds - 1:
        chance.shuffle(mix)
        faults += mix
    return [*faults[: rounds - 1], LAST]
