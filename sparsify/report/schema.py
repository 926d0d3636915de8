"""What is reported: a frozen dataclass a thing, whose fields are the keys of `--json` and of report.json.

Seconds are wall-clock medians over rounds; quartiles, speedups and ratios are paired, round by round or token by token.
Standard errors are None where there is just one independent sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsify.storage.records import ABSENT, OMIT, Record, Result

PERPLEXITY = "perplexity"
COUNTED = "kept taps plus bins"  # the target that is no machine
PUBLISHED, EXACT, PLANNED = "as published", "exact", "plan"  # columns of times
LOSSLESS, MASKS, LINEARS = "lossless kernels", "masks", "linear layers"  # what makes one faster than the other
LEAK_LIMIT = 1e-2  # above this a perplexity as computed is not believed
PAIRED = {ABSENT: "baseline"}  # metadata of what a baseline has no key for
Points = Sequence[Sequence[float]]  # [[x, y], ...], x ascending


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """Which checkpoint this is, and the plan that it is under."""

    source: str  #: folder or hub id
    revision: str | None  #: commit on the hub; None for a folder
    sha256: str  #: of its weights
    family: str
    options: Mapping[str, Any] = field(default_factory=dict)  #: what the family lets its users choose, as chosen
    plan: str  #: policy, in words


@dataclass(frozen=True)
class Conditions(Record):
    """Where and when numbers were taken."""

    device: str  #: as torch names it
    hardware: str  #: name of the processor or of the card
    threads: int
    kernels: str  #: instruction set and threads of the compiled kernels, or why there are none
    torch: str
    python: str
    sparsify: str
    commit: str | None  #: of the checkout, "-dirty" after local changes; None when installed
    date: str  #: ISO 8601, UTC


# --- quality -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PositionBucket(Record):
    """Perplexity of the tokens at positions start .. stop - 1 of their windows."""

    start: int
    stop: int
    n_tokens: int
    perplexity: float


@dataclass(frozen=True)
class Leak(Record):
    """How far logits move when every token after t changes; relative L2, 0 for a causal model.

    `past` takes the logits at 0 .. t together.  `edge` takes those at t alone, which see the most of the future, so it
    does not fade with t as `past` does when only the last few positions look ahead.
    """

    past_mean: float
    past_worst: float
    edge_mean: float
    edge_worst: float
    trials: int  #: windows times positions

    @property
    def worst(self) -> float:
        """The figure to judge by."""
        return max(self.past_worst, self.edge_worst)


@dataclass(frozen=True, kw_only=True)
class Variant(Record):
    """All that was measured of one variant of a model; None stands for what was not.

    Differences, ratios, kl and agreement are against `baseline`.  Cut: the same variant without its negative lags.
    """

    variant: str
    baseline: str | None
    perplexity: float
    perplexity_stderr: float | None
    perplexity_ratio: float | None
    perplexity_ratio_stderr: float | None
    nll_per_token: float  #: nats
    nll_stderr: float | None
    nll_difference: float | None
    nll_difference_stderr: float | None
    bits_per_token: float
    kl: float | None  #: mean KL(baseline || variant), nats a token
    top1_agreement: float | None  #: share of tokens where both guess the same
    perplexity_cut: float | None
    perplexity_cut_stderr: float | None
    perplexity_cut_ratio: float | None
    perplexity_cut_ratio_stderr: float | None
    leak: float | None  #: the worst found, relative to the logits
    leak_detail: Leak | None
    perplexity_by_position: tuple[PositionBucket, ...]

    @property
    def honest_ratio(self) -> tuple[float | None, float | None]:
        """Perplexity over dense without what is read of the future, and its standard error."""
        if self.perplexity_cut_ratio is None:
            return self.perplexity_ratio, self.perplexity_ratio_stderr
        return self.perplexity_cut_ratio, self.perplexity_cut_ratio_stderr


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """What variants were compared on."""

    schema: int
    figure: str = PERPLEXITY  #: what "perplexity" stands for, which may be the pseudo-perplexity of masked tokens
    convention: str
    n_tokens: int
    count: int  #: independent samples behind the standard errors
    samples: str  #: what they are, "documents" or "windows"
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class Column(Record):
    """One way to compute a model, timed in the same rounds as the others."""

    name: str  #: PUBLISHED, EXACT or PLANNED
    seconds: float  #: of one pass
    tokens_per_second: float
    peak_bytes: int | None  #: that the pass adds to the process, with the filters kept for it; None where unknown
    speedup: float  #: over the published code
    speedup_quartiles: Sequence[float]


@dataclass(frozen=True)
class Gain(Record):
    """What one change brings; the factors of all multiply to the speedup of the last column, but for rounding."""

    name: str  #: LOSSLESS, MASKS or LINEARS
    factor: float
    quartiles: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Speed(Record):
    """A model before and after: as published, exact, and under the plan."""

    batch: int
    length: int  #: tokens
    columns: tuple[Column, ...]  #: the published code first
    gains: tuple[Gain, ...]

    @property
    def headline(self) -> Column:
        """What is said first: the plan, or the exact kernels where nothing was planned."""
        return self.columns[-1]


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Result, Variant, Comparison, Checkpoint):
    """A model under its plan, and the dense one on the same tokens: `sparsify eval ppl`."""

    linears: str = "float32"  #: what the linear layers multiply in; the dense model's in float32
    dense: Variant | None  #: None where the model is the dense one
    dense_source: str | None = None
    speed: Speed | None = None  #: None where nothing was timed
    parts: Parts | None = None  #: None where nothing was timed
    verdict: Sequence[str]  #: sentences, the most important first
    data_notes: Sequence[str] = ()  #: what was left out of the data


@dataclass(frozen=True, kw_only=True)
class FilledIn(Record):
    """How well one variant fills in masked tokens, and if it is not the baseline, paired with that."""

    name: str
    nll_per_token: float  #: nats
    nll_stderr: float | None
    pseudo_perplexity: float
    pseudo_perplexity_stderr: float | None
    accuracy: float  #: share of masked tokens that are the first guess
    baseline: str | None = field(default=None, metadata=OMIT)
    nll_difference: float | None = field(default=None, metadata=PAIRED)
    nll_difference_stderr: float | None = field(default=None, metadata=PAIRED)
    pseudo_perplexity_ratio: float | None = field(default=None, metadata=PAIRED)
    pseudo_perplexity_ratio_stderr: float | None = field(default=None, metadata=PAIRED)
    kl: float | None = field(default=None, metadata=PAIRED)
    top1_agreement: float | None = field(default=None, metadata=PAIRED)


@dataclass(frozen=True, kw_only=True, repr=False)
class MaskedTokens(Result, Checkpoint):
    """Pseudo-perplexity under fixed masks: `sparsify eval mlm`."""

    variants: tuple[FilledIn, ...]
    convention: str
    data_notes: Sequence[str]
    conditions: Conditions


@dataclass(frozen=True)
class Retrieved(Record):
    """How well one variant finds a paragraph's other half, and how like the baseline it ranks."""

    name: str
    mrr: float
    mrr_difference: float | None  #: against the baseline, on the same queries; None for the baseline
    mrr_difference_stderr: float | None
    cosine: float | None  #: of the same text's embeddings, mean over all queries and passages
    cosine_worst: float | None
    rank_agreement: float | None  #: Spearman of a query's similarities, mean over queries
    top_overlap: float | None  #: share of a query's first passages that are among the baseline's


