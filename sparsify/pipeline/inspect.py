"""Looking: at a checkpoint, at its filters, and at this installation."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsify import __version__
from sparsify.report.schema import Analysis, Check, Health, Inspection, Site, SiteEnergy, Tilings

from .checkpoints import at_least, check_length, described, open_checkpoint
from .progress import Progress, session
from .timing import timed_parts

if TYPE_CHECKING:
    from sparsify.filters.filter import AnyFilter
    from sparsify.sites import ConvSite


def inspect(
    src: str, *, length: int | None = None, revision: str | None = None, options: Mapping[str, Any] | None = None,
    device: str | None = None, progress: Progress | None = None,
) -> Inspection:  # fmt: skip
    """Tell the family of a checkpoint, its long convolutions, and where the time of a forward pass goes.

    Args:
        src: A folder or a hub id, ORG/NAME.
        length: Tokens of the timed forward pass; None takes the model's context, up to 8192.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it family, `parameters`, `context` in tokens, a row for each of the
        `sites`, and the `time` of each part of a forward pass in seconds, here and as published
        (`published_time`).

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    at_least(1, length=length)
    with session(progress):
        p = open_checkpoint(src, revision, options, device)
        check_length(p, length)
        length = length or min(p.context, 8192)
        time = timed_parts(p, p.plan, 1, length)
        return Inspection(
            **described(p),
            parameters=sum(w.numel() for w in p.model.parameters()),
            context=p.context,
            sites=tuple(Site(s.name, s.channels, s.length, s.causal, str(p.plan.filters[s.name])) for s in p.sites),
            timed_tokens=length,
            time=time.after,
            published_time=time.before,
        )


def analyze(
    src: str, *, length: int | None = None, revision: str | None = None, options: Mapping[str, Any] | None = None,
    device: str | None = None, progress: Progress | None = None,
) -> Analysis:  # fmt: skip
    """Count how few taps, and how few frequencies, hold 90, 99 and 99.9 % of every filter's energy.

    Args:
        src: A folder or a hub id, ORG/NAME.
        length: Tokens the spectra are taken for; None takes the model's context.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it for each of the `sites` how many `taps`, how many `bins`, and what
        lowest share of the band (`bandwidth`, `tail_bandwidth`) hold each of the `shares` of the energy.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.filters import spectra
    from sparsify.plan import policies

    at_least(2, length=length)
    with session(progress):
        p = open_checkpoint(src, revision, options, device)
        length = length or p.context
        check_length(p, length)
        return Analysis(
            **described(p),
            length=length,
            bins_in_all=policies.points(length),
            shares=spectra.SHARES,
            head=policies.HEAD,
            sites=tuple(analyzed(p.filters[site.name], site, length) for site in p.sites),
        )


def analyzed(k: AnyFilter, site: ConvSite, length: int) -> SiteEnergy:
    """Where the energy of one filter lies."""
    from sparsify.filters import spectra
    from sparsify.filters.split import tail_of
    from sparsify.plan import policies
    from sparsify.report.curves import sparkline

    n = policies.points(length)
    k = k.felt(length)
    s = spectra.analyze(k, n)
    tail = spectra.analyze(tail_of(k, policies.HEAD), n)
    return SiteEnergy(
        name=site.name,
        taps=s.taps,
        bins=s.bins,
        bandwidth=s.bandwidth,
        tail_bandwidth=tail.bandwidth,
        taps_line=sparkline(s.by_tap),
        bins_line=sparkline(s.by_bin),
        tail_line=sparkline(tail.by_bin),
    )


# --- the machine ---------------------------------------------------------------------------------------------------


def doctor() -> Health:
    """Check this installation: versions, backends, and the convolution itself.

    Returns:
        What `--json` prints; `result.ok` says whether all that is needed is there.
    """
    import torch

    from sparsify.cpu.native import library
    from sparsify.gpu import jit

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    checks = [
        ("python", sys.version_info >= (3, 11), platform.python_version()),
        (
            "torch",
            True,
            f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        ),
        *(installed(name) for name in ("transformers", "huggingface_hub", "safetensors")),
        ("convolution", *convolves()),
        ("kernels", *library.describe()),
        ("gpu", gpu is not None, gpu or "none: the CPU backend is used"),
        *(on_gpu := jit.describe()),
    ]
    optional = {"kernels", "gpu", *(name for name, _, _ in on_gpu)}
    return Health(
        version=__version__,
        ok=all(ok for name, ok, _ in checks if name not in optional),
        checks=tuple(Check(*check) for check in checks),
    )


def convolves() -> tuple[bool, str]:
    """Whether the convolution agrees with its reference, and in words how well."""
    import torch

    from sparsify.evals.causality import relative
    from sparsify.fftconv import fftconv, fftconv_ref

    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    try:
        error = relative(fftconv(u, k).double(), fftconv_ref(u, k))
    except ValueError as refusal:  # an instruction set that cannot run here
        return False, str(refusal)
    return error < 1e-6, f"relative L2 error {error:.1e} against float64"


def installed(name: str) -> tuple[str, bool, str]:
    """A check of the doctor's: name, whether it is there, its version."""
    try:
        return name, True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, False, f"missing: pip install {name}"


def tilings(length: int | None = None, arch: str | None = None) -> Tilings:
    """Tell which GPU kernels fit a length, and why the others do not, for 64 sequences of 768 channels.

    Args:
        length: Samples of a signal.
        arch: The card's, as "sm_90"; None takes the card at hand, or sm_90.

    Returns:
        What `--json` prints.

    Raises:
        ValueError: There is no length, or no such card.
    """
    from sparsify.gpu import devices, planner

    if length is None:
        raise ValueError("--arch is of --tiling; add the length that a kernel is sought for")
    at_least(1, tiling=length)
    return Tilings.from_dict(planner.facts(devices.card(arch), length, rows_total=64 * 768, batch=64))
