"""Compares the encoder with KerasHub's DebertaV3Backbone by the TPU compiler's estimates. Nothing is run or measured.

    pip install keras==3.15.1 keras-hub==0.32.0        # pip adds TensorFlow, which is not used and may be removed
    python -m tests.benchmarks.keras_hub [--topology v5e:2x2]

Tested with jax 0.10.2, libtpu 0.0.42.1, Python 3.11 and the versions above, for v4, v5e, v5p and v6e. tpu7x is not
supported: it gathers on its SparseCores, and the compiler writes no schedule for them.

Both programs are the forward pass of v3-base on 8 x 512 tokens with a padding mask, without dropout, for one chip. Both
keep float32 parameters and compute in bfloat16. KerasHub does so under the policy "mixed_bfloat16"; under "bfloat16" it
would keep bfloat16 parameters, which ours does not offer, and takes 34.5 Mcycles on v5e. Both must have the same number
of parameters, so depth, width, vocabulary and number of buckets agree. KerasHub's heads and layers show in its gathers:
two a layer, and only those of at least [8, 12, 512, 512] elements are counted.

The figures are millions of cycles. The column "other" counts instructions without a price on either side, apart from
small ones: look-ups of embedding rows, and a reshape after each of KerasHub's gathers. Ours also takes rows of the
relative tables for each of 1,024 distances, twice a layer; the schedule shows fewer than 10,000 bundles for each.

Priced cycles are the sum of the compiler's estimates for its fusions and the bundles of our Pallas kernels (see
train/compile_ahead/schedules.py). The compiler has no estimate for a gather. Gathers of the size of attention scores
are priced from the schedule that the compiler wrote for that gather in that program, with its operands in the same
memory. Gathers that are equal in all of this share one schedule. A schedule has this structure:

    a loop that copies indices to scalar memory       trips: `iteration_bounds` of that copy;
                                                      indices in a trip: its `element_size_in_bytes` / 4
      a loop over chunks of these indices             elements in a chunk: the largest number of index loads in one
                                                      straight-line block, which is unrolled over the chunk
        one block fetches the tile of each element,   bundles of a chunk: those of the blocks with that many loads
        one picks the element out of each tile

The cycles of a gather are trips x chunks in a trip x bundles of a chunk, as one bundle is issued per cycle. That is a
lower bound: it leaves out waits for memory, the filling of the pipelines of both loops, the bundles between the blocks,
and the copy of the results. Chips of v4 and v5p join two cores: the schedule covers one core's half of the elements,
while all steps of our kernels are counted.
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
from deberta_jax.train.compile_ahead.hlo_costs import Cost, read_cost
from deberta_jax.train.compile_ahead.schedules import dump_schedules, read_schedules
from deberta_jax.train.compile_ahead.tpu_compiler import compile_for_tpu, topology, trace

from .step_cost import elements, replicate

BASE = DebertaConfig.named("deberta-v3-base")
BATCH, LENGTH = 8, 512
SCORES = BATCH * BASE.num_attention_heads * LENGTH * LENGTH  # elements
TARGET_PRICED, TARGET_WITH_GATHERS = 1 / 2, 1 / 50  # of KerasHub's cycles
PEER, PALLAS = "KerasHub", "ours, pallas"

Case = tuple[Any, tuple[Any, ...]]  # a jitted function and its abstract arguments


# -------------------------------------------------------------------- the two programs


def keras_forward(mesh: Mesh) -> Case:
    """Returns KerasHub's backbone at v3-base's size, on the JAX backend of Keras."""
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

    def forward(trainable: list, non_trainable: list, inputs: dict) -> jax.Array:
        return model.stateless_call(trainable, non_trainable, inputs, training=False)[0]

    variables = [
        [variable.value for variable in group] for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    return jax.jit(forward), replicate((*variables, {"token_ids": tokens, "padding_mask": tokens}), mesh)


def library_forward(mesh: Mesh, implementation: str) -> Case:
    """Returns `Deberta` at v3-base's size with an implementation of attention."""
    model = Deberta(BASE, jnp.bfloat16, implementation)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    function = jax.jit(lambda params, ids, mask: model.apply(params, ids, mask).last_hidden_state)
    return function, replicate((params, tokens, tokens), mesh)


