"""What the benchmarks share: variants by turns in one process, ratios, and the machine."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"

# Threads that wait actively take the processor from each other where it is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Make torch behave as on a processor with AVX2 alone, without bfloat16 instructions.
AS_AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def restart_as_avx2() -> None:
    """Start this program again with AVX2 alone; torch reads these settings when it is imported."""
    if not set(AS_AVX2.items()) <= set(os.environ.items()):
        os.environ.update(AS_AVX2)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def by_turns(
    variants: dict[str, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each variant, `rounds` times, in turn, so that a busy moment hits all alike.

    The first round warms up and is not counted. clock: `time.thread_time` counts only while the
    thread that asks computes, so it leaves out what other programs take, and threads beside it.
    """
    took = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            start = clock()
            variant()
            if number:
                took[name].append(clock() - start)
    return took


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as long: the median over the rounds of their ratios."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def table(took: dict[str, list[float]], base: str, parts: int = 1) -> dict:
    """Seconds of each, and how many times as long as `base` it takes."""
    return {
        name: {
            "seconds": round(min(seconds) / parts, 5),
            f"times {base}": round(ratio(seconds, took[base]), 3),
        }
        for name, seconds in took.items()
    }


# What a processor may have for narrow numbers, by the names that Linux gives.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "bf16")


def processor() -> tuple[str, list[str]]:
    """Its name, and which of INSTRUCTIONS it has, as far as the system tells (Linux does)."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    facts = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return name, [flag for flag in INSTRUCTIONS if flag in flags]


def peak_memory() -> int:
    """The most bytes that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: there the parent's peak counts too
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on macOS in bytes


def machine() -> dict:
    """The processor, and what torch makes of it."""
    import torch

    name, instructions = processor()
    return {
        "processor": name,
        "instructions": " ".join(instructions),
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def measured_machine() -> dict:
    """Also how fast it reads memory and multiplies, and which ways that makes fastest."""
    import torch

    from minipali.narrow import fastest

    numbers = torch.ones(2**28)  # 1 GiB, far more than any cache
    left, right = torch.randn(256, 2048), torch.randn(2048, 8192)
    narrow = right.bfloat16()
    took = by_turns(
        {
            "read": lambda: numbers.sum(),
            "float32": lambda: left @ right,
            "bfloat16": lambda: left.bfloat16() @ narrow,
        },
        rounds=5,
    )
    work = 2 * 256 * 2048 * 8192
    return machine() | {
        "reads GB/s": round(numbers.nbytes / median(took["read"]) / 1e9, 1),
        "float32 GFLOP/s": round(work / median(took["float32"]) / 1e9, 1),
        "bfloat16 GFLOP/s": round(work / median(took["bfloat16"]) / 1e9, 1),
        "one row of bfloat16": fastest(torch.bfloat16, one_row=True).__name__,
        "many rows of bfloat16": fastest(torch.bfloat16, one_row=False).__name__,
    }


def write(name: str, result: dict) -> None:
    """Print a result and keep it as JSON."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
