"""Typed settings of an experiment. The attribute docstrings are what ``--help`` prints.

Importing this needs no torch, so that ``--help`` and error messages are fast. Each class checks its own values;
conditions on several classes, or on the data, are checked where those are used together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedmoe.errors import require


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty mapping counts as a value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


@dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP."""

    architecture: str = "RN50"
    """Name of an open_clip architecture (RN50, ViT-B-16, ...), or a CLIP shipped with this package: fedmoe-tiny,
    fedmoe-tiny-vit with a VisionTransformer, or fedmoe-wide with features four times as wide as pFedMoAP's gate."""
    pretrained: str | None = "openai"
    """open_clip's tag of the weights (openai, laion2b_s34b_b88k, ...; glyphs for those of this package); null: random
    weights."""
    weights: str | None = None
    """A local weights file instead of the tag: OpenAI's .pt, an open_clip checkpoint, or safetensors."""
    model_config: str | None = None
    """A JSON file in open_clip's model-config format, in place of the architecture's own."""
    tokenizer: str | None = None
    """A folder with the tokenizer.json and tokenizer_config.json of a text encoder that has not CLIP's own tokenizer
    (SigLIP, CLIPA, multilingual ones); null: those that the architecture names, from the model hub or its cache. Needs
    pip install 'fedmoe[tokenizers]'."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of CLIP's weights and activations; that of prompts, gates and losses is optim.precision."""
    quick_gelu: bool | None = None
    """Whether CLIP uses OpenAI's QuickGELU; null: as the weights were trained (true for OpenAI's)."""


@dataclass(frozen=True)
class PromptConfig:
    """The learnable prompt P [l, w] in front of each class name (section 3.1 of the paper)."""

    length: int = 16
    """Number l of learnable context vectors."""
    init: str | None = None
    """Words to start from, such as "a photo of a" (their number of tokens replaces length); null: N(0, std^2)."""
    std: float = 0.02
    """Standard deviation of the random start."""
    position: Literal["end", "middle", "front"] = "end"
    """Where the class name goes: after the context (end), in its middle, or before it (front)."""
    class_specific: bool = False
    """One context per class, [C, l, w], instead of one for all classes."""
    text_pass: Literal["shared", "cut", "full"] = "shared"
    """How text features are computed; the results are equal. shared computes each distinct token once (the prefix that
    all classes have in common, then each class up to its EOT), cut drops the tokens after the last EOT, full is
    open_clip's own pass over all 77 tokens. Where the text encoder does not allow the one chosen, the next of them is
    taken: full if each token sees those behind it (SigLIP, MobileCLIP), cut if blocks are not CLIP's own."""

    def __post_init__(self) -> None:
        require(self.length >= 1, "prompt.length", self.length, "an integer of at least 1")
        require(self.std >= 0, "prompt.std", self.std, "a number of at least 0")