@dataclass(frozen=True, kw_only=True, repr=False)
class Retrieval(Result, Checkpoint):
    """Whether embeddings find the same texts: `sparsify eval retrieval`."""

    variants: tuple[Retrieved, ...]
    cut: int  #: texts that were too long
    convention: str
    data_notes: Sequence[str]
    conditions: Conditions


@dataclass(frozen=True)
class Figure(Record):
    """One metric of one split of GLUE: a value a variant, and the second less the first where there are two."""

    task: str
    split: str
    metric: str
    n: int  #: examples
    values: Mapping[str, float]  #: variant -> metric, the baseline first
    difference: float | None
    interval: Sequence[float] | None  #: of the difference, 95 %
    p_value: float | None
    test: str | None  #: that p-value and interval are of, "McNemar" or "bootstrap"


@dataclass(frozen=True)
class Average(Record):
    """A mean over tasks, and over which."""

    values: Mapping[str, float]  #: variant -> mean over tasks; a task's metrics and splits are averaged first
    tasks: Sequence[str]
    missing: Sequence[str]  #: tasks of GLUE that are not in it
    convention: str


@dataclass(frozen=True, kw_only=True)
class ScoredSplit(Checkpoint):
    """What there is to say of one split besides its figures."""

    task: str
    split: str
    source_of_data: str
    n: int  #: examples
    available: int  #: before a limit
    left_out: int  #: broken rows
    cut: int  #: texts that were too long
    agreement: float | None  #: share of examples of which two variants say the same
    fine_tuned_for: str | None  #: another task
    convention: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Glue(Result):
    """Scores on GLUE: `sparsify eval glue`."""

    scored: tuple[ScoredSplit, ...]
    figures: tuple[Figure, ...]
    average: Average | None
    m2_bert_average: Average | None  #: over what M2-BERT's own code reports, if that is another
    missing: Sequence[str]  #: what was not scored and why, sentences
    data_notes: Sequence[str]
    convention: str
    conditions: Conditions
    verdict: Sequence[str]


