"""Attention beside everything a user would pick instead: verified, then timed in turns.

    ./dev bench --quick                     one case of each kind, within five minutes
    ./dev bench                             all of them; writes docs/benchmarks.md and its pictures
    ./dev bench --case 'prompt-*' --only qkv torch --threads 1
    ./dev bench --multiply                  the products of linear layers beside torch's
    ./dev bench --multi-head                multi-head attention with its projections, beside eight ways of torch
    ./dev bench --properties                what masks, threads and options cost qkv itself; writes docs/properties.md
    ./dev bench --training                  a small GPT that learns, beside torch eager and torch.compile
    ./dev bench --compare before.jsonl after.jsonl
    ./dev bench --page results.jsonl        docs/benchmarks.md again from such files
"""

import argparse
import datetime
import fnmatch
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent


def arguments():
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case of each kind, at most five minutes")
    parser.add_argument("--case", action="append", metavar="PATTERN", help="cases by name, * and ? allowed; repeatable")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (default: 1 and all cores; --quick: all)")
    parser.add_argument("--seconds", type=float, default=4.0, help="aim for each case (default 4)")
    parser.add_argument("--out", type=pathlib.Path, help="results file, JSON lines (default bench/results/DATE.jsonl)")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two results files; nothing is timed")
    parser.add_argument("--page", type=pathlib.Path, nargs="+", metavar="RESULTS",
                        help="write docs/benchmarks.md and its pictures from results files; nothing is timed")
    parser.add_argument("--page-name", default="benchmarks", metavar="NAME",
                        help="write docs/NAME.md instead: a machine of another kind has a page of its own")
    parser.add_argument("--multiply", action="store_true",
                        help="the matrix products of linear layers beside torch's sgemm; nothing else is timed")
    parser.add_argument("--multi-head", action="store_true",
                        help="multi-head attention whole beside eight ways of torch; nothing else is timed")
    parser.add_argument("--properties", action="store_true",
                        help="what masks, threads and options cost; nothing else is timed")
    parser.add_argument("--training", action="store_true",
                        help="steps of training a GPT beside torch's, and their memory; nothing else is timed")
    parser.add_argument("--peaks", type=pathlib.Path, default=ROOT / "build/release/bin/measure_peaks",
                        help=argparse.SUPPRESS)
    return parser.parse_args()


def machine():
    name = platform.processor() or platform.machine()
    memory = ""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        kilobytes = int(pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").split()[1])
        memory = f", {kilobytes / 2**20:.0f} GiB"
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores{memory}, {platform.system()}"


def revision():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    return done.stdout.strip() or "unknown revision"


def chosen_cases(options):
    import cases

    found = cases.all_cases()
    if options.quick:
        found = [case for case in found if case.name in cases.QUICK]
    if options.case:
        found = [case for case in found if any(fnmatch.fnmatch(case.name, pattern) for pattern in options.case)]
        if not found:
            raise SystemExit(f"bench: no case is called {' or '.join(options.case)}; --list names them")
    return found


def measure_peaks(program, threads):
    import torch

    peaks = json.loads(subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout)
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = min(timed(lambda: torch.mm(a, b)) for _ in range(20))
    peaks["sgemm_gflops"] = round(2 * 1024**3 / best / 1e9, 1)
    return peaks


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def results_path(options, now):
    if options.out:
        return options.out
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    return folder / f"{now:%Y-%m-%d-%H%M%S}.jsonl"


def run(options):
    import contenders
    import measure
    import report

    found, missing = contenders.load(options.only)
    if not found:
        raise SystemExit(f"bench: no contender; missing: {missing}")
    selected = chosen_cases(options)
    cores = os.cpu_count() or 1
    counts = options.threads or ([cores] if options.quick else sorted({1, cores}))
    now = datetime.datetime.now(datetime.timezone.utc)
    head = {"kind": "head", "date": f"{now:%Y-%m-%d %H:%M} UTC", "machine": machine(), "revision": revision(),
            "contenders": {one.name: one.version for one in found}, "missing": missing,
            "peaks": {str(threads): measure_peaks(options.peaks, threads) for threads in counts}}
    for name, reason in missing.items():
        print(f"{name} is missing: {reason}", file=sys.stderr)
    path = results_path(options, now)
    unfinished = path.with_name(path.name + ".part")
    rows = []
    with unfinished.open("w", encoding="utf-8") as file:
        def write(line):
            file.write(json.dumps(line) + "\n")
            file.flush()

        write(head)
        total = len(selected) * len(counts)
        started = time.monotonic()
        for index, (threads, case) in enumerate((threads, case) for threads in counts for case in selected):
            ready, skipped = measure.prepare_all(case, found, threads)
            times = measure.time_case(ready, options.seconds) if ready else {}
            row = {"kind": "case", "case": case.name, "group": case.group, "work": case.work, "shape": case.shape,
                   "dtype": case.dtype, "heads": case.heads, "queries": case.queries, "threads": threads,
                   "flops": case.flops, "bytes": moved_bytes(case), "results": measure.summary(case, times),
                   "skipped": skipped, "times": times}
            rows.append(row)
            write(row)
            left = (time.monotonic() - started) / (index + 1) * (total - index - 1)
            shown = "  ".join(f"{name} {report.cell(row, one)}" for name, one in row["results"].items())
            print(f"[{index + 1}/{total}, {left / 60:.0f} min left] {case.name} {threads}t: {shown}"
                  + "".join(f"  ({name}: {reason})" for name, reason in skipped.items()), file=sys.stderr)
    unfinished.rename(path)
    if options.quick or options.case or options.only:
        print(report.markdown(head, rows))
    else:
        write_page(head, rows, options.page_name)
    print(f"results: {path}", file=sys.stderr)


def write_page(head, rows, name):
    import report

    page = ROOT / "docs" / f"{name}.md"
    made = report.pictures(head, rows, ROOT / "docs" / "pictures" / name)
    links = "".join(f"\n![{one.stem}]({one.relative_to(ROOT / 'docs')})\n" for one in made)
    part = page.with_suffix(".md.part")
    part.write_text(report.markdown(head, rows) + links, encoding="utf-8")
    part.rename(page)
    print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)


