"""Verifies contenders, then times them in turns."""

import pathlib
import statistics
import time

from contenders import Unavailable
from inputs import ALLOWED_ROUNDINGS, Inputs, check_context

# A turn is at least this long, so that the clock and the call around it do not count.
TURN_SECONDS = 0.02
# A contender that takes so many times the fastest's time has so many turns.
SLOW, SLOW_ROUNDS = 3, 2
# After another's turn its threads may still be waiting busily, and the caches are someone else's.
SETTLE_SECONDS = 0.003


def prepare_all(case, contenders, threads):
    """({name: Prepared}, {name: reason}) of those whose context is right."""
    inputs = Inputs(case)
    ready = {}
    skipped = {}
    for contender in contenders:
        try:
            check_memory(case, contender)
            prepared = contender.prepare(case, inputs, threads)
            prepared.run()
            roundings = check_context(case, inputs, prepared.context())
        except Unavailable as reason:
            skipped[contender.name] = str(reason)
            continue
        except (RuntimeError, MemoryError, ValueError, TypeError, NotImplementedError) as error:
            skipped[contender.name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if roundings > ALLOWED_ROUNDINGS[case.dtype]:
            skipped[contender.name] = f"wrong: off by {roundings:.3g} roundings of {case.dtype}"
            continue
        ready[contender.name] = prepared
    return ready, skipped


def check_memory(case, contender):
    """Those that write all scores out, some copies of them, must not take the machine down with them."""
    needed = 4 * 4 * case.batch * case.heads * case.queries * case.keys
    meminfo = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    if getattr(contender, "writes_scores", False) and needed > available:
        raise Unavailable(f"its scores would take some {needed / 2**30:.0f} GiB of {available / 2**30:.0f} free")


def calls_per_turn(run):
    """How many calls fill a turn, and what one takes, in seconds."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = time.perf_counter() - start
        if seconds >= TURN_SECONDS:
            return calls, seconds / calls
        calls = max(calls * 2, int(calls * TURN_SECONDS / max(seconds, 1e-9)))


def time_case(ready, budget_seconds, least_rounds=5):
    """{name: [seconds per call, one of each round]}: in every round each contender has a turn, the order turning.

    One that is several times slower than the fastest has few turns: nobody asks for its third digit."""
    names = list(ready)
    calls, call_seconds = {}, {}
    for name in names:
        calls[name], call_seconds[name] = calls_per_turn(ready[name].run)
    fastest = min(call_seconds.values())
    slow = {name for name in names if call_seconds[name] > SLOW * fastest and call_seconds[name] > TURN_SECONDS}
    round_seconds = sum((calls[name] + 1) * call_seconds[name] + SETTLE_SECONDS for name in names if name not in slow)
    rounds = max(least_rounds, min(101, int(budget_seconds / round_seconds)))
    times = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            if name in slow and index >= SLOW_ROUNDS:
                continue
            time.sleep(SETTLE_SECONDS)
            run = ready[name].run
            if name not in slow:
                run()
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - start) / calls[name])
    return times


def summary(case, times):
    """{name: {median seconds, GFLOP/s, and for all but qkv the median of the rounds' ratios to qkv}}."""
    result = {}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        result[name] = {"seconds": median, "gflops": case.flops / median / 1e9, "rounds": len(seconds)}
        if case.work == "decode":
            result[name]["gb_per_s"] = case.key_value_bytes / median / 1e9
        if "qkv" in times and name != "qkv":
            result[name]["qkv_speedup"] = statistics.median(
                theirs / ours for theirs, ours in zip(seconds, times["qkv"]))
    return result
