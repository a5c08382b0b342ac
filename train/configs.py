"""The settings of a run, which `deberta-jax pretrain` and `deberta-jax finetune` take from the command line.

Settings nest by subject. A group that is marked `Flat` adds no prefix to the names of its options: `data.text` is the
option --text, whereas `optimizer.warmup` is --optimizer.warmup. Every value is checked when a group is built.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from deberta_jax.errors import UserError
from deberta_jax.lora import LoraConfig
from deberta_jax.rtd import EmbeddingSharing
from deberta_jax.sift import SiftConfig

from .corpus_options import Stage, parse_stages, parse_weighted
from .host_configs import HostsConfig, MeshConfig
from .settings import (
    LONGEST_ROW,
    SHORTEST_ROW,
    BatchSize,
    Flat,
    NotNegative,
    NotNegativeNumber,
    Positive,
    PositiveNumber,
    Range,
    Seconds,
    Seed,
    Settings,
    Share,
    ShareBelowOne,
)
from .task_configs import LossConfig, MultilabelConfig, NewTokensConfig, SpanConfig, TaskDataConfig

# -------------------------------------------------------------------- groups of both commands

ScheduleName = Literal[
    "warmup_linear_shift",
    "warmup_linear",
    "warmup_cosine",
    "warmup_constant",
    "warmup_linear_cosine",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """AdamW as in the official code: no bias correction, decay scaled by the learning rate, global-norm clipping"""

    learning_rate: Annotated[NotNegativeNumber, tyro.conf.arg(aliases=("--learning-rate",))] = 1e-4
    """learning rate at the end of the warmup"""
    schedule: ScheduleName = "warmup_linear_shift"
    """learning-rate schedule; warmup_linear is the official one, which drops where the warmup ends"""
    schedule_end: Share = 0.0
    """learning rate of the last step, as a share of learning_rate"""
    warmup: NotNegativeNumber = 0.1
    """length of the warmup: a share of all steps (below 1) or a number of steps (1 or more)"""
    beta1: ShareBelowOne = 0.9
    """decay rate of the first moment"""
    beta2: ShareBelowOne = 0.999
    """decay rate of the second moment"""
    epsilon: PositiveNumber = 1e-6
    """constant added to the denominator of the update"""
    weight_decay: NotNegativeNumber = 0.01
    """weight decay of everything but biases and LayerNorm scales"""
    max_grad_norm: NotNegativeNumber = 1.0
    """global norm that gradients are clipped to (0 disables clipping)"""
    bias_correction: bool = False
    """correct the bias of Adam's moments (the official code does not)"""
    decay_embedding_delta: bool = False
    """apply weight decay to GDES's delta as well, as the official code does by oversight"""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """data type of Adam's moments; bfloat16 halves their memory, and rounds up or down at random"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """The settings that pre-training and fine-tuning share"""

    IS_RUN: ClassVar[bool] = True  # its output is copied to a store during the run

    output: Path
    """folder of the run: checkpoints, metrics and the finished models"""
    accumulation: Positive = 1
    """number of gradient-accumulation steps, to save memory"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """data type of activations; parameters, softmax, LayerNorm, scores and losses stay float32"""
    remat: bool = False
    """recompute each layer in the backward pass instead of keeping its activations"""
    kept_layers: NotNegative | None = None
    """number of layers of each model that keep their attention probabilities for the backward pass, which the TPU
    kernels can for rows of up to 512 tokens (default: as many as fit into the memory of a TPU, elsewhere none)"""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: Seed = 0
    """seed of initial weights, data order, masking and dropout"""
    log_every: Positive = 10
    """steps between two lines of the log"""
    log: tuple[Literal["wandb", "mlflow"], ...] = ()
    """services that receive the metrics too; wandb is Weights & Biases. Their own variables, such as WANDB_PROJECT and
    MLFLOW_TRACKING_URI, configure them (default: no service)"""
    run_name: str | None = None
    """name of the run in wandb and mlflow (default: that of the output folder)"""
    max_seconds: Seconds | None = None
    """time after which the run saves a checkpoint and exits with code 0; the same command resumes it (default:
    no limit)"""
    profile: tuple[int, int] | None = None
    """first and last step to record with JAX's profiler, into profile/ of the run's folder (default: records
    nothing)"""
    compilation_cache: Path | None = None
    """folder that keeps compiled programs for the next start (default: compiled/ of the run's folder on a TPU
    or GPU, elsewhere JAX_COMPILATION_CACHE_DIR if it is set)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise UserError(f"profile is {self.profile}; give the first and the last step, from 1 on")


