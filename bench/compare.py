"""Before and after: two results files, and whether what differs is more than noise."""

import statistics

import report


def spread(values):
    """Half the distance between the quartiles, relative to the median."""
    if len(values) < 4:
        return float("inf")
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)


def compare(before_path, after_path):
    """Lines of text. A case has changed where qkv's time against the peers of its own run has moved by more than three
    spreads of both runs: machines are shared, and only what was timed side by side can be set against each other."""
    before_head, before = report.read(before_path)
    after_head, after = report.read(after_path)
    yield f"before {before_head['revision']} ({before_head['date']}), after {after_head['revision']} ({after_head['date']})"
    if before_head["machine"] != after_head["machine"]:
        yield f"different machines: {before_head['machine']}; {after_head['machine']}"
    old = {(row["case"], row["threads"]): row for row in before}
    yield f"{'case':32} {'threads':>7} {'against':>14} {'before':>8} {'after':>8} {'change':>8}  "
    for row in after:
        key = row["case"], row["threads"]
        if key not in old:
            continue
        for name, times in row["times"].items():
            if name == "qkv" or "qkv" not in row["times"] or not {name, "qkv"} <= old[key]["times"].keys():
                continue
            ratios = [[theirs / ours for theirs, ours in zip(one["times"][name], one["times"]["qkv"])]
                      for one in (old[key], row)]
            was, now = map(statistics.median, ratios)
            noise = 3 * (spread(ratios[0]) + spread(ratios[1]))
            verdict = "" if abs(now / was - 1) <= noise else "faster" if now > was else "SLOWER"
            yield f"{key[0]:32} {key[1]:7} {name:>14} {was:8.2f} {now:8.2f} {100 * (now / was - 1):+7.1f}%  {verdict}"