@dataclass(frozen=True)
class FederationConfig:
    """Clients, rounds and local work."""

    clients: int = 10
    """Number N of clients."""
    participation: float = 1.0
    """Fraction r of the clients in each round's cohort, in (0, 1]: max(1, floor(r N)) clients."""
    rounds: int = 10
    """Number T of communication rounds."""
    local_epochs: int = 5
    """Number E of passes over a client's training data in each round it takes part in."""
    batch_size: int = 32
    """Number of images in a batch of local training."""
    drop_last: bool = False
    """Whether each pass over a client's data leaves the last batch out if it is incomplete, as in the released code. A
    client with fewer examples than a batch trains on all of them."""
    share_momentum: bool = False
    """Whether each local fit starts with the momentum buffers that the fit before it left, whichever client's it was,
    instead of empty ones, as in the released code. The buffers, which are sums of gradients (of the gate and of other
    personal parts, too), are sent to the server and to the next client, and clients train one after the other."""
    evaluate_every: int = 1
    """Rounds from one evaluation of all clients to the next; the last round is always evaluated."""
    evaluate_clients: Literal["all", "cohort"] | int = "all"
    """Who is evaluated: all clients, the round's cohort, or a random sample of so many clients, drawn anew each time;
    with fewer than all, the mean's standard error is recorded beside it. The last round is always evaluated on all."""
    validation: float = 0.0
    """Share of each client's training examples, in [0, 1), that it does not train on: drawn evenly over its classes.
    Their accuracy is what settings and checkpoints are chosen by; 0 in the paper's tables."""
    evaluate_train: bool = False
    """Whether evaluations also score each client on its own training images (on augmented ones, where views are):
    the distance to its test accuracy is the generalization gap."""
    evaluate_others: bool = False
    """Whether evaluations also score each client on the test images of classes that it has no training images of: of
    all clients, or of those of its domain, where the data has domains. That is a simulation's privilege, and costs as
    much as evaluating every client on all of these images."""
    secure_aggregation: bool = False
    """Whether the server learns the mean of a cohort's uploads and no single one (SecAgg, Bonawitz et al. 2017), for
    methods that need nothing else. Uploads are 8 bytes a number, rounded to multiples of 2^-32. With engine.kind =
    flower, the clients mask them; elsewhere, nothing is hidden, and the results are the same."""
    late_clients: int = 0
    """Number of clients, the last ones of the N, that take part in no round and no evaluation of the run; evaluate lets
    them join the finished run."""
    on_failure: Literal["drop", "retry", "stop"] = "drop"
    """What to do when a client's training fails (an exception, a loss that is not finite, out of memory): drop it for
    the round, while its old prompt stays in the pool; retry with other batches before dropping it; or stop the run."""
    retries: int = 1
    """Number of further attempts for a client if on_failure is retry."""

    @property
    def participants(self) -> int:
        """The number of clients that cohorts are drawn from."""
        return self.clients - self.late_clients

    def __post_init__(self) -> None:
        require(self.clients >= 1, "federation.clients", self.clients, "an integer of at least 1")
        require(0 <= self.validation < 1, "federation.validation", self.validation, "a number in [0, 1)")
        require(0 < self.participation <= 1, "federation.participation", self.participation, "a number in (0, 1]")
        require(self.rounds >= 0, "federation.rounds", self.rounds, "an integer of at least 0")
        for name in ("local_epochs", "batch_size", "evaluate_every", "retries"):
            require(getattr(self, name) >= 1, f"federation.{name}", getattr(self, name), "an integer of at least 1")
        asked, least = self.evaluate_clients, isinstance(self.evaluate_clients, int) and self.evaluate_clients >= 2
        require(asked in ("all", "cohort") or least, "federation.evaluate_clients", asked, "all, cohort or at least 2")
        late, choices = self.late_clients, ("drop", "retry", "stop")
        require(0 <= late < self.clients, "federation.late_clients", late, f"0 to {self.clients - 1}")
        require(self.on_failure in choices, "federation.on_failure", self.on_failure, "drop, retry or stop")