# --- speed ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Record):
    """Time spent in one part of a model in one forward pass."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Parts(Record):
    """Where the time of one forward pass goes."""

    batch: int
    length: int  #: tokens
    before: tuple[Part, ...]  #: the model's own code
    after: tuple[Part, ...]  #: the plan, everything prepared


@dataclass(frozen=True, kw_only=True)
class Timed(Record):
    """Seconds of one thing under the plan and as each baseline has it, and how many times as fast the plan is."""

    name: str
    plan: str
    seconds: float
    dense_seconds: float  #: by this package
    speedup: float
    speedup_quartiles: Sequence[float]
    torch_seconds: float  #: the best of torch.fft, prepared once
    torch_speedup: float
    torch_speedup_quartiles: Sequence[float]
    published_seconds: float  #: filter and spectrum made anew in every call
    published_speedup: float
    published_speedup_quartiles: Sequence[float]

    def against(self, baseline: str) -> tuple[float, float, Sequence[float]]:
        """Seconds of "dense", "torch" or "published", how many times as fast the plan is, and quartiles of that."""
        own = "speedup" if baseline == "dense" else f"{baseline}_speedup"
        return getattr(self, f"{baseline}_seconds"), getattr(self, own), getattr(self, f"{own}_quartiles")


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelBench(Result, Timed, Checkpoint):
    """A model timed: `sparsify bench MODEL`."""

    length: int  #: tokens
    batch: int
    linears: str
    tokens_per_second: float
    parts: Parts
    convolutions: Timed  #: all together
    sites: tuple[Timed, ...]
    conditions: Conditions


@dataclass(frozen=True)
class Ratio(Record):
    """How many times faster, median and quartiles over rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Way(Record):
    """One way to convolve, as measured."""

    name: str
    kept: str  #: of the filter, in words
    error: float  #: relative L2 against float64, on some channels
    seconds: float  #: a call
    faster_than: Mapping[str, Ratio]  #: baseline -> paired ratio