def instruction_set():
    """What qkv uses, of those that this machine has."""
    done = subprocess.run([pathlib.Path(sys.executable).with_name("qkv"), "info"], check=True, capture_output=True,
                          text=True)
    return next(line.split()[0] for line in done.stdout.splitlines() if line.split()[1:2] == ["used"])


def write_properties(threads, seconds):
    import properties

    page = ROOT / "docs" / "properties.md"
    now = datetime.datetime.now(datetime.timezone.utc)
    text = [f"""# Properties

Made by `./dev bench --properties`; do not edit. Machine: {machine()}. {now:%Y-%m-%d %H:%M} UTC, {revision()}, kernels for
{instruction_set()}.
"""]
    for line in properties.lines(threads, seconds):
        print(line, flush=True)
        text.append(line)
    part = page.with_suffix(".md.part")
    part.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    part.rename(page)
    print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)


def moved_bytes(case):
    width = 4 if case.dtype == "f32" else 2
    queries = case.batch * case.heads * case.queries * (case.head_dim + case.value_dim) * width
    return queries + case.key_value_bytes


def main():
    options = arguments()
    if options.compare:
        import compare

        print("\n".join(compare.compare(*options.compare)))
        return
    if options.page:
        import report

        write_page(*report.read_runs(options.page), options.page_name)
        return
    if options.multiply:
        import multiply

        counts = options.threads or sorted({1, os.cpu_count() or 1})
        print("\n".join(multiply.compare(options.peaks.with_name("bench_multiply"), options.peaks, counts,
                                         options.seconds)))
        return
    if options.multi_head:
        import multi_head

        counts = options.threads or sorted({1, os.cpu_count() or 1})
        print("\n".join(multi_head.compare(options.peaks.with_name("bench_multi_head"), counts, 10 * options.seconds)))
        return
    if options.properties:
        write_properties(max(options.threads or [os.cpu_count() or 1]), options.seconds)
        return
    if options.training:
        import training

        counts = options.threads or [os.cpu_count() or 1]
        print("\n".join(training.compare(options.peaks.with_name("bench_training"), counts, 5 * options.seconds)))
        return
    if options.list:
        for case in chosen_cases(options):
            print(f"{case.name:28} {case.group:5} {case.work:9} {case.dtype:5} {case.shape}")
        return
    # JAX reads its threads once, when it is imported, and its own pool has as many as there are cores.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    run(options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