@dataclass(frozen=True)
class OptimConfig:
    """Local optimization."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (as in the paper), or adam with its default betas, which ignores momentum."""
    prompt_lr: float = 0.002
    """Learning rate of the prompt."""
    gating_lr: float = 0.01
    """Learning rate of the gate and of a method's other parts besides the prompt, which are mostly personal."""
    momentum: float = 0.9
    """Momentum; its buffers start empty in each local fit, unless federation.share_momentum."""
    weight_decay: float = 5e-4
    """Weight decay on prompt and gate."""
    schedule: Literal["constant", "cosine_federation", "cosine_local", "released"] = "constant"
    """Learning rate schedule: constant, a cosine to zero over the rounds (cosine_federation), a cosine to zero over the
    steps of each local fit (cosine_local), or as in the released code (released): one cosine over the epochs of a fit,
    shared by all clients and never reset, so that it falls in one client's fit and rises in the next one's."""
    precision: Literal["float32", "float16"] = "float32"
    """Number format of prompts, gates and all else that is learned, of gradients, momentum, features and the loss; CLIP
    has its own in clip.precision. float16, as in the released code, halves what is sent, and small gradients vanish;
    not all methods work in it."""

    def __post_init__(self) -> None:
        require(self.optimizer in ("sgd", "adam"), "optim.optimizer", self.optimizer, "sgd or adam")
        formats = ("float32", "float16")
        require(self.precision in formats, "optim.precision", self.precision, "float32 or float16")
        for name in ("prompt_lr", "gating_lr", "weight_decay"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "a number of at least 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of what clients send; fedmoe/privacy/mechanism.py states what is guaranteed."""

    mechanism: Literal["none", "upload", "dpsgd"] = "none"
    """none; upload: clips the prompt's gradients and adds Gaussian noise to the uploaded prompt, which protects the
    client's whole data set (table 6); dpsgd: clips each example's gradient and adds noise to each step, which protects
    one example."""
    epsilon: float | None = 50.0
    """Budget epsilon, above 0: that of each upload (upload), or of the whole run (dpsgd); null adds no noise."""
    delta: float = 0.05
    """Budget delta, in (0, 1): the probability with which the bound epsilon may fail. The paper's 0.05 is large."""
    clip: float | None = 0.2
    """Bound C on the l2 norm of the prompt's gradient in a step (upload), or of an example's gradient (dpsgd). The
    noise is proportional to it: at 0.2, it adds up over table 6's ten rounds to about prompt.std, the spread of the
    prompt's random start. null, allowed if epsilon is null, turns clipping off."""

    def __post_init__(self) -> None:
        choices = ("none", "upload", "dpsgd")
        require(self.mechanism in choices, "privacy.mechanism", self.mechanism, "none, upload or dpsgd")
        for name, at_null in (("epsilon", "null for no noise"), ("clip", "null for no clipping")):
            value = getattr(self, name)
            ok = value is None or 0 < value < float("inf")
            require(ok, f"privacy.{name}", value, f"a finite number above 0, or {at_null}")
        require(0 < self.delta < 1, "privacy.delta", self.delta, "a number in (0, 1)")
        bounded = self.clip is not None or self.epsilon is None
        require(bounded, "privacy.clip", self.clip, f"a number above 0 with privacy.epsilon = {self.epsilon}")


@dataclass(frozen=True)
class FeatureConfig:
    """Extraction and cache of image features."""

    cache_dir: str = "~/.cache/fedmoe"
    """Folder of the feature cache, shared by all runs."""
    batch_size: Literal["auto"] | int = 256
    """Number of images in a batch of the image encoder (for cached views: of views); or auto, which takes the fastest
    one by a measurement before a split of at least 1,000 images is encoded: on a CPU, small ones need less memory and
    are faster. Features of other batch sizes differ in the last bits."""
    keep_memory: bool = False
    """Whether the image encoder's buffers are used again from batch to batch, and not returned to the system in between
    (CPU, with glibc): faster with more than some 16 images in a batch, for up to twice the memory. The same bits."""
    workers: int = 0
    """Number of worker processes that read and preprocess images (threads for online views); 0: none, the run itself
    does it."""
    chunk: int = 2048
    """Number of encoded images after which an extraction is saved, so that it can resume there after a crash; after
    Ctrl-C or an error it resumes after the last complete batch."""
    damaged: Literal["stop", "skip"] = "stop"
    """What to do with an image that is missing or cannot be decoded: stop, or report it and leave it out (skip)."""

    def __post_init__(self) -> None:
        size = self.batch_size
        sizable = size == "auto" or (isinstance(size, int) and size >= 1)
        require(sizable, "features.batch_size", size, "auto or an integer of at least 1")
        require(self.chunk >= 1, "features.chunk", self.chunk, "an integer of at least 1")
        require(self.workers >= 0, "features.workers", self.workers, "an integer of at least 0")
        require(self.damaged in ("stop", "skip"), "features.damaged", self.damaged, "stop or skip")


@dataclass(frozen=True)
class ViewsConfig:
    """Augmented views of the training images: random resized crop (bicubic) and horizontal flip.

    Test images are not augmented."""

    kind: Literal["none", "cached", "online"] = "none"
    """none: images as they are; cached: several views of each image are encoded once, and each pass over the data draws
    one of them; online: each pass encodes a new view of each image, which runs the image encoder in every step."""
    count: int = 10
    """Number V of cached views per image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image's area that a crop covers, in (0, 1]."""
    seed: int = 0
    """Seed of the cached views, which are the same for every method and every seed of the run."""

    def __post_init__(self) -> None:
        require(self.kind in ("none", "cached", "online"), "views.kind", self.kind, "none, cached or online")
        require(self.count >= 1, "views.count", self.count, "an integer of at least 1")
        scale = tuple(self.scale)
        require(
            len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1,
            "views.scale",
            list(scale),
            "two numbers in (0, 1], the smaller one first",
        )


_STEPS = ("float32", "bfloat16")


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how the run computes."""

    accelerator: str = "auto"
    """Lightning's name of the accelerator: auto, cpu, gpu, mps, ..."""
    devices: int = 1
    """Number of devices that a client trains on, which is always 1: a prompt is too small to be divided. Several
    devices train several clients at once with engine.kind = flower_simulation, which deals the clients to worker
    processes; with engine.gpus = 1, each of these has a GPU of its own."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the products in a step of local training. bfloat16 is Lightning's bf16-mixed: parameters,
    momentum, what is sent, and evaluations stay in optim.precision. CLIP itself has clip.precision."""
    threads: int | None = None
    """Number of CPU threads of torch; null: torch's default. The same number gives the same bits."""
    text_cache_mib: int = 256
    """Upper limit, in MiB, on the memory for cached text features of prompts that do not change (experts, evaluated
    clients)."""
    score_cache_mib: int = 64
    """Upper limit, in MiB, on the memory for the last evaluation of each client, which is not repeated where its state
    and all that it is sent are the same as before; 0: every evaluation is done. The same bits."""
    client_states: Literal["memory", "mapped"] = "memory"
    """Where what clients keep and have uploaded lies after each round: in memory; or mapped, in the files of the
    checkpoint, from which the system reads what is used: for federations larger than memory. The same bits."""
    cohort_batch: int = 1
    """Number of clients of a cohort that train at the same time and share each pass through the text tower; equal to
    training one after the other (1) up to rounding, and faster, while memory for activations grows with the number."""
    packed_weights: Literal["off", "on", "auto"] = "off"
    """Whether the shared text pass multiplies with weights of the text tower that are packed once (CPU, float32; three
    times their memory): equal up to rounding, so the bits of a run differ. auto measures for up to a second before
    the first round whether it is faster here; run.json keeps the choice, and a resumed run follows it."""

    def __post_init__(self) -> None:
        require(
            self.devices == 1,
            "runtime.devices",
            self.devices,
            "1, and for several devices engine.kind = flower_simulation with engine.gpus = 1",
        )
        require(self.precision in _STEPS, "runtime.precision", self.precision, " or ".join(_STEPS))
        require(self.threads is None or self.threads >= 1, "runtime.threads", self.threads, "null or at least 1")
        require(self.text_cache_mib >= 1, "runtime.text_cache_mib", self.text_cache_mib, "an integer of at least 1")
        require(self.score_cache_mib >= 0, "runtime.score_cache_mib", self.score_cache_mib, "an integer of at least 0")
        require(self.cohort_batch >= 1, "runtime.cohort_batch", self.cohort_batch, "an integer of at least 1")
        packed = self.packed_weights
        require(packed in ("off", "on", "auto"), "runtime.packed_weights", packed, "off, on or auto")


@dataclass(frozen=True)
class EngineConfig:
    """Where the clients are. The result of a run is the same bits everywhere, with the same runtime.threads."""

    kind: Literal["in_process", "flower_simulation", "flower"] = "in_process"
    """in_process: all clients in this process, one after the other; flower_simulation: in worker processes on this
    machine (Flower's simulation); flower: on other machines, behind a Flower SuperLink. The last two need
    pip install 'fedmoe[flower]'."""
    actors: int | None = None
    """Number of worker processes of a simulation; null: one for each CPU core (or for each share of a GPU)."""
    gpus: float = 0.0
    """Share of a GPU that each worker process of a simulation gets."""
    address: str | None = None
    """HOST:PORT of the SuperLink."""
    certificate: str | None = None
    """PEM file of the authority that signed the SuperLink's certificate; null: the authorities this machine trusts."""
    secret: str | None = None
    """File with the secret that proves to the SuperLink that this process may drive it."""
    signing: str | None = None
    """File with the private key that the server signs its orders with; clients refuse orders of anybody else."""
    keys: str | None = None
    """JSON file that binds each client's number to the public key of its SuperNode; nobody else can answer for it."""
    insecure: bool = False
    """Connect to the SuperLink without encryption and without proof of who answers; only for trials on one machine."""
    timeout: float = 600.0
    """Seconds that a client on another machine has for an answer before it counts as failed for the round."""
    connect: float = 120.0
    """Seconds that the run waits for all clients before its first round."""

    def __post_init__(self) -> None:
        kinds = ("in_process", "flower_simulation", "flower")
        require(self.kind in kinds, "engine.kind", self.kind, "in_process, flower_simulation or flower")
        require(self.actors is None or self.actors >= 1, "engine.actors", self.actors, "null or at least 1")
        require(0 <= self.gpus < float("inf"), "engine.gpus", self.gpus, "a number of at least 0")
        for name in ("timeout", "connect"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"engine.{name}", value, "a number above 0")
        if self.kind != "flower":
            return
        host, _, port = (self.address or "").rpartition(":")
        number = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
        require(bool(host) and number, "engine.address", self.address, "HOST:PORT, such as 127.0.0.1:9000")
        if not self.insecure:
            files = {"secret": "the SuperLink's secret", "signing": "the server's key", "keys": "the clients' keys"}
            for name, what in files.items():
                value, valid = getattr(self, name), f"a file with {what}, or insecure: true"
                require(bool(value), f"engine.{name}", value, valid)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the metrics of each round go, beside rounds.jsonl, clients.jsonl and rounds.csv of the run folder.

    Those three are always written."""

    wandb: Literal["disabled", "offline", "online"] | bool = "disabled"
    """W&B: not used (disabled, or false), written to the run folder for a later `wandb sync` (offline), or sent to its
    server during the run (online, or true)."""
    project: str = "fedmoe"
    """W&B's project."""
    entity: str | None = None
    """W&B's user or team; null: the account's default."""
    group: str | None = None
    """W&B's group, such as a cell of a table; null: data set and method, so that runs with different seeds form a
    group."""
    job_type: str = "fit"
    """W&B's job type."""
    tags: tuple[str, ...] = ()
    """W&B's tags."""
    detail_every: int = 10
    """Number of rounds between sets of tables and pictures (clients, experts, attention), which only evaluated rounds
    have; the last round always has one."""
    artifacts: bool = False
    """Also give W&B the last checkpoint and the run's settings, as an artifact with which predict, export and evaluate
    work: the prompts and gates of all clients, also what never leaves them in a round."""
    tensorboard: bool = False
    """Also write TensorBoard's event files to the run folder; needs pip install 'fedmoe[tensorboard]'."""
    dir: str | None = None
    """Folder for W&B's own files; null: the run folder."""
    timeout: float = 30.0
    """Maximum number of seconds that the end of a run waits for W&B; rounds never wait."""

    def __post_init__(self) -> None:
        if isinstance(self.wandb, bool):
            object.__setattr__(self, "wandb", "online" if self.wandb else "disabled")
        require(
            self.wandb in ("disabled", "offline", "online"), "tracking.wandb", self.wandb, "disabled, offline or online"
        )
        require(self.detail_every >= 1, "tracking.detail_every", self.detail_every, "an integer of at least 1")
        require(self.timeout > 0, "tracking.timeout", self.timeout, "a number above 0")


@dataclass(frozen=True)
class OutputConfig:
    """The run folder."""

    dir: str = "runs"
    """Folder in which run folders are created."""
    name: str | None = None
    """Name of the run folder; null: built from data, method and seed. Running the same command again resumes an
    interrupted run."""
    overwrite: bool = False
    """Delete an existing run of that name first; only what is demonstrably a run or a comparison is deleted."""