# -------------------------------------------------------------------- pre-training


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Settings):
    """The text to train on"""

    text: tuple[Path, ...] = ()
    """text files, folders of them, patterns or sets, as in `deberta-jax prepare` (default: the embedded corpus, six
    novels)"""
    boundary: Literal["blank_line", "line", "file", "chapter"] | None = None
    """what separates documents (default: blank_line, for the embedded corpus chapter)"""
    corpus: tuple[str, ...] = ()
    """folders written by `deberta-jax prepare`, instead of text. FOLDER:WEIGHT draws rows by weight: wiki:7 books:3
    takes 70 % of them from wiki; weights need not sum to 1. Without weights, rows are drawn in proportion to their
    number (default: text is read)"""
    held_out_fraction: ShareBelowOne = 0.02
    """share of the documents that is held out for evaluation"""
    sequence_length: Annotated[int, Range(at_least=SHORTEST_ROW, at_most=LONGEST_ROW)] = 512
    """tokens per row"""
    curriculum: tuple[str, ...] = ()
    """stages of one sequence length after the other, each LENGTH:STEPS, such as 128:90000 512, where the last one takes
    the remaining steps. It replaces sequence_length, and needs a corpus of each length (default: one stage)"""
    data_workers: Annotated[int, Range(at_least=0, at_most=1024)] = 0
    """number of processes that read and mask rows ahead of the training thread, which does it itself with 0; the
    batches are the same"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corpus and self.text:
            raise UserError("give --text or --corpus, not both")
        for name in self.corpus:
            parse_weighted(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsConfig(Settings):
    """Generator and discriminator, and the weights they start from"""

    model: str | None = None
    """a released size, or a JSON file with the configuration of one model or of generator and discriminator; models to
    start from take its dropout (default: deberta-v3-small, or the size that goes with init_discriminator)"""
    init_discriminator: Path | None = None
    """folder of a model to initialize the discriminator from, such as discriminator/ of a run, or a hub name
    (default: random weights)"""
    init_generator: Path | None = None
    """folder or hub name of a model to initialize the generator from, or the only model of mlm (default: random
    weights)"""
    vocab_size: Positive | None = None
    """rows of the word embeddings (default: that of the model)"""
    embedding_sharing: EmbeddingSharing | None = None
    """how generator and discriminator share embeddings: gradient-disentangled, shared or not (default: that of the
    JSON file, else gdes)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """The pre-training objective"""

    name: Annotated[Literal["rtd", "mlm"], tyro.conf.arg(name="objective")] = "rtd"
    """replaced token detection (DeBERTa v3) or masked language modeling (v1, v2)"""
    decoupled: bool = True
    """update generator and discriminator one after the other with separate optimizers, as the official code does"""
    rtd_lambda: NotNegativeNumber = 10.0
    """weight of the discriminator's loss"""
    mask_rate: Annotated[float, Range(above=0, below=1)] = 0.15
    """share of the tokens to mask"""
    max_ngram: Annotated[int, Range(at_least=1, at_most=16)] | None = None
    """longest span of whole words to mask together (default: 1, which masks single pieces, for rtd; 3 for mlm)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "mlm" and not self.decoupled:
            raise UserError("there is nothing to couple with --objective mlm; leave out --no-decoupled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pre-train a DeBERTa on text. Repeat the same command to resume an interrupted run."""

    COMMON: ClassVar[tuple[str, ...]] = tuple(
        "output tokenizer text corpus model objective sequence-length curriculum "
        "batch-size steps optimizer.learning-rate dtype seed max-seconds log".split()
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--output runs/base --tokenizer tok --text corpus/ --model deberta-v3-base --vocab-size 32064",
        "--output runs/more --tokenizer v3-small --corpus rows/ --init-discriminator v3-small --steps 10000",
        "--output runs/mix --tokenizer tok --corpus wiki128:7 books128:3 wiki512 --curriculum 128:90000 512",
    )

    READS_STORES: ClassVar[tuple[str, ...]] = ("text", "corpus")

    tokenizer: Path
    """folder of a tokenizer, for instance from `deberta-jax tokenizer`, or a hub name such as
    microsoft/deberta-v3-small"""
    data: Annotated[TextConfig, Flat] = TextConfig()
    models: Annotated[ModelsConfig, Flat] = ModelsConfig()
    new_tokens: Annotated[NewTokensConfig, Flat] = NewTokensConfig()
    objective: Annotated[ObjectiveConfig, Flat] = ObjectiveConfig()
    batch_size: BatchSize = 256
    """rows per step, over all devices"""
    steps: NotNegative = 100_000
    """number of optimizer steps (0 trains nothing: the initial models are evaluated and saved)"""
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_learning_rate: NotNegativeNumber | None = None
    """learning rate of the discriminator (default: that of the generator)"""
    evaluate_every: NotNegative = 1000
    """steps between evaluations on held-out documents (0 disables them)"""
    evaluate_first: bool = False
    """evaluate the initial models too, before the first step"""
    save_every: NotNegative = 1000
    """steps between checkpoints (0 disables them; the final step is always saved)"""
    keep: Positive = 3
    """number of checkpoints to keep, the newest ones"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective.name == "mlm" and self.models.init_discriminator is not None:
            raise UserError("--objective mlm trains no discriminator; give the model to start from as --init-generator")
        parse_stages(self.data.curriculum, self.steps)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The sequence lengths of the run in order, with their steps."""
        return parse_stages(self.data.curriculum, self.steps) or (Stage(self.data.sequence_length, self.steps),)

    @property
    def longest_row(self) -> int:
        """The largest sequence length of the run."""
        return max(stage.sequence_length for stage in self.stages)


