"""Runs the model in this folder. It needs jax and flatbuffers; `python load.py` compares it with stored outputs."""

import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


def read_weights(path):
    """Maps a safetensors file of float32 arrays into memory: a length, a JSON header, the numbers."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    spans = {name: (entry["shape"], *entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"}
    return {name: data[start + a : start + b].view("<f4").reshape(shape) for name, (shape, a, b) in spans.items()}


class Model:
    """Model()(input_ids=ids, attention_mask=mask) returns a dict of arrays. It compiles once for each new shape."""

    def __init__(self, folder=HERE):
        self.serving = json.loads(Path(folder, "serving.json").read_text(encoding="utf-8"))
        exported = jax.export.deserialize(bytearray(Path(folder, "model.stablehlo").read_bytes()))
        self.weights = jax.device_put(read_weights(Path(folder, "weights.safetensors")))
        self.program = jax.jit(exported.call)

    def __call__(self, **inputs):
        names, longest = self.serving["inputs"], self.serving["max_length"]
        if set(inputs) != set(names):
            raise ValueError(f"the inputs are {', '.join(inputs)}; they must be {', '.join(names)}")
        if longest and np.shape(inputs["input_ids"])[-1] > longest:
            raise ValueError(f"input_ids has the shape {np.shape(inputs['input_ids'])}; at most {longest} tokens fit")
        arrays = {name: np.asarray(value, np.int32) for name, value in inputs.items()}
        return jax.device_get(self.program(self.weights, arrays))


def difference(outputs, expected):
    """Returns the largest difference of two dicts of arrays, as a part of the largest element; NaN if there is one."""
    differences = []
    for name, array in expected.items():
        wanted = np.asarray(array, np.float64)
        largest = max(np.abs(wanted).max(), 1e-30)
        differences.append(np.abs(np.asarray(outputs[name], np.float64) - wanted).max() / largest)
    return float(np.max(differences))


def tolerance(dtype):
    """Returns the largest allowed difference. Accelerators multiply float32 in fewer digits, and bfloat16 has fewer."""
    return 1e-4 if jax.default_backend() == "cpu" and dtype == "float32" else 0.05


def main():
    """Runs the stored example and returns the exit status: 0 if the outputs are the stored ones."""
    model, example = Model(), dict(np.load(HERE / "example.npz"))
    outputs = model(**{name: example[name] for name in model.serving["inputs"]})
    error = difference(outputs, {name: example[name] for name in outputs})
    passed = error <= tolerance(model.serving["dtype"])
    verdict = "are the stored ones" if passed else "are NOT the stored ones"
    distance = f"the largest difference is {error:.1e} of the largest output"
    print(f"{model.serving['task']} on {jax.devices()[0]}: the outputs {verdict}; {distance}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
