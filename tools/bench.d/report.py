"""report: the tables for people, the JSON file, and the plot."""
import json
import os
import shutil
import subprocess
import tempfile

FORMAT = "diskguard-bench 1"
BEFORE = " before"  # behind the name of a target: of the build of --before
TITLES = {"io": "Guest data (fio, direct=1)", "names": "Names and attributes", "guard": "The guard",
          "many": "Many images", "qemu": "Through QEMU"}


def short(value):
    """Three digits or so."""
    for limit, scale, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return "%.*f" % (1 if abs(value) < 100 * scale else 0, value / scale) + unit
    return "%.0f" % value if abs(value) >= 100 else "%.3g" % value


def spread(s):
    """Half of it, as text; nothing where it was measured once."""
    half = (s["high"] - s["low"]) / 2
    if len(s["values"]) == 1:
        return ""
    return " ±" + ("%.2f" % half if s["median"] < 10 else short(half))


def ratio_text(s):
    value = s["median"]
    return ("%.2f" % value if value < 10 else short(value)) + spread(s)


def value_text(s):
    return short(s["median"]) + spread(s) if s else "-"


def grid(rows):
    """Lines of a table; the first row is its head."""
    widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]

    def line(row):
        cells = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
        return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
    return [line(row) for row in rows]


def ordered(items):
    return list(dict.fromkeys(items))


ORDER = ("walk", "raw", "held qcow2", "held raw", "plain", "reader", "diskguard",
         "bare calls", "bare FUSE")  # then the peers


def targets_of(rows):
    def place(name):
        kind = name.removesuffix(BEFORE)
        return (ORDER.index(kind) if kind in ORDER else len(ORDER), name)
    return sorted(ordered(r["target"] for r in rows), key=place)


def ratio_table(rows):
    """The base with its unit, then the ratios of all others to it."""
    base = next(r["ratio"]["to"] for r in rows if "ratio" in r)
    targets = [t for t in targets_of(rows) if t != base]
    table = [["", base, *targets]]
    for what, unit in ordered((r["what"], r["unit"]) for r in rows):
        cells = {r["target"]: r for r in rows if (r["what"], r["unit"]) == (what, unit)}
        first = cells.get(base)
        line = [what, "%s %s" % (short(first["median"]), unit) if first else "-"]
        ratios = [cells.get(t, {}).get("ratio") for t in targets]
        table.append(line + [ratio_text(r) if r else "-" for r in ratios])
    return table


def value_table(rows):
    targets = targets_of(rows)
    table = [["", *targets]]
    for what, unit in ordered((r["what"], r["unit"]) for r in rows):
        cells = {r["target"]: r for r in rows if (r["what"], r["unit"]) == (what, unit)}
        table.append(["%s, %s" % (what, unit), *(value_text(cells.get(t)) for t in targets)])
    return table


def guard_table(rows):
    """Values, and the ratios to the bare calls or the bare walk."""
    targets = targets_of(rows)
    views = [t for t in targets if any(r["target"] == t and "ratio" in r for r in rows)]
    unit = ordered(r["unit"] for r in rows)
    tail = ", " + unit[0] if len(unit) == 1 else ""  # the same for all: in the head
    table = [["", *(t + tail for t in targets), *("%s, ratio" % t for t in views)]]
    for what, unit in ordered((r["what"], r["unit"]) for r in rows):
        cells = {r["target"]: r for r in rows if (r["what"], r["unit"]) == (what, unit)}
        ratios = [cells.get(t, {}).get("ratio") for t in views]
        table.append([what if tail else "%s, %s" % (what, unit), *(value_text(cells.get(t)) for t in targets),
                      *(ratio_text(r) if r else "-" for r in ratios)])
    return table


def sections(result):
    """(title, table) of all that was measured."""
    for group, place in ordered((r["group"], r["place"]) for r in result["figures"]):
        rows = [r for r in result["figures"] if (r["group"], r["place"]) == (group, place)]
        where = "%s, %s (%s)" % (TITLES[group], place, result["places"].get(place, "?"))
        costs = [r for r in rows if r["unit"] in ("CPU s/GiB", "MiB")]
        speeds = [r for r in rows if r not in costs]
        if group in ("guard", "many"):
            yield where, guard_table(speeds)
        elif any("ratio" in r for r in speeds):
            better = "of time: less is better" if group == "names" else "more is better"
            yield "%s; ratios to raw (%s)" % (where, better), ratio_table(speeds)
        if costs:
            yield where + "; what the daemons used", value_table(costs)