# -------------------------------------------------------------------- fine-tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizationConfig(Settings):
    """What keeps a fine-tuned model from overfitting"""

    label_smoothing: ShareBelowOne = 0.0
    """share of every label that is spread over all classes"""
    classifier_dropout: ShareBelowOne | None = None
    """dropout rate of the classifier (default: the model's cls_dropout, else hidden_dropout_prob)"""
    layer_decay: Annotated[float, Range(at_least=0, at_most=2)] = 1.0
    """factor of the learning rate from each layer to the one below it (1 disables it)"""
    freeze_layers: NotNegative = 0
    """number of layers to freeze, from the first one, together with the embeddings (0 freezes nothing)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(Settings):
    """Which step's model is the result"""

    evaluate_every: NotNegative = 0
    """steps between evaluations (0: once per epoch)"""
    select: Literal["last", "best"] = "last"
    """whether the model of the last step is the result, or that of the best evaluation on the validation split"""
    metric: str | None = None
    """metric of the validation split that best, patience, seeds and grid go by, such as macro_f1, f0.5, f1:LABEL, auc,
    recall_at_precision_0.9 or log_loss (default: the main metric of the task; an unknown name lists all)"""
    patience: NotNegative = 0
    """number of evaluations without improvement after which training stops (0 disables early stopping)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig(Settings):
    """Settings to try: every combination is run with every seed. A combination with a diverged run is the best only if
    all have one"""

    PREFIX = "grid."

    learning_rate: tuple[NotNegativeNumber, ...] = ()
    """learning rates to try (default: optimizer.learning_rate)"""
    batch_size: tuple[BatchSize, ...] = ()
    """batch sizes to try (default: batch_size)"""
    epochs: tuple[NotNegativeNumber, ...] = ()
    """numbers of epochs to try (default: epochs)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Several runs from one command"""

    seeds: tuple[Seed, ...] = ()
    """one run per seed, in seed-N/ of the output folder. Reports the mean with its 95 % interval, and the best run. A
    run that diverges is marked in summary.json and left out of the mean, and the others continue; the exit code is 0
    unless all diverge. The same command trains no finished run again, and repeats diverged ones
    (default: one run, with seed)"""
    grid: GridConfig = GridConfig()

    @property
    def several_runs(self) -> bool:
        """Whether seeds or a grid are given, so that the command starts runs in subfolders."""
        return bool(self.seeds) or self.grid != GridConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds {self.seeds} repeat one; give every seed once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tune a model: classify or score texts, choose among answers, label words, answer questions."""

    COMMON: ClassVar[tuple[str, ...]] = tuple(
        "output model train validation test kind text-column label-column max-length "
        "batch-size epochs optimizer.learning-rate select seeds log".split()
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--output runs/sst2 --model microsoft/deberta-v3-small --train tfds:glue/sst2",
        "--output runs/mine --model v3-small --train train.csv --validation dev.csv --text-column sentence",
    )

    model: Path
    """folder of a model of ours or of PyTorch files, or a hub name such as microsoft/deberta-v3-small, also
    NAME@REVISION; discriminator/ of a pre-training run is one. deberta-v3-tiny is part of the package"""
    random_weights: bool = False
    """start from random weights, with the configuration of the model alone, as a baseline for pre-training"""
    tokenizer: Path | None = None
    """folder or hub name of a tokenizer (default: that of the model)"""
    data: Annotated[TaskDataConfig, Flat]
    spans: Annotated[SpanConfig, Flat] = SpanConfig()
    multilabel: Annotated[MultilabelConfig, Flat] = MultilabelConfig()
    loss: Annotated[LossConfig, Flat] = LossConfig()
    new_tokens: Annotated[NewTokensConfig, Flat] = NewTokensConfig()
    batch_size: BatchSize = 32
    """examples per step, over all devices"""
    epochs: NotNegativeNumber = 3.0
    """number of passes over the training examples"""
    steps: NotNegative | None = None
    """number of optimizer steps, instead of epochs (0 trains nothing: the model is evaluated, predicts and is saved)
    (default: as many as the epochs have)"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-5)
    regularization: Annotated[RegularizationConfig, Flat] = RegularizationConfig()
    sift: SiftConfig = SiftConfig()
    lora: LoraConfig = LoraConfig()
    selection: Annotated[SelectionConfig, Flat] = SelectionConfig()
    save_every: NotNegative = 500
    """steps between checkpoints (0 disables them; the final step is always saved)"""
    keep: Positive = 2
    """number of checkpoints to keep, the newest ones"""
    top_k: Positive | None = None
    """number of classes, or of choices, whose probabilities are in each line of the predictions: the most probable ones
    (default: all, or 20 of more than 200)"""
    sweep: Annotated[SweepConfig, Flat] = SweepConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweep.grid.epochs and self.steps is not None:
            raise UserError("grid.epochs and steps are given; leave steps out")