@dataclass(frozen=True)
class ShapeBench(Record):
    """The convolution at one size."""

    shape: Sequence[int]  #: batch, channels, samples
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ConvolutionBench(Result):
    """The convolution alone, on a CPU: `sparsify bench`."""

    shapes: tuple[ShapeBench, ...]
    both_ways: bool
    rounds: int
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class GpuWay(Record):
    """One way to convolve on a GPU; what others than ours have no word for is absent."""

    name: str
    ours: bool
    error: float  #: relative L2 against float64
    kept: str | None = field(default=None, metadata=OMIT)
    floor_seconds: float | None = field(default=None, metadata=OMIT)  #: that moving bytes and multiplying take at least
    predicted_seconds: float | None = field(default=None, metadata=OMIT)
    way: Mapping[str, Any] | None = field(default=None, metadata=OMIT)  #: the kernel
    builds: Sequence[Any] | None = field(default=None, metadata=OMIT)  #: and what the compiler says it takes
    seconds: float  #: a call
    quartiles: Sequence[float]
    calls: int  #: behind one timing
    graph: bool  #: whether it was replayed from a CUDA graph
    faster_than: Mapping[str, Ratio]
    no_graph: str | None = field(default=None, metadata=OMIT)  #: why it was not
    of_floor: float | None = field(default=None, metadata=OMIT)


