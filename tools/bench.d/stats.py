"""stats: figures, their medians and spreads, and what got slower.

A figure has one value per round. Its ratio is taken round by round to the base of its row (the raw
directory, or the bare calls), which was measured in the same round: what the machine did meanwhile
is in both.

The spread is the distance between the quartiles, and with fewer than five values that between the
least and the greatest. It gives the standard deviation of one round; where that is less than usual
for figures of its group, place and unit (their median), the usual one counts: few rounds agree by
chance. The noise of a comparison is three standard errors of the difference of both medians, of the
ratios where there are any, else of the values. A figure got worse when it moved in the bad
direction by more than the noise, and by more than `tolerance`. What was measured once counts from
25 %.
"""
import math
import statistics

FEW = 5
ONCE = 0.25  # tolerance for what was measured once
MORE, LESS, NEITHER = "more", "less", "-"  # what is better; NEITHER is never compared


class Figure:
    def __init__(self, group, place, what, target, unit, better):
        self.group, self.place, self.what, self.target = group, place, what, target
        self.unit, self.better = unit, better
        self.values = {}  # of rounds

    def key(self):
        return (self.group, self.place, self.what, self.target, self.unit)


class Figures:
    def __init__(self):
        self.all, self.bases = {}, {}

    def add(self, figure, number, value):
        """A value of round `number`; figure says which (its values are kept here)."""
        self.all.setdefault(figure.key(), figure).values[number] = value

    def base(self, group, target):
        """The target that the others of a group are compared with."""
        self.bases[group] = target

    def summary(self):
        return [self._summary(f) for f in self.all.values()]

    def _summary(self, f):
        row = dict(group=f.group, place=f.place, what=f.what, target=f.target, unit=f.unit,
                   better=f.better, **of(list(f.values.values())))
        base = self.all.get((f.group, f.place, f.what, self.bases.get(f.group), f.unit))
        if base and base is not f:
            ratios = [f.values[n] / base.values[n] for n in f.values if base.values.get(n)]
            if ratios:
                row["ratio"] = dict(to=base.target, **of(ratios))
        return row


def of(values):
    """Median and spread of some values."""
    if len(values) < FEW:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "values": values}


WIDTHS = {2: 1.13, 3: 1.69, 4: 2.06}  # the mean range of so many values, in standard deviations
QUARTILES = 1.35  # their distance, the same
MEDIAN = 1.25  # its standard error, in those of the mean
ERRORS = 3


def _measure(row):
    """What is compared of a row."""
    return row.get("ratio", row)


def deviation(s):
    """The standard deviation of one round, relative to the median."""
    n = len(s["values"])
    if n == 1 or not s["median"]:
        return 0.0
    return (s["high"] - s["low"]) / s["median"] / WIDTHS.get(n, QUARTILES)


def usual(rows):
    """{(group, place, unit): the median of the deviations of such figures}"""
    found = {}
    for row in rows:
        key = (row["group"], row["place"], row["unit"])
        found.setdefault(key, []).append(deviation(_measure(row)))
    return {key: statistics.median(values) for key, values in found.items()}


def worse(old, new, tolerance, least=(0.0, 0.0)):
    """How much a summary got worse (0.2: by 20 %) and the noise, or None when it did not by more
    than that. least: the usual deviations of both runs."""
    a, b = (_measure(old), _measure(new)) if "ratio" in old and "ratio" in new else (old, new)
    if new["better"] == NEITHER or a["median"] <= 0 or b["median"] <= 0:
        return None
    variance = sum(max(deviation(s), floor) ** 2 / len(s["values"])
                   for s, floor in zip((a, b), least))
    noise = max(ERRORS * MEDIAN * math.sqrt(variance), tolerance)
    if min(len(a["values"]), len(b["values"])) == 1:
        noise = max(noise, ONCE)
    factor = a["median"] / b["median"] if new["better"] == MORE else b["median"] / a["median"]
    return (factor - 1.0, noise) if factor - 1.0 > noise else None


def compare(old, new, tolerance):
    """(number of figures that both have, [(old, new, how much worse, noise)]); the base itself is
    the machine's own speed and is left out."""
    def index(rows):
        return {(r["group"], r["place"], r["what"], r["target"], r["unit"]): r for r in rows}
    before, found, common = index(old), [], 0
    bases = {(r["group"], r["ratio"]["to"]) for r in new if "ratio" in r}
    floors = usual(old), usual(new)
    for key, row in index(new).items():
        if key in before and (row["group"], row["target"]) not in bases:
            common += 1
            kind = (row["group"], row["place"], row["unit"])
            how = worse(before[key], row, tolerance, [floor.get(kind, 0.0) for floor in floors])
            if how:
                found.append((before[key], row, *how))
    return common, sorted(found, key=lambda f: -f[2])