def show(result):
    machine = result["machine"]
    print("diskguard %s, %s; %d cores, Linux %s, %d GiB of memory, load %.1f" %
          (result["version"], result["when"], machine["cores"], machine["kernel"],
           machine["memory_gib"], machine["load"]))
    for note in result["notes"]:
        print("note: " + note)
    for title, table in sections(result):
        print("\n== %s" % title)
        print("\n".join(grid(table)))


def compared(common, found, path):
    print("\n== Compared with %s: %d figures" % (path, common))
    for old, new, how, noise in found:
        a, b = (old["ratio"], new["ratio"]) if "ratio" in old and "ratio" in new else (old, new)
        print("slower by %d %% (noise %d %%): %s, %s, %s, %s: %s, was %s %s" % (
            round(100 * how), round(100 * noise), new["group"], new["place"], new["what"],
            new["target"], short(b["median"]), short(a["median"]),
            new["unit"] if a is old else "x " + new["ratio"]["to"]))
    if not found:
        print("nothing got slower by more than the noise")


def load(path):
    with open(path, encoding="utf-8") as f:
        result = json.load(f)
    if result.get("format") != FORMAT:
        raise ValueError("%s: not a file of bench --json" % path)
    return result


def save(path, result):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


# ---- plot ----

PANEL = 420  # pixels of height


def panels(result):
    """(title, whats, targets, {(what, target): ratio}) where there are ratios."""
    for group, place in ordered((r["group"], r["place"]) for r in result["figures"]):
        rows = [r for r in result["figures"] if (r["group"], r["place"]) == (group, place)
                and "ratio" in r]
        if rows:
            what = "time" if group in ("names", "guard") else "speed"
            title = "%s, %s: %s, ratio to %s" % (TITLES[group], place, what, rows[0]["ratio"]["to"])
            ratios = {(r["what"], r["target"]): r["ratio"] for r in rows}
            yield title, ordered(r["what"] for r in rows), targets_of(rows), ratios


def panel_script(title, whats, targets, ratios):
    lines = ["$data << EOD"]
    for what in whats:
        cells = [ratios.get((what, t)) for t in targets]
        lines.append(" ".join(['"%s"' % what, *("%g %g %g" % (c["median"], c["low"], c["high"])
                                                if c else "NaN NaN NaN" for c in cells)]))
    lines += ["EOD", "set title '%s'" % title.replace("'", "")]
    plots = []
    for i, target in enumerate(targets):
        columns = "%d:%d:%d" % (2 + 3 * i, 3 + 3 * i, 4 + 3 * i) + (":xtic(1)" if i == 0 else "")
        plots.append("$data using %s title '%s'" % (columns, target))
    return lines + ["plot 1 notitle with lines lc 'gray' dt 2, " + ", ".join(plots)]


def plot(result, path):
    """An SVG with one panel for each group and place. The axis is logarithmic: 0.1 and 10 are as
    far from 1."""
    found = list(panels(result))
    if not found:
        return "nothing to plot: no ratios were measured"
    if not shutil.which("gnuplot"):
        return "no plot: gnuplot is not installed (tools/install-deps bench)"
    width = max(900, 60 + 16 * max(len(w) * (len(t) + 1) for _, w, t, _ in found))
    lines = ["set terminal svg size %d,%d dynamic background 'white'" % (width, PANEL * len(found)),
             "set output '%s'" % path.replace("'", "''"),
             "set multiplot layout %d,1" % len(found), "set style data histogram",
             "set style histogram errorbars gap 1 lw 1",
             "set style fill solid 0.8 noborder", "set logscale y", "set grid y",
             "set key outside right noenhanced", "set xtics rotate by -25 noenhanced"]
    for panel in found:
        lines += panel_script(*panel)
    with tempfile.NamedTemporaryFile("w", suffix=".gnuplot", encoding="utf-8") as f:
        f.write("\n".join([*lines, "unset multiplot", ""]))
        f.flush()
        p = subprocess.run(["gnuplot", f.name], stdin=subprocess.DEVNULL, capture_output=True,
                           text=True, check=False, timeout=60)
    if p.returncode or not os.path.exists(path):
        return "no plot: gnuplot: " + p.stderr.strip()[-300:]
    return None
