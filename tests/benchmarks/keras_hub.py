"""The encoder beside KerasHub's DebertaV3Backbone, as the TPU compiler prices both. Nothing runs; nothing is measured.

    pip install keras==3.15.1 keras-hub==0.32.0        # pip adds TensorFlow, which may be removed: it is not used
    python -m tests.benchmarks.keras_hub [--topology v5e:2x2]

Tested with jax 0.10.2, libtpu 0.0.42.1, Python 3.11 and the versions above, for v4, v5e, v5p and v6e. Not for tpu7x,
which gathers on its SparseCores: the compiler writes no schedule of that.

Forward of v3-base, 8 x 512 tokens with a padding mask, no dropout, for one chip. Both keep float32 parameters and
compute in bfloat16: KerasHub by the policy "mixed_bfloat16" ("bfloat16" would keep bfloat16 parameters, which ours does
not offer; it prices 34.5 Mcycles on v5e). Both must have the same number of parameters, which another depth, width,
vocabulary or number of buckets would change; KerasHub's heads and layers show in its gathers, which count from
[8, 12, 512, 512] elements on, two a layer.

Printed are millions of cycles. "rest" counts what carries no price on either side, small results aside: lookups of
table rows (of the embeddings; ours also takes a row of the relative tables for each of 1,024 distances, twice a layer,
which the schedule shows to be below 10,000 bundles each), and a reshape after each of KerasHub's gathers.

Priced cycles: what the compiler puts on its fusions, summed, and the bundles of our Pallas kernels
(train/tpu_kernels.py). It puts nothing on a gather. Those of attention-score size are priced from the schedule that it
wrote for that very gather in that very program, with its operands in the memory where the program has them; a schedule
is written once for gathers that are equal in all of this. It reads

    a loop that copies indices to scalar memory       trips: `iteration_bounds` of that copy;
                                                      indices in a trip: its `element_size_in_bytes` / 4
      a loop over chunks of these                     elements in a chunk: the most loads of an index that stand
                                                      in one straight-line block, which is unrolled over the chunk
        one block fetches the tile of each element,   bundles of a chunk: of the blocks with that many loads
        one picks the element out of each tile

and a gather's cycles are trips x chunks in a trip x bundles of a chunk, one bundle being issued a cycle. That is a
lower bound: waits for memory, the filling of the two loops' pipelines, what stands between the blocks and the copy of
the results are left out. v4 and v5p chips join two cores: the schedule is of one core's half of the elements, while
all steps of our kernels count.
"""

import argparse
import collections
import dataclasses
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.hlo_costs import Cost
from deberta_jax.train.compile_ahead.kernel_costs import price_kernels, write_schedules
from deberta_jax.train.compile_ahead.tpu_compiler import compile_for_tpu, cost_of, topology, trace

from .step_cost import elements, place

BASE = DebertaConfig.named("deberta-v3-base")
BATCH, LENGTH = 8, 512
SCORES = BATCH * BASE.num_attention_heads * LENGTH * LENGTH
ASKED, ASKED_SUM = 1 / 2, 1 / 50
PEER, OURS = "KerasHub", "ours, pallas"

Traced = tuple[Any, tuple[Any, ...]]  # a jitted function, its abstract arguments


# -------------------------------------------------------------------- the two programs


def keras_forward(mesh: Mesh) -> Traced:
    """KerasHub's backbone at v3-base's size, on Keras' JAX backend."""
    import keras_hub

    model = keras_hub.models.DebertaV3Backbone(
        vocabulary_size=BASE.vocab_size,
        num_layers=BASE.num_hidden_layers,
        num_heads=BASE.num_attention_heads,
        hidden_dim=BASE.hidden_size,
        intermediate_dim=BASE.intermediate_size,
        max_sequence_length=BASE.max_position_embeddings,
        bucket_size=BASE.position_buckets,
        dtype="mixed_bfloat16",
    )

    def forward(trainable: list, rest: list, inputs: dict) -> jax.Array:
        return model.stateless_call(trainable, rest, inputs, training=False)[0]

    variables = [
        [variable.value for variable in kind] for kind in (model.trainable_variables, model.non_trainable_variables)
    ]
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    return jax.jit(forward), place((*variables, {"token_ids": tokens, "padding_mask": tokens}), mesh)


