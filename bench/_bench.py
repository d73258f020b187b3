"""Timing of several callables side by side: interleaved rounds, median ratios, peak memory in fresh processes.

A script gives `compare` a dictionary of cases. A case is `(setup, args)`: a module-level function and its
arguments; `setup(*args)` builds the inputs and returns the callable that is timed.

    def setup(kind, n): ...; return lambda: step()
    if __name__ == "__main__":
        compare("lion", {"ours": (setup, ("ours", 10**6)), "theirs": (setup, ("theirs", 10**6))}, baseline="theirs")

Timing on Linux happens twice, each in a fresh process: with glibc's default allocator, where a fresh tensor over
32 MiB costs page faults, and with one that keeps its memory. Ratios are taken within a round, then the median over
rounds, so that a machine that slows down half-way slows down every case alike.
"""
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed blocks go back at once: nothing kept can hide what a call needs
ALLOCATORS = {"default": {}, "reuse": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}}
RESULTS = Path(__file__).resolve().parent.parent/"_bench"


def compare(
    name,  # the results go to _bench/<name>.json
    cases,  # {label: (setup, args)}; setup(*args) returns the callable to be timed
    baseline,  # the label that ratios are taken against
    *,
    rounds=30,  # interleaved rounds; every case runs `inner` times in each
    warmup=3,  # rounds that do not count
    inner=1,  # calls timed together: raise it where one call takes microseconds
    threads=1,  # torch threads
    packages=("torch",),  # whose versions are recorded
    allocators=tuple(ALLOCATORS),  # "default", "reuse"; none of them: memory only
    note="",  # one line for the table's head
):
    "Time the cases side by side, measure their peak memory, print one table, write one file."
    if baseline not in cases: raise ValueError(f"baseline {baseline!r} is none of {list(cases)}")
    for a in allocators:
        if a not in ALLOCATORS: raise ValueError(f"allocator must be one of {list(ALLOCATORS)}, got {a!r}")
    result = {"name": name, "note": note, "baseline": baseline, "rounds": rounds, "inner": inner, "threads": threads,
              "date": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": versions(packages), "cases": {}}
    for allocator in allocators:
        times = _fresh(ALLOCATORS[allocator], _interleaved, cases, rounds, warmup, inner, threads)
        for label, t in times.items():
            ratios = [a/b for a, b in zip(t, times[baseline])]
            low, _, high = statistics.quantiles(ratios, n=4)
            result["cases"].setdefault(label, {})[allocator] = {
                "median_ms": 1e3*statistics.median(t), "ratio": statistics.median(ratios),
                "ratio_quartiles": [low, high]}
    for label, case in cases.items():
        result["cases"].setdefault(label, {})["peak_mib"] = _fresh(RETURNED, _peak, case, warmup, threads)
    show(result, allocators)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    return result


def repeats(parser, rounds=5, warmup=2):
    "The options that say how often, and with which allocators, a script measures; then what was asked for."
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--warmup", type=int, default=warmup)
    parser.add_argument("--allocator", nargs="*", default=list(ALLOCATORS), help="none of them: memory only")
    return parser.parse_args()


def show(result, allocators):
    "The table, on standard output (Markdown)."
    print(f"\n{result['name']}: {result['note']}\n{result['machine']}; "
          + ", ".join(f"{p} {v}" for p, v in result["versions"].items())
          + f"; {result['threads']} thread(s), {result['rounds']} interleaved rounds; "
          + f"ratio to {result['baseline']}: median [quartiles]\n")
    heads = [f"{a} allocator: ms | ratio" for a in allocators]
    print("| | " + " | ".join([*heads, "peak MiB"]) + " |\n|---" + "|---"*(2*len(allocators) + 1) + "|")
    for label, r in result["cases"].items():
        cells = [f"{r[a]['median_ms']:.3g} | {r[a]['ratio']:.2f} [{r[a]['ratio_quartiles'][0]:.2f}, "
                 f"{r[a]['ratio_quartiles'][1]:.2f}]" for a in allocators]
        print(f"| {label} | " + " | ".join([*cells, f"{r['peak_mib']:.1f}"]) + " |")


def machine():
    "Processor and cores, in words."
    try: cpu = next(row.split(":", 1)[1].strip() for row in open("/proc/cpuinfo") if row.startswith("model name"))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def versions(packages):
    "Installed versions; a peer that is absent is said to be."
    out = {"python": platform.python_version()}
    for p in packages:
        try: out[p] = version(p)
        except PackageNotFoundError: out[p] = "absent"
    return out


def _fresh(environment, task, *args):
    "Run `task(*args)` in a new process under these environment variables."
    old = {k: os.environ.get(k) for k in environment}
    os.environ.update(environment)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool: return pool.apply(task, args)
    finally:
        for k, v in old.items():
            if v is None: os.environ.pop(k)
            else: os.environ[k] = v


def _sync():
    if torch.cuda.is_available(): torch.cuda.synchronize()


def _interleaved(cases, rounds, warmup, inner, threads):
    torch.set_num_threads(threads)
    calls = {label: setup(*args) for label, (setup, args) in cases.items()}
    times, labels = {label: [] for label in calls}, list(calls)
    for i in range(warmup + rounds):
        for label in labels[i % len(labels):] + labels[:i % len(labels)]:
            _sync(); start = time.perf_counter()
            for _ in range(inner): calls[label]()
            _sync(); elapsed = (time.perf_counter() - start)/inner
            if i >= warmup: times[label].append(elapsed)
    return times


def _status(key):
    with open("/proc/self/status") as f:
        return next(int(row.split()[1])/1024 for row in f if row.startswith(key))


def _peak(case, warmup, threads):
    "MiB above what was resident before the steady state: what one call needs on top of its inputs and state."
    torch.set_num_threads(threads)
    setup, args = case
    call = setup(*args)
    for _ in range(warmup): call()
    _sync()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats(); call(); _sync()
        return (torch.cuda.max_memory_allocated() - before)/2**20
    if sys.platform != "linux": return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS"); call()
    return _status("VmHWM") - before
