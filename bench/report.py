"""What was measured, as JSON lines, a Markdown page and pictures."""

import collections
import json
import math
import pathlib


def geometric_mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def number(value):
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def seconds_text(seconds):
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def read(path):
    """(head, rows) of a results file."""
    try:
        lines = [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench: {path}: {error}") from error
    if not lines or lines[0].get("kind") != "head":
        raise SystemExit(f"bench: {path} is not a results file: its first line should be the head")
    return lines[0], [line for line in lines if line["kind"] == "case"]


def read_runs(paths):
    """(head of the first, with the heads of all as "runs"; rows of all, each with the number of its run).

    A case that a later run has again is that run's.
    """
    found = [read(path) for path in paths]
    rows = {}
    for number, (_, of_run) in enumerate(found):
        for row in of_run:
            rows[row["case"], row["threads"]] = row | {"run": number}
    return found[0][0] | {"runs": [head for head, _ in found]}, list(rows.values())


def share_of_peak(head, row, one):
    """(text, limit) of what bounds the case: bytes for decode, else the arithmetic of its type."""
    run = head["runs"][row["run"]] if "runs" in head else head
    peaks = run["peaks"][str(row["threads"])]
    if row["work"] == "decode":
        return one["gb_per_s"] / peaks["read_gb_per_s"], "read"
    if row["dtype"] == "bf16" and peaks["bf16_gflops"]:
        return one["gflops"] / peaks["bf16_gflops"], peaks["bf16_set"]
    return (one["gflops"] / peaks["fma_gflops"], "FMA") if peaks["fma_gflops"] else (float("nan"), "FMA")


def cell(row, one):
    if row["work"] == "decode" or row["case"].startswith("six-tokens"):
        return seconds_text(one["seconds"])
    return number(one["gflops"])


def table(head, rows, names):
    yield "| case | " + " | ".join(names) + " | qkv ÷ best peer | qkv's share of peak |"
    yield "|---|" + "---|" * (len(names) + 2)
    for row in rows:
        results = row["results"]
        cells = [cell(row, results[name]) if name in results else "–" for name in names]
        speedups = [one["qkv_speedup"] for one in results.values() if "qkv_speedup" in one]
        ratio = f"{min(speedups):.2f} ×" if speedups else "–"
        share = "–"
        if "qkv" in results and not row["case"].startswith("six-tokens"):
            value, limit = share_of_peak(head, row, results["qkv"])
            share = f"{100 * value:.0f} % {limit}"
        work = " (forward + backward)" if row["work"] == "backward" else " (decode)" if row["work"] == "decode" else ""
        yield f"| {row['shape']} {row['dtype']}{work} | " + " | ".join(cells) + f" | {ratio} | {share} |"


def markdown(head, rows):
    names = [name for name in head["contenders"] if any(name in row["results"] for row in rows)]
    lines = ["# Benchmarks", "",
             "Made by `./dev bench`; do not edit. All contenders of a case ran in the same process in turns, each after its result "
             "was checked against float64. Numbers are GFLOP/s of useful work (what a mask removes is not counted), "
             "medians; decode and six tokens are times. Ratios are medians over rounds of the two times of one round: "
             "above 1, qkv is faster. A contender that takes more than three times the fastest's time has two turns.", "",
             f"Machine: {head['machine']}. {head['date']}, {head['revision']}"
             + (", and of what later commits changed, again." if len({run["revision"] for run in head.get("runs", [])}) > 1
                else "."), "",
             "| contender | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in head["contenders"].items()]
    lines += [f"| {name} | not measured: {reason} |" for name, reason in head["missing"].items()]
    runs = head.get("runs", [head])
    for number, (threads, peaks) in ((number, item) for number, run in enumerate(runs) for item in run["peaks"].items()):
        which = "this run" if len(runs) == 1 else (
            f"run {number + 1} of {len(runs)} ({runs[number]['date']}, {runs[number]['revision']}, "
            f"{sum(row['run'] == number for row in rows)} cases)")
        lines += ["", f"Peaks measured in {which}, {threads} thread{'s' if threads != '1' else ''}: "
                  f"{peaks['fma_gflops']:.0f} GFLOP/s of float32 multiply-adds ({peaks['fma_set']}), "
                  + (f"{peaks['bf16_gflops']:.0f} GFLOP/s of bf16 products ({peaks['bf16_set']}), " if peaks["bf16_gflops"] else "")
                  + f"{peaks['read_gb_per_s']:.1f} GB/s read, {peaks['sgemm_gflops']:.0f} GFLOP/s sgemm (torch)."]
    groups = collections.OrderedDict()
    for row in rows:
        groups.setdefault((row["group"], row["threads"]), []).append(row)
    for (group, threads), members in groups.items():
        lines += ["", f"## {group}, {threads} thread{'s' if threads != 1 else ''}", ""]
        lines += table(head, members, names)
    best = [min(one["qkv_speedup"] for one in row["results"].values() if "qkv_speedup" in one)
            for row in rows if len(row["results"]) > 1 and "qkv" in row["results"]]
    against_torch = [row["results"]["torch"]["qkv_speedup"] for row in rows
                     if "qkv_speedup" in row["results"].get("torch", {})]
    lines += ["", "## In one number", "",
              f"Against the best peer of each case, geometric mean over {len(best)} cases: "
              f"{geometric_mean(best):.2f} ×; slower than it in {sum(value < 1 for value in best)}."]
    if against_torch:
        lines += [f"Against torch, {len(against_torch)} cases: {geometric_mean(against_torch):.2f} ×.", ""]
        for work, title in (("forward", "forward"), ("backward", "forward + backward"), ("decode", "decode")):
            for dtype in ("f32", "bf16", "f16"):
                ratios = [row["results"]["torch"]["qkv_speedup"] for row in rows
                          if row["work"] == work and row["dtype"] == dtype
                          and "qkv_speedup" in row["results"].get("torch", {})]
                if ratios:
                    lines += [f"- {title}, {dtype}, {len(ratios)} cases: {geometric_mean(ratios):.2f} × torch"]
    wrong = [(row["case"], name, reason) for row in rows for name, reason in row["skipped"].items()
             if reason.startswith("wrong")]
    if wrong:
        lines += ["", "Results that were not timed because they were not right: "
                  + "; ".join(f"{name} in {case} ({reason})" for case, name, reason in wrong) + "."]
    return "\n".join(lines) + "\n"


def pictures(head, rows, folder):
    """Time against length, and the roofline; light background, one colour a contender."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "qkv"  # the same picture has the same bytes
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    names = list(head["contenders"])
    colours = dict(zip(names, ("#c1272d", "#0000a7", "#008176", "#b3b300", "#eecc16", "#7b3294", "#666666")))
    lengths = [row for row in rows if row["case"].startswith("length-")]
    made = []
    for dtype in sorted({row["dtype"] for row in lengths}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for name in names:
            points = sorted((row["queries"], row["results"][name]["seconds"] / row["heads"]) for row in lengths
                            if row["dtype"] == dtype and name in row["results"])
            if points:
                axes.loglog(*zip(*points), marker="o", label=name, color=colours.get(name))
        axes.set(xlabel="tokens", ylabel="seconds per head", title=f"Causal attention, head_dim 64, {dtype}")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
        made.append(folder / f"time-against-length-{dtype}.svg")
        figure.savefig(made[-1], bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    threads = str(max(row["threads"] for row in rows))
    peaks = head["peaks"][threads]
    intensities = [2.0**power for power in range(-2, 13)]
    for limit, label in ((peaks["fma_gflops"], "FMA"), (peaks["bf16_gflops"], peaks["bf16_set"])):
        if limit:
            axes.loglog(intensities, [min(limit, x * peaks["read_gb_per_s"]) for x in intensities], color="black",
                        linewidth=0.8)
            axes.annotate(label, (intensities[-1], limit), ha="right", va="bottom")
    for name in names:
        points = [(row["flops"] / row["bytes"], row["results"][name]["gflops"]) for row in rows
                  if name in row["results"] and str(row["threads"]) == threads]
        if points:
            axes.scatter(*zip(*points), s=12, label=name, color=colours.get(name))
    axes.set(xlabel="useful operations per byte of inputs and output", ylabel="GFLOP/s", title="Roofline")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    made.append(folder / "roofline.svg")
    figure.savefig(made[-1], bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return made