def parameter_count(arguments: tuple[Any, ...]) -> int:
    """Counts the numbers in floating-point arguments. Tokens and the dropout seeds of Keras are integers."""
    return sum(x.size for x in jax.tree.leaves(arguments) if jnp.issubdtype(x.dtype, jnp.floating))


# -------------------------------------------------------------------- prices of gathers from their schedules


@dataclasses.dataclass(frozen=True)
class GatherSchedule:
    """The loops of a gather, as the module's docstring describes them.

    Attributes:
      trips: number of times that indices are copied to scalar memory.
      indices: indices in each copy.
      chunk: elements that the inner loop processes at a time.
      bundles: VLIW bundles of one chunk.
    """

    trips: int
    indices: int
    chunk: int
    bundles: int

    @property
    def cycles(self) -> int:
        return self.trips * (self.indices // self.chunk) * self.bundles

    @classmethod
    def read(cls, text: str) -> "GatherSchedule":
        """Reads the compiler's `final_bundles.txt` of a gather.

        Raises:
          ValueError: the schedule has another structure than the module's docstring describes.
        """
        copy = r"to_smem.*?iteration_bounds: \((\d+)\).*?element_size_in_bytes: (\d+)"
        if (copied := re.search(copy, text, re.DOTALL)) is None:
            raise ValueError("no loop that copies indices to scalar memory")
        trips, indices = int(copied[1]), int(copied[2]) // 4
        # A load of an index is "sld [smem:[%s22 + ...". Loads of spilled scalars, "sld [smem:[#...", do not count.
        blocks = [(len(block), sum(bundle.count("sld [smem:[%") for bundle in block)) for block in _blocks(text)]
        chunk = max(loads for _, loads in blocks)
        if chunk == 0 or indices % chunk:
            raise ValueError(f"{chunk} loads of an index in a block do not divide the {indices} indices of a trip")
        return cls(trips, indices, chunk, sum(bundles for bundles, loads in blocks if loads == chunk))


def _blocks(text: str) -> list[list[str]]:
    """Splits the bundles of a schedule into blocks, at its labels and after its branches.

    A branch takes effect four bundles later. Those four belong to the block that follows: the branch decides whether
    that block runs at all.
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
    """Finds the gathers of a program with results as large as the scores: name -> types of result and operands.

    Raises:
      ValueError: a gather does not have a fusion to itself.
    """
    types: dict[str, str] = {}
    fusions: dict[str, tuple[str, list[str]]] = {}
    gathering: set[str] = set()
    computation = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
            computation = header[1]
        elif match := re.match(r"\s+(?:ROOT )?%(\S+) = (.*?[\]})]) ([a-z][a-z0-9\-]*)\((.*?)\)", line):
            name, types[name], opcode, operands = match[1], match[2], match[3], re.findall(r"%([\w.\-]+)", match[4])
            if opcode == "gather" and elements(types[name]) >= SCORES:
                gathering.add(computation)
            if opcode == "fusion" and (called := re.search(r"calls=%([\w.\-]+)", line)):
                fusions[name] = (called[1], operands)
    gathers = {
        name: (types[name], *(types[operand] for operand in operands))
        for name, (called, operands) in fusions.items()
        if called in gathering
    }
    if len(gathers) != len(gathering):
        raise ValueError(f"{len(gathering)} computations gather as much as the scores, but {len(gathers)} fusions do")
    return gathers


def read_gather_schedules(gathers: Mapping[str, tuple[str, ...]], folder: Path) -> dict[str, GatherSchedule]:
    """Reads the schedule of each gather. The compiler writes one for all gathers with the same types and memory spaces.

    Raises:
      ValueError: a gather has no schedule, or it cannot be read.
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
    """What a program costs.

    Attributes:
      cost: the compiler's estimates, and the kernels.
      schedules: schedules of the gathers that are as large as the attention scores.
      seconds: time of tracing and compiling.
    """

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
      topology_name: CHIP:SHAPE.
      folder: an empty folder for the schedules that the compiler writes.

    Raises:
      ValueError: KerasHub or libtpu is missing, the topology does not exist, or a gather cannot be priced.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise ValueError("KerasHub is not installed: pip install keras==3.15.1 keras-hub==0.32.0")
    if topology_name.startswith("tpu7x"):
        raise ValueError("tpu7x gathers on its SparseCores, without a schedule; give a topology of another chip")
    dump_schedules(folder)
    _, devices = topology(topology_name)
    mesh = make_mesh(devices=devices[:1])
    programs = {
        PEER: keras_forward(mesh),
        PALLAS: library_forward(mesh, "pallas"),
        "ours, xla": library_forward(mesh, "xla"),
    }
    sizes = {name: parameter_count(arguments) for name, (_, arguments) in programs.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the models differ in their number of parameters: {sizes}")
    print(
        f"compiler estimates for one chip of {topology_name}: forward, {BATCH} x {LENGTH} tokens, bfloat16, "
        f"{sizes[PEER]:,} parameters"
    )
    print(", ".join(f"{package} {version(package)}" for package in ("jax", "libtpu", "keras", "keras-hub")))
    print(f"{'':14}{'priced':>9}{'in kernels':>12}{'gathers':>9}{'in gathers':>12}{'sum':>10}{'other':>7}{'s':>5}")
    prices = {}
    for name, (function, arguments) in programs.items():
        prices[name] = price_program(function, arguments, folder)
        print_price(name, prices[name])
    library, peer = prices[PALLAS], prices[PEER]
    priced = library.cycles / peer.cycles
    total = (library.cycles + library.gather_cycles) / (peer.cycles + peer.gather_cycles)
    print(f"{PALLAS} / {PEER}, priced cycles only: {priced:.3f} (target: at most {TARGET_PRICED:.3f})")
    print(
        f"{PALLAS} / {PEER}, with gathers: {total:.5f} = 1/{1 / total:.0f} (target: at most {TARGET_WITH_GATHERS:.5f})"
    )


def price_program(function: Any, arguments: tuple[Any, ...], folder: Path) -> Price:
    """Compiles a program and returns its price. `folder` is that of `dump_schedules`."""
    start = time.perf_counter()
    for path in folder.iterdir():
        path.unlink()  # the fusions of another program have the same names
    compiled = compile_for_tpu(trace(function, *arguments))
    schedules = read_gather_schedules(score_gathers(compiled.as_text()), folder)
    cost = read_cost(compiled.as_text(), schedules=read_schedules(folder, prefix="disentangled"))
    return Price(cost, tuple(schedules.values()), time.perf_counter() - start)


def print_price(name: str, price: Price) -> None:
    kernels, other = sum(price.cost.kernel_cycles.values()), sum(price.cost.unpriced.values()) - len(price.schedules)
    print(
        f"{name:14}{price.cycles / 1e6:9.2f}{kernels / 1e6:12.2f}{len(price.schedules):9}"
        f"{price.gather_cycles / 1e6:12.2f}{(price.cycles + price.gather_cycles) / 1e6:10.2f}{other:7}"
        f"{price.seconds:5.0f}",
        flush=True,
    )
    for schedule, count in collections.Counter(price.schedules).items():
        print(
            f"  {count} gathers of {schedule.trips} trips x {schedule.indices // schedule.chunk} chunks x "
            f"{schedule.bundles} bundles; {schedule.chunk} elements in a chunk, "
            f"{schedule.bundles / schedule.chunk:.1f} bundles per element"
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