def our_forward(mesh: Mesh, implementation: str) -> Traced:
    model = Deberta(BASE, jnp.bfloat16, implementation)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    function = jax.jit(lambda params, ids, mask: model.apply(params, ids, mask).last_hidden_state)
    return function, place((params, tokens, tokens), mesh)


def parameters(arguments: tuple[Any, ...]) -> int:
    """Numbers in the floating-point arguments: Keras' seeds of dropout and the tokens are integers."""
    return sum(x.size for x in jax.tree.leaves(arguments) if jnp.issubdtype(x.dtype, jnp.floating))


# -------------------------------------------------------------------- gathers, priced from their schedule


@dataclasses.dataclass(frozen=True)
class GatherSchedule:
    """trips of a loop, indices in each, elements in a chunk of them, bundles of a chunk; see the module's docstring."""

    trips: int
    indices: int
    chunk: int
    bundles: int

    @property
    def cycles(self) -> int:
        return self.trips * (self.indices // self.chunk) * self.bundles

    @classmethod
    def read(cls, text: str) -> "GatherSchedule":
        """Of the compiler's `final_bundles.txt` of a gather.

        Raises:
          ValueError: it is not built as the module's docstring says.
        """
        copy = r"to_smem.*?iteration_bounds: \((\d+)\).*?element_size_in_bytes: (\d+)"
        if (copied := re.search(copy, text, re.DOTALL)) is None:
            raise ValueError("no loop that copies indices to scalar memory")
        trips, indices = int(copied[1]), int(copied[2]) // 4
        # Scalars that were spilled are loaded too, from [smem:[#...].
        blocks = [(len(block), sum(bundle.count("sld [smem:[%") for bundle in block)) for block in _blocks(text)]
        chunk = max(loads for _, loads in blocks)
        if chunk == 0 or indices % chunk:
            raise ValueError(f"{chunk} loads of an index in a block do not divide the {indices} indices of a trip")
        return cls(trips, indices, chunk, sum(bundles for bundles, loads in blocks if loads == chunk))


def _blocks(text: str) -> list[list[str]]:
    """The bundles of a schedule, cut at its labels and after its branches.

    A branch takes effect four bundles later; what stands in these belongs to the block that it leads to or around.
    """
    blocks: list[list[str]] = [[]]
    for bundle in re.split(r"\n(?= *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: )", text)[1:]:
        if re.match(r" *\w+ [A-Z]{2}: ", bundle):
            blocks.append([])
        blocks[-1].append(bundle)
        if "sbr.rel" in bundle:
            blocks.append([])
    return blocks


def score_gathers(program: str) -> dict[str, tuple[str, ...]]:
    """The gathers of a compiled program whose result is as large as the scores: name -> types of result and operands.

    Raises:
      ValueError: one of them is not a fusion of its own.
    """
    types: dict[str, str] = {}
    fusions: dict[str, tuple[str, list[str]]] = {}
    gathering: set[str] = set()
    computation = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
            computation = header[1]
        elif found := re.match(r"\s+(?:ROOT )?%(\S+) = (.*?[\]})]) ([a-z][a-z0-9\-]*)\((.*?)\)", line):
            name, types[name], opcode, operands = found[1], found[2], found[3], re.findall(r"%([\w.\-]+)", found[4])
            if opcode == "gather" and elements(types[name]) >= SCORES:
                gathering.add(computation)
            if opcode == "fusion" and (called := re.search(r"calls=%([\w.\-]+)", line)):
                fusions[name] = (called[1], operands)
    found = {
        name: (types[name], *(types[operand] for operand in operands))
        for name, (called, operands) in fusions.items()
        if called in gathering
    }
    if len(found) != len(gathering):
        raise ValueError(f"{len(gathering)} computations gather as much as the scores, but {len(found)} fusions do")
    return found


def read_schedules(gathers: Mapping[str, tuple[str, ...]], folder: Path) -> dict[str, GatherSchedule]:
    """The schedule of each gather: its own, or that of one with the same types and places in memory.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    written = {}
    for name, signature in gathers.items():
        for path in folder.glob(f"*-{name}-[0-9][0-9]-final_bundles.txt"):
            written[signature] = GatherSchedule.read(path.read_text())
    if missing := [name for name, signature in gathers.items() if signature not in written]:
        raise ValueError(f"the TPU compiler wrote no schedule of {len(missing)} gathers, such as {missing[0]}")
    return {name: written[signature] for name, signature in gathers.items()}


# -------------------------------------------------------------------- the comparison


@dataclasses.dataclass(frozen=True)
class Price:
    """Of a program; schedules: of its gathers of attention-score size."""

    cost: Cost
    schedules: tuple[GatherSchedule, ...]
    seconds: float

    @property
    def cycles(self) -> int:
        return self.cost.cycles + sum(self.cost.kernel_cycles.values())

    @property
    def gather_cycles(self) -> int:
        return sum(schedule.cycles for schedule in self.schedules)


def compare(topology_name: str, folder: Path) -> None:
    """Prints the table.

    Args:
      folder: empty; the compiler's schedules pass through it.

    Raises:
      ValueError: KerasHub or libtpu is missing, no such topology, or a gather that cannot be priced.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise ValueError("KerasHub is missing: pip install keras==3.15.1 keras-hub==0.32.0")
    if topology_name.startswith("tpu7x"):
        raise ValueError("tpu7x gathers on its SparseCores, of which the compiler writes no schedule: give another")
    write_schedules(folder)
    _, devices = topology(topology_name)
    mesh = make_mesh(devices=devices[:1])
    programs = {PEER: keras_forward(mesh), OURS: our_forward(mesh, "pallas"), "ours, xla": our_forward(mesh, "xla")}
    sizes = {name: parameters(arguments) for name, (_, arguments) in programs.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"these are not the same model, they differ in parameters: {sizes}")
    print(
        f"compiler estimates for one chip of {topology_name}: forward, {BATCH} x {LENGTH} tokens, bfloat16, "
        f"{sizes[PEER]:,} parameters"
    )
    print(", ".join(f"{package} {version(package)}" for package in ("jax", "libtpu", "keras", "keras-hub")))
    print(f"{'':14}{'priced':>9}{'of it kernels':>15}{'gathers':>9}{'their cycles':>14}{'sum':>10}{'rest':>6}{'s':>5}")
    prices = {}
    for name, (function, arguments) in programs.items():
        prices[name] = price(function, arguments, devices[0], folder)
        show(name, prices[name])
    ours, peer = prices[OURS], prices[PEER]
    priced = ours.cycles / peer.cycles
    summed = (ours.cycles + ours.gather_cycles) / (peer.cycles + peer.gather_cycles)
    print(f"{OURS}, to {PEER}, priced cycles only: {priced:.3f} (asked: at most {ASKED:.3f})")
    print(f"{OURS}, to {PEER}, with gathers: {summed:.5f} = 1/{1 / summed:.0f} (asked: at most {ASKED_SUM:.5f})")


def price(function: Any, arguments: tuple[Any, ...], device: Any, folder: Path) -> Price:
    start = time.perf_counter()
    for path in folder.iterdir():
        path.unlink()  # another program's fusions have the same names
    traced = trace(function, *arguments)
    kernels = price_kernels(traced.jaxpr, device, folder)
    compiled = compile_for_tpu(traced)
    schedules = read_schedules(score_gathers(compiled.as_text()), folder)
    return Price(cost_of(compiled, kernels=kernels), tuple(schedules.values()), time.perf_counter() - start)


def show(name: str, found: Price) -> None:
    kernels, rest = sum(found.cost.kernel_cycles.values()), sum(found.cost.unpriced.values()) - len(found.schedules)
    print(
        f"{name:14}{found.cycles / 1e6:9.2f}{kernels / 1e6:15.2f}{len(found.schedules):9}"
        f"{found.gather_cycles / 1e6:14.2f}{(found.cycles + found.gather_cycles) / 1e6:10.2f}{rest:6}"
        f"{found.seconds:5.0f}",
        flush=True,
    )
    for schedule, count in collections.Counter(found.schedules).items():
        print(
            f"  {count} gathers of {schedule.trips} trips x {schedule.indices // schedule.chunk} chunks x "
            f"{schedule.bundles} bundles; {schedule.chunk} elements a chunk, "
            f"{schedule.bundles / schedule.chunk:.1f} bundles an element"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deberta-jax-") as folder:
        try:
            compare(options.topology, Path(folder))
        except ValueError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