@dataclass(frozen=True)
class Failed(Record):
    """Who was not timed, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class GpuCase(Record):
    """The convolution at one size and type on a GPU; one that ran out of memory has no sizes."""

    case: str
    shape: Sequence[int] | None = field(default=None, metadata=OMIT)  #: batch, channels, samples
    dtype: str | None = field(default=None, metadata=OMIT)
    gated: bool | None = field(default=None, metadata=OMIT)
    bytes: int | None = field(default=None, metadata=OMIT)  #: moved at least
    flops: float | None = field(default=None, metadata=OMIT)
    sets: int | None = field(default=None, metadata=OMIT)  #: of signals, taken in turn
    ways: tuple[GpuWay, ...]
    failed: tuple[Failed, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuBench(Result):
    """The convolution alone, on a GPU: `sparsify bench --device cuda`."""

    schema: int
    conditions: Conditions
    versions: Mapping[str, Any]
    card: Mapping[str, Any]
    arch: str
    ceilings: Mapping[str, float]  #: what was measured of the card, such as bytes_per_second and flop_per_second
    rounds: int
    cases: tuple[GpuCase, ...]
    crashed: Sequence[str]  #: cases that ended the process
    running: str | None


@dataclass(frozen=True, kw_only=True)
class TunedCase(Record):
    """The quickest kernel for a case."""

    case: str
    plan: str
    key: str  #: that it is kept under
    choice: Mapping[str, Any]
    faster_than_planned: float | None
    candidates: Sequence[Any]
    path: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuning(Result):
    """Kernels chosen by the clock: `sparsify bench --device cuda --calibrate`."""

    tuned: tuple[TunedCase, ...]
    conditions: Conditions


@dataclass(frozen=True, kw_only=True, repr=False)
class Calibration(Result):
    """What ways to convolve cost here, in nanoseconds of one core: `sparsify bench --calibrate`."""

    processor: str
    lanes: int
    path: str  #: where the constants are kept
    costs: Mapping[str, Any]
    defaults: Mapping[str, Any]


# --- filters and plans ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells(Record):
    """Equal parts of an even axis, [[share that is kept, dB], ...]; None where nothing is cut."""

    taps: Points | None
    bins: Points | None


@dataclass(frozen=True, kw_only=True)
class Curves(Record):
    """What is drawn of one filter: its energy in dB below the peak along logarithmic axes, and what is kept of it."""

    taps: Points  #: x counts taps from 1
    bins: Points
    tail: Points | None  #: spectrum of the smooth rest; None without one
    kept_taps: int | None  #: the first taps; None if all are
    kept_band: Points | None  #: [[start, stop], ...] as shares of the band; None if all of it is
    kept_share: float | None = None  #: of the bins; None if all are
    cells: Cells | None = None  #: for the map of all sites


@dataclass(frozen=True, kw_only=True)
class FilterKept(Record):
    """What a plan keeps of one filter."""

    name: str
    kind: str
    plan: str  #: in words
    density: float  #: kept taps plus bins over taps
    leak: float  #: taps ahead over all taps, by their norms; 0 for a filter that may look ahead
    curves: Curves | None = field(default=None, metadata=OMIT)


@dataclass(frozen=True)
class TriedPlan(Record):
    """A plan that was measured on the held-out windows."""

    limit: float  #: on the sum of predicted losses, nats a token
    predicted: float  #: relative increase of perplexity
    increase: float  #: the same, measured with negative lags cut
    stderr: float
    kl: float  #: measured, nats a token
    leak: float  #: worst found, relative to the logits
    cost: float  #: predicted, of all sites, in seconds or what the target counts
    density: float  #: kept taps plus bins, mean over sites
    fits: bool


@dataclass(frozen=True)
class Step(TriedPlan):
    """The same, against dense."""

    gain: float  #: how many times cheaper, predicted


@dataclass(frozen=True)
class PlannedSite(Record):
    """What was chosen for one site."""

    name: str
    plan: str
    error: float  #: of its output, relative
    ahead: float
    loss: float  #: predicted, nats a token
    probed: bool  #: whether that loss was measured, else it is read off others
    cost: float
    dense_cost: float
    candidates: int


@dataclass(frozen=True, kw_only=True)
class Search(Record):
    """A plan within a budget: what was promised, what was found, and what stands behind it."""

    plan: str
    budget: float  #: relative increase of perplexity
    figure: str = PERPLEXITY  #: what that stands for
    target: str
    chosen: Step
    dense_cost: float
    bound: float | None  #: no choice among the candidates, within the same limit on predicted losses, costs less
    steps: tuple[Step, ...]
    sites: tuple[PlannedSite, ...]
    points: Points  #: the front, [[predicted gain, predicted increase], ...]
    calibration_windows: int
    held_out_windows: int
    passes: float  #: forward, over the calibration windows, that planning took in all processes that had a part
    most: float | None  #: gain of that bound; None where there is none


@dataclass(frozen=True, kw_only=True)
class Pushed(Record):
    """What a push did, or with `dry_run` would do."""

    repo: str
    branch: str
    url: str  #: where people look at it
    commit: str | None  #: that holds the folder; None if it does not exist yet
    changed: bool  #: whether a commit was made
    created: bool  #: whether the repository was made
    pull_request: str | None  #: its address
    uploaded: Mapping[str, int]  #: name -> bytes
    deleted: Sequence[str]  #: of an earlier push
    unchanged: Sequence[str]
    dry_run: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Push(Result, Pushed):
    """The same, and how to load it: `sparsify push`."""

    load: str  #: Python


@dataclass(frozen=True, kw_only=True, repr=False)
class Conversion(Result, Checkpoint):
    """What `sparsify convert` kept, measured and wrote; report.json has it, too."""

    out: str  #: the folder
    plan_sha256: str
    filters: tuple[FilterKept, ...]
    linears: str = "float32"  #: what the linear layers multiply in; plan.json says it layer by layer
    planned: Search | None = None  #: None without a budget
    evaluation: Evaluation | None  #: None where nothing was measured
    causal: bool
    data: str | None = None  #: name of the file that was measured on
    benchmark: Mapping[str, str] | None = None  #: data set and task on the hub that it is of
    origin: Mapping[str, Any] = field(default_factory=dict)  #: licence, tags and the like of the source
    repo: str | None = None  #: that it was pushed to
    next: str  #: the command that measures it
    pushed: Push | None = field(default=None, metadata=OMIT)


@dataclass(frozen=True)
class Point(Record):
    """A choice as measured: negative lags cut, but for the leak, which is of the choice as it is."""

    kept: str
    cost: float  #: predicted, of all convolutions
    increase: float  #: of perplexity, relative
    stderr: float
    kl: float  #: from the dense model, nats a token
    leak: float  #: relative to the logits


@dataclass(frozen=True)
class Pair(Record):
    """The same for every convolution, and what sensitivity chooses for no more."""

    kind: str
    share: float
    uniform: Point
    chosen: Point


@dataclass(frozen=True, kw_only=True)
class ParetoPairs(Record):
    """What was compared, and on what."""

    target: str
    figure: str = PERPLEXITY
    dense_cost: float
    pairs: tuple[Pair, ...]
    not_cheaper: Sequence[str]  #: of the uniform ones, which cost as much as dense on this target
    calibration_windows: int
    held_out_windows: int
    context: int


@dataclass(frozen=True, kw_only=True, repr=False)
class ParetoComparison(Result, ParetoPairs, Checkpoint):
    """One mask for every convolution against plans by sensitivity: `sparsify eval front`."""

    data_notes: Sequence[str]
    conditions: Conditions


# --- the other verbs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site(Record):
    """One long convolution."""

    name: str
    channels: int
    taps: int
    causal: bool
    plan: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspection(Result, Checkpoint):
    """A checkpoint at a glance: `sparsify inspect`."""

    parameters: int
    context: int  #: tokens
    sites: tuple[Site, ...]
    timed_tokens: int
    time: tuple[Part, ...]
    published_time: tuple[Part, ...]  #: by the model's own code


@dataclass(frozen=True, kw_only=True)
class SiteEnergy(Record):
    """Where the energy of one filter lies: numbers run along `Analysis.shares`, lines are sparklines."""

    name: str
    taps: Sequence[int]  #: leading ones that hold each share
    bins: Sequence[int]  #: largest ones that do
    bandwidth: Sequence[float]  #: low-pass band that does, as a share of the band
    tail_bandwidth: Sequence[float]  #: the same once the head is faded out
    taps_line: str
    bins_line: str
    tail_line: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis(Result, Checkpoint):
    """How few taps and bins hold the energy of every filter: `sparsify analyze`."""

    length: int  #: tokens that spectra are taken for
    bins_in_all: int
    shares: Sequence[float]
    head: int  #: taps
    sites: tuple[SiteEnergy, ...]


@dataclass(frozen=True)
class Check(Record):
    """One thing that the doctor looks at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Health(Result):
    """Whether this installation is right: `sparsify doctor`."""

    version: str
    ok: bool  #: all that is needed is there
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Tilings(Result):
    """Which GPU kernels fit a length: `sparsify doctor --tiling`."""

    card: Mapping[str, Any]
    seqlen: int
    dtype: str
    rows_total: int
    source: str
    taps: int | None
    gated: bool
    batch: int
    kernels: int  #: there are
    fitting: int
    candidates: Sequence[Any]  #: the best, with every term of their cost
    refused: Sequence[Any]  #: how many each constraint refused, and an example
    advice: str | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Generation(Result, Checkpoint):
    """What a model wrote: `sparsify generate`."""

    prompt_tokens: int
    count: int
    temperature: float
    top_k: int | None
    seed: int | None
    text: str
    prompt_seconds: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class DevScore(Record):
    """The dev set after so many steps of a fine-tune."""

    step: int
    value: float  #: of the task's first metric
    loss: float  #: mean training loss since the evaluation before


@dataclass(frozen=True, kw_only=True, repr=False)
class Finetuning(Result, Checkpoint):
    """A classifier that was trained: `sparsify finetune`."""

    task: str
    out: str  #: its folder
    seed: int
    recipe: Mapping[str, Any]
    n: int  #: examples
    available: int  #: before a limit
    parameters: int
    metric: str
    steps: int  #: taken
    planned_steps: int
    evaluations: tuple[DevScore, ...]
    best: DevScore  #: whose weights were kept
    resumed_at: int  #: 0 for a run from the start
    convention: str
    data_notes: Sequence[str]
    conditions: Conditions
    next: str  #: the command that scores it
