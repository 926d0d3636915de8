"""All that a GPU has to say, in one go: versions, tests, errors, times, a profile and tuning, written to a folder.

    python3 tools/on_gpu.py OUT [--minutes 9] [--steps versions,compile,tests,sweep,bench,profile,tune]

Needs a checkout, and a Python with what `pip install -e .[test]` brings.  Every step is a process with a limit of its
own, so one that fails or hangs does not stop the rest, and what it had found until then lies in OUT:

    log.txt      what the steps said        tests.txt   pytest -m gpu
    sweep.json   errors of every way        bench.json  the benchmark, case by case
    tuned.json   what tuning found          ncu.txt     three kernels under Nsight Compute, where it is installed

The summary at the end stays below 12,000 characters.  Compiled kernels go to SPARSIFY_CACHE, or to a temporary folder;
what tuning keeps stays out of the way of others, in that folder, too.  To time another library beside ours, put it on
PYTHONPATH: FlashFFTConv (`flashfftconv`, with `monarch_cuda` built for this card), `subquadratic_ops_torch` or cuDNN's
frontend (`cudnn`); the benchmark says of each that is missing why.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

LIMITS = {  # seconds, of 540 altogether; what one does not need, those behind it have
    "versions": 40.0,
    "compile": 90.0,
    "tests": 110.0,
    "sweep": 60.0,
    "bench": 170.0,
    "profile": 40.0,
    "tune": math.inf,
}
LOGS = {"tests": "tests.txt", "profile": "ncu.txt"}  # of steps that do not write to log.txt
STALL = 100.0  # seconds without a new case after which the benchmark hangs
MARGIN = 15.0  # seconds that a case takes at most, if all is well
LETTERS = 12_000  # of the summary


# --- steps, each in a process of its own -----------------------------------------------------------------------------


def versions(out: Path, seconds: float) -> None:
    """Of everything, and the state of the card."""
    import torch

    from sparsify.evals.speed import gpu_convolution
    from sparsify.gpu import jit
    from sparsify.gpu.devices import Card

    print("python", sys.version.split()[0], "torch", torch.__version__, json.dumps(gpu_convolution.versions()))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["nvidia-smi"], timeout=20)
    if reason := jit.why_not():
        sys.exit(f"our kernels do not run here: {reason}")
    print("kernels for", jit.architecture(), Card.of(), torch.cuda.get_device_properties())


def compile_all(out: Path, seconds: float) -> None:
    """What tests, sweep and benchmark need, by several processes."""
    from sparsify.evals.speed import autotune, gpu_convolution, gpu_machine

    on = gpu_machine.machine()
    builds = dict.fromkeys(autotune.needed(on.card, gpu_convolution.cases()))
    for case, _, kept, choice in sweep_entries(on):
        way = autotune.way_for(on, case, kept, choice)
        builds |= dict.fromkeys(gpu_convolution.builds_of(way, case.shape[-1]))
    sys.path.append(str(ROOT / "tests"))
    try:
        from test_gpu import CASES

        builds |= dict.fromkeys(build for case in CASES for build in case.builds)
    except Exception as error:  # the tests say so themselves
        print(f"kernels of the tests are compiled when they run: {error!r}")
    began = time.monotonic()
    problems = autotune.compile_all(list(builds), on.arch)
    print(len(builds), f"kernels in {time.monotonic() - began:.0f} s,", len(problems), "do not compile", *problems)


SWEPT = (256, 1023, 4096, 8191, 32768, 131069)  # samples


def sweep_entries(on: Any, lengths: Sequence[int] = SWEPT, channels: int = 32) -> Iterator[tuple[Any, str, Any, Any]]:
    """Every way that fits a plan, the first kernel of each, in every type; plain and gated in turn.

    Yields a gpu_kernels.Case, the name of a plan, what that keeps of a filter of one channel, and a tuned.Choice.
    """
    import torch

    from sparsify.evals.speed import autotune, gpu_convolution

    number = 0
    for seqlen in lengths:
        for name, plan in gpu_convolution.plans(seqlen).items():
            kept = plan.apply(torch.zeros(1, seqlen))
            for dtype in gpu_convolution.DTYPES:
                case = gpu_convolution.Case((3, channels, seqlen), dtype, gated=bool(number % 2))
                number += 1
                first = {way_name(choice): choice for choice in reversed(autotune.variants(on, case, kept))}
                for choice in first.values():
                    yield case, name, kept, choice


def way_name(choice: Any) -> str:
    return f"{choice.how} {choice.tiling.inner.source}" if choice.tiling else str(choice.how)


def sweep(out: Path, seconds: float) -> None:
    """Errors of every way against float64, and whether two runs agree to the bit."""
    from sparsify.evals.speed import gpu_machine

    on = gpu_machine.machine()
    rows = swept(on, out / "sweep.json", sweep_entries(on))
    if failed := sum("failed" in row for row in rows):
        sys.exit(f"{failed} of {len(rows)} ways failed")


def swept(on: Any, path: Path, entries: Iterator[tuple[Any, str, Any, Any]]) -> list[dict[str, Any]]:
    """`sweep` on any machine; written as it goes."""
    import torch

    from sparsify.evals.speed import autotune, gpu_convolution

    rows: list[dict[str, Any]] = []
    for case, name, _, choice in entries:
        row = {"case": case.name, "dtype": case.dtype, "plan": name, "way": way_name(choice)}
        gpu_convolution.write(path, [*rows, {**row, "failed": "the process ended here"}])
        try:
            inputs = gpu_convolution.Inputs.of(case, on, seed=len(rows))
            kept = gpu_convolution.kept_by(gpu_convolution.plans(case.shape[-1])[name], inputs.k)
            call = gpu_convolution.ours(on, inputs, autotune.tables_of(on, case, kept, choice))
            row["error"] = gpu_convolution.error_of(call, inputs, kept, gpu_convolution.BARS[case.dtype])
            first, second = call(0), call(0)
            if not torch.equal(first, second):
                raise RuntimeError(f"two runs differ by {(first.double() - second.double()).norm():.1e}: a race")
        except Exception as problem:
            row["failed"] = gpu_convolution.reason(problem)
            tell(f"{case.name}, {name}, {row['way']}: {row['failed']}")
        rows.append(row)
        gpu_convolution.write(path, rows)
        on.rest()  # raises where the device is lost, and with it the rest
    return rows


def bench(out: Path, seconds: float) -> None:
    """The benchmark; goes on where a process before it died."""
    from sparsify.evals.speed import gpu_convolution, gpu_machine

    some = dict.fromkeys([*gpu_convolution.QUICK, *gpu_convolution.cases()])
    gpu_convolution.bench(gpu_machine.machine(), list(some), 7, out / "bench.json", seconds - MARGIN, tell)


def profile(out: Path, seconds: float) -> None:
    """The kernels of three dense cases, once each, for a profiler to look at."""
    import torch

    from sparsify.evals.speed import gpu_convolution, gpu_machine

    on = gpu_machine.machine()
    for seqlen in (1 << 10, 1 << 12, 1 << 14):
        case = gpu_convolution.Case((16, 768, seqlen), "float16")
        inputs = gpu_convolution.Inputs.of(case, on)
        kept = gpu_convolution.plans(seqlen)[gpu_convolution.DENSE].apply(inputs.k)
        gpu_convolution.ours(on, inputs, gpu_convolution.prepare(on, case, kept))(0)
        torch.cuda.synchronize()


def tune(out: Path, seconds: float) -> None:
    """Cases in the order of their likelihood, for as long as there is time."""
    from sparsify.evals.speed import autotune, gpu_convolution, gpu_machine

    deadline, rows = time.monotonic() + seconds - MARGIN, []
    for row in autotune.tune_all(gpu_machine.machine(), autotune.tuning_cases(), progress=tell):
        rows.append(row)
        gpu_convolution.write(out / "tuned.json", rows)
        if time.monotonic() > deadline:
            break


def tell(what: str) -> None:
    print(what, flush=True)


STEPS: Mapping[str, Callable[[Path, float], None]] = {
    "versions": versions,
    "compile": compile_all,
    "sweep": sweep,
    "bench": bench,
    "profile": profile,
    "tune": tune,
}


# --- all of them -----------------------------------------------------------------------------------------------------


def command(name: str, out: Path, seconds: float) -> list[str]:
    """Of a step."""
    if name == "tests":
        several = ["-n", "8"] if importlib.util.find_spec("xdist") else []
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *several]
    own = [sys.executable, str(Path(__file__).resolve()), str(out), "--inside", name, "--seconds", f"{seconds:.0f}"]
    if name == "profile":
        return ["ncu", "--clock-control", "none", "--set", "full", "--kernel-name", "conv", "--launch-count", "3", *own]
    return own


def environment() -> dict[str, str]:
    """Of every step."""
    temporary = Path(tempfile.gettempdir()) / f"sparsify-on-gpu-{os.getuid()}"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SPARSIFY_CACHE": os.environ.get("SPARSIFY_CACHE") or str(temporary),
        "XDG_CACHE_HOME": str(temporary / f"tuned-{os.getpid()}"),  # no benchmark goes by what another call tuned
    }


def run(words: Sequence[str], log: Path, seconds: float, watched: Path | None = None) -> str:
    """How a command ended, its output appended to `log`: "done", "failed (1)", "out of time", "hung" or "not here".

    It is ended, with all it started, after so many seconds; or where `watched` has not changed for STALL seconds.
    """
    began = time.monotonic()
    with log.open("ab", 0) as out:
        out.write(f"\n$ {' '.join(words)}\n".encode())
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=environment(),
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"not here: {error}"
    status, changed, seen = "", began, None
    try:
        while process.poll() is None and not status:
            time.sleep(0.05)
            now, state = time.monotonic(), watched.stat().st_mtime_ns if watched and watched.exists() else None
            if state != seen:
                seen, changed = state, now
            if now - began > seconds:
                status = "out of time"
            elif watched and now - changed > STALL:
                status = "hung"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return status or ("done" if code == 0 else f"failed ({code})")


def step(name: str, out: Path, seconds: float) -> str:
    """How one of LIMITS ended."""
    log, deadline = out / LOGS.get(name, "log.txt"), time.monotonic() + seconds
    if name != "bench":
        return run(command(name, out, seconds), log, seconds)
    state = out / "bench.json"
    state.unlink(missing_ok=True)
    while True:  # a case that ends the process, or hangs, is left out the next time
        left = deadline - time.monotonic()
        ended = run(command(name, out, left), log, left, state)
        if ended in ("done", "out of time") or deadline - time.monotonic() < MARGIN or not state.is_file():
            return ended


def everything(out: Path, minutes: float, names: Sequence[str]) -> dict[str, str]:
    """All steps in their order, and how each ended."""
    deadline, report = time.monotonic() + 60 * minutes, {}
    for name in names:
        began = time.monotonic()
        left = deadline - began
        try:
            report[name] = step(name, out, min(left, LIMITS[name])) if left > 5 else "no time left"
        except Exception as error:  # of this script: the other steps can do without
            report[name] = f"failed: {error!r}"
        if report[name].startswith("failed ("):
            report[name] += ": " + "".join(lines_of(out / LOGS.get(name, "log.txt"))[-1:])[:160]
        print(f"{name}: {report[name]}, {time.monotonic() - began:.0f} s", flush=True)
    return report


# --- what is told of it ----------------------------------------------------------------------------------------------

SHORT = {  # columns of the benchmark: how many times faster dense is than these
    "best torch.fft": "torch",
    "torch.fft in float16": "half",
    "models' own code": "own",
    "FlashFFTConv": "flash",
    "FlashFFTConv, filter's FFT kept": "kept",
    "subquadratic_ops_torch": "subq",
    "cuDNN": "cudnn",
}
PROFILED = r"^\s+conv|Duration|(Compute|DRAM|Tensor).*Throughput|Registers Per Thread|Achieved Occupancy"


def summary(out: Path, report: Mapping[str, str]) -> str:
    """Tests, worst errors, tuning, times, profile; at the end, where room is left, why contenders failed."""
    lines = [f"{name:9} {ended}" for name, ended in report.items()]
    said = lines_of(out / "tests.txt")
    lines += [line[:120] for line in said if line.startswith("FAILED")][:8] + said[-1:]
    rows = json_in(out / "sweep.json") or []
    failed = [row for row in rows if "failed" in row]
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["way"], row["dtype"]
        worst[key] = max(worst.get(key, 0.0), row.get("error", 0.0))
    lines += [f"\nsweep: {len(rows)} ways, {len(failed)} failed; the largest errors:"] * bool(rows)
    lines += [f"  {way:16} {dtype:9} {error:.1e}" for (way, dtype), error in sorted(worst.items())]
    lines += [f"  FAILED {row['case']}, {row['plan']}, {row['way']}: {row['failed']}"[:120] for row in failed[:8]]
    tuned = json_in(out / "tuned.json") or []
    gains = sorted(row["faster_than_planned"] for row in tuned if row["faster_than_planned"])
    if gains:
        best = f"median {gains[len(gains) // 2]:.2f}x, at most {gains[-1]:.2f}x"
        lines.append(f"\ntuned {len(tuned)} cases, against the planner's choice: {best}")
    bench = json_in(out / "bench.json") or {"cases": []}
    lines += bench_lines(bench) if bench["cases"] else []
    lines += [line.strip()[:80] for line in lines_of(out / "ncu.txt") if re.search(PROFILED, line)][:18]
    why = {(row["name"], row["reason"]): case["case"] for case in reversed(bench["cases"]) for row in case["failed"]}
    lines += [f"{case}: {name}: {reason}"[:160] for (name, reason), case in reversed(why.items())]
    return "\n".join(lines)[:LETTERS]


def bench_lines(bench: Mapping[str, Any]) -> list[str]:
    """A line a case: dense, and how it compares."""
    peak = bench["ceilings"]
    cases = [(case["case"], {way["name"]: way for way in case["ways"]}) for case in bench["cases"]]
    plans = dict.fromkeys(name for _, ways in cases for name in ways if name not in SHORT and name != "dense")
    heads = [*SHORT.values(), *(name.replace("partial ", "p ").replace(" + 1/8", "+") for name in plans)]
    lines = [
        f"\n{bench['card']['name']}: copy {peak['bytes_per_second'] / 1e12:.2f} TB/s, bfloat16 product "
        f"{peak['flop_per_second'] / 1e12:.0f} TFLOP/s; dense against others, then plans against dense",
        f"{'case':32}{'us':>9} floor planned" + "".join(f"{head[:6]:>7}" for head in heads),
    ]
    for name, ways in cases:
        if (dense := ways.get("dense")) is None:
            lines.append(f"{name:32} no dense")
            continue
        ratios = [dense["faster_than"].get(other) for other in SHORT]
        ratios += [ways[plan]["faster_than"].get("dense") if plan in ways else None for plan in plans]
        lines.append(
            f"{name:32}{dense['seconds'] * 1e6:9.1f}{dense['of_floor']:6.0%}{dense['predicted_seconds'] * 1e6:8.1f}"
            + "".join(f"{ratio['median']:7.2f}" if ratio else f"{'':7}" for ratio in ratios)
        )
    return lines + [f"ended the process: {name}" for name in bench["crashed"]]


def json_in(path: Path) -> Any:
    """What a JSON file holds, or None."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--steps", default=",".join(LIMITS))
    parser.add_argument("--inside", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=math.inf, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        STEPS[given.inside](given.out, given.seconds)
        return 0
    names = given.steps.split(",")
    if strange := set(names) - LIMITS.keys():
        parser.error(f"no step {', '.join(sorted(strange))}; there are {', '.join(LIMITS)}")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = everything(out, given.minutes, names)
    print("\n" + summary(out, report))
    return 0 if set(report.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
