"""The settings of a run, as `deberta-jax pretrain` and `deberta-jax finetune` take them from the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, get_args

from deberta_jax.errors import UserError
from deberta_jax.rtd import EmbeddingSharing
from deberta_jax.sift import SiftConfig

ScheduleName = Literal[
    "warmup_linear_shift",
    "warmup_linear",
    "warmup_cosine",
    "warmup_constant",
    "warmup_linear_cosine",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as the original trains with: no bias correction, decay scaled by the learning rate, global-norm clip."""

    learning_rate: float = 1e-4
    schedule: ScheduleName = (
        "warmup_linear_shift"  # the continuous one; "warmup_linear" is the original's, jump included
    )
    schedule_end: float = 0.0  # share of learning_rate left at the last step
    warmup: float = 0.1  # below 1: a share of the steps; from 1 on: steps
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # 0: no clip
    bias_correction: bool = False  # the original has none
    decay_embedding_delta: bool = False  # the original decays GDES's delta toward zero, by oversight (B10)

    def __post_init__(self) -> None:
        if self.schedule not in get_args(ScheduleName):
            raise UserError(f"schedule is {self.schedule!r}; it must be one of {', '.join(get_args(ScheduleName))}")
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm", "schedule_end"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices share what; data parallelism takes what is left."""

    zero: int = 1
    """devices that share the optimizer's moments (ZeRO-1), and the batch"""
    fsdp: int = 1
    """devices that split the parameters among them (and the batch)"""
    tensor: int = 1
    """devices that split heads, feed-forward and vocabulary among them"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """The processes of a run, one a host. On Cloud TPU, and where Slurm or Open MPI start them, JAX finds them out."""

    coordinator: str | None = None
    """ADDRESS:PORT of process 0, where JAX cannot find it out; index and count go with it"""
    count: int | None = None
    """number of processes"""
    index: int | None = None
    """which of them this is, from 0"""
    start_within: int = 600
    """seconds to wait for all processes at the start"""
    dead_after: float = 30.0
    """seconds of silence after which a process counts as lost and the others end with exit code 42"""
    stall_after: float = 120.0
    """seconds of one step, or of waiting for one batch, after which all end with exit code 42; ten times the fastest
    step where that is more"""
    slow_after: float = 1800.0
    """the same for compiling, restoring, evaluating and saving"""
    clock_within: float = 10.0
    """seconds that the clocks of the hosts may differ by"""

    def __post_init__(self) -> None:
        given = [name for name in ("coordinator", "count", "index") if getattr(self, name) is not None]
        if len(given) not in (0, 3):
            raise UserError(f"hosts: {' and '.join(given)} given; give coordinator, count and index, or none of them")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise UserError(f"hosts: index is {self.index}; it must be 0 to {self.count - 1}, count being {self.count}")
        for name in ("start_within", "dead_after", "stall_after", "slow_after", "clock_within"):
            if getattr(self, name) <= 0:
                raise UserError(f"hosts: {name} is {getattr(self, name)}; it must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RunConfig:
    """What pre-training and fine-tuning have in common."""

    output: Path
    """folder of the run: checkpoints, metrics, and at the end the models"""
    accumulation: int = 1
    """chunks that a batch is worked off in, to save memory"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what activations are computed in; parameters, softmax, LayerNorm, scores and losses stay float32"""
    remat: bool = False
    """recompute each layer in the backward pass instead of keeping its activations"""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: int = 0
    log_every: int = 10
    max_seconds: float | None = None
    """save and stop, with exit code 0, after so much time; the same command goes on"""
    profile: tuple[int, int] | None = None
    """first and last step to record with JAX's profiler, into profile/ of the run's folder"""
    compilation_cache: Path | None = None
    """folder that keeps compiled programs for the next start; default: compiled/ of the run's folder on a TPU,
    elsewhere none but that of JAX_COMPILATION_CACHE_DIR"""

    def __post_init__(self) -> None:
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise UserError(f"max_seconds is {self.max_seconds:g}; it must be above 0")
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise UserError(f"profile is {self.profile}; give the first and the last step, from 1 on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(_RunConfig):
    """Pre-train a DeBERTa on text. Give the same command again to go on after an interruption."""

    tokenizer: Path
    """folder with spm.model, for instance from `deberta-jax tokenizer`, or with the files of v1's tokenizer"""
    text: tuple[Path, ...] = ()
    """text files or folders of them (.txt, .gz, .xz); none: the embedded corpus, six novels"""
    boundary: Literal["blank_line", "line", "file", "chapter"] | None = None
    """what ends a document; default blank_line, and chapter for the embedded corpus"""
    corpus: Path | None = None
    """a folder made by `deberta-jax prepare`, instead of text"""
    held_out_fraction: float = 0.02
    """share of the documents kept for evaluation"""

    model: str | None = None
    """a released size, or a JSON file: one model's configuration, or generator and discriminator; default:
    deberta-v3-small, or what fits init_discriminator"""
    init_discriminator: Path | None = None
    """folder of a model that the discriminator goes on from: a run's discriminator/, or what `convert` wrote"""
    init_generator: Path | None = None
    """likewise for the generator, or for the model of mlm; without it the generator is fresh"""
    vocab_size: int | None = None
    """rows of the word embeddings; default: what the model says"""
    objective: Literal["rtd", "mlm"] = "rtd"
    """replaced token detection (DeBERTa v3), or masked language modeling (v1, v2)"""
    embedding_sharing: EmbeddingSharing | None = None
    """gradient-disentangled, shared, or not shared; default: what the JSON file says, else gdes"""
    decoupled: bool = True
    """generator and discriminator updated one after the other, by optimizers of their own, as in the official code"""
    rtd_lambda: float = 10.0
    """weight of the discriminator's loss; 10 in the official code"""

    sequence_length: int = 512
    """tokens a row"""
    batch_size: int = 256
    """rows a step, over all devices"""
    steps: int = 100_000
    """optimizer steps"""
    mask_rate: float = 0.15
    """share of the tokens that is masked"""
    max_ngram: int | None = None
    """longest span of whole words masked together; default 1 (single pieces) for rtd, 3 for mlm"""
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_learning_rate: float | None = None
    """default: the generator's"""

    evaluate_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    """checkpoints kept, the newest ones"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Settings to try: every combination is run, with every seed."""

    learning_rate: tuple[float, ...] = ()
    batch_size: tuple[int, ...] = ()
    epochs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(_RunConfig):
    """Fine-tune a model: classes or scores of texts, choices, labels of words, answers to questions."""

    model: Path
    """folder of a model: the discriminator/ of a pre-training run, or what `deberta-jax convert` wrote"""
    random_weights: bool = False
    """use the model's configuration alone, with fresh weights: the baseline that pre-training has to beat"""
    tokenizer: Path | None = None
    """folder with a tokenizer; default: the model's"""

    train: str
    """a .tsv, .csv, .jsonl or .parquet file (of words with labels also .conll or .txt); tfds:NAME such as
    tfds:glue/sst2; or NAME:FILE, a published file of such a set, as in super_glue/copa:train.jsonl"""
    validation: str | None = None
    """as train; default for tfds: the set's own validation split"""
    test: str | None = None
    """as train"""
    kind: Literal["classification", "regression", "choice", "tokens", "span"] | None = None
    """what is asked; default: what the set is known for, else classification"""
    text_column: str | None = None
    """of the text, or of the question that a span answers (default there: question); default: text. Of tokens a list,
    default: words, and in .conll and .txt files 0, the first"""
    pair_column: str | None = None
    """of the second text of a pair; of a choice, of the question about the text; of a span, of the context that it is
    in (default there: context)"""
    choices_columns: tuple[str, ...] = ()
    """of the choices: one column of lists, or a column for every choice; default: choices"""
    label_column: str | None = None
    """of the label, or of the answers (default there: answers); default: label. Of tokens a list, default: labels, and
    in .conll and .txt files -1, the last"""
    start_column: str | None = None
    """of the character of the context that an answer starts at, where answers are plain texts; default: answer_start,
    without such a column where the text occurs first"""
    data_dir: Path | None = None
    """where tensorflow_datasets keeps prepared sets"""
    manual_dir: Path | None = None
    """archives of those sets that were downloaded by hand, for a machine without internet"""

    max_length: int = 128
    """tokens a row at most; longer texts are cut. A batch is padded to 64, 128, 256, ... as its longest text needs"""
    max_question_length: int = 64
    """tokens of a question at most; its context gets the rest of max_length (give 384 for SQuAD)"""
    doc_stride: int = 128
    """a context that is too long for a row is read in several, each so many tokens further on; or fewer, so that they
    overlap by max_answer_length"""
    max_answer_length: int = 30
    """tokens of a predicted answer at most"""
    n_best: int = 20
    """answers that predictions list for a question"""
    null_threshold: float = 0.0
    """no answer is predicted where its score is so far above that of the best span; evaluation reports the best one"""
    group_by_length: bool = False
    """batches of texts of about the same length, for less padding"""
    batch_size: int = 32
    epochs: float = 3.0
    steps: int | None = None
    """optimizer steps, instead of epochs"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-5)
    label_smoothing: float = 0.0
    """share of every label that is spread over all classes"""
    classifier_dropout: float | None = None
    """default: the model's cls_dropout, else hidden_dropout_prob"""
    layer_decay: float = 1.0
    """of the learning rate, from each layer to the one below it; 1: none"""
    freeze_layers: int = 0
    """layers that stay as they are, counted from the first one, the embeddings with them; 0: nothing does"""
    sift: SiftConfig = SiftConfig()

    evaluate_every: int = 0
    """steps between evaluations; 0: once an epoch"""
    select: Literal["last", "best"] = "last"
    """which model is the result: that of the last step, or of the best evaluation on the validation split"""
    patience: int = 0
    """evaluations without a better one after which training ends; 0: it goes on to the last step"""
    save_every: int = 500
    keep: int = 2

    seeds: tuple[int, ...] = ()
    """one run with each, in seed-N/ of the output folder: the mean with its 95 % interval, and the best of them"""
    grid: GridConfig = GridConfig()

    @property
    def several_runs(self) -> bool:
        """Whether seeds or a grid ask for more than the run itself."""
        return bool(self.seeds) or self.grid != GridConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, below in (
            ("layer_decay", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("freeze_layers", 0, math.inf),
            ("patience", 0, math.inf),
            ("epochs", 0.0, math.inf),
            ("max_question_length", 1, math.inf),
            ("doc_stride", 1, math.inf),
            ("max_answer_length", 1, math.inf),
            ("n_best", 1, math.inf),
        ):
            value = getattr(self, name)
            if not least <= value < below:
                upper = f" and below {below:g}" if below < math.inf else ""
                raise UserError(f"{name} is {value:g}; it must be at least {least:g}{upper}")
        if not math.isfinite(self.null_threshold):
            raise UserError(f"null_threshold is {self.null_threshold}; it must be a finite number")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds {self.seeds} repeat one; give every seed once")
        if self.grid.epochs and self.steps:
            raise UserError("grid.epochs and steps are given; leave steps out")
