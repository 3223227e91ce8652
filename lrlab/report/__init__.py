"""A run as one HTML page that needs nothing else: pictures inside, no request, light and dark."""

import dataclasses
import html
import json
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from lrlab import plots, records
from lrlab.console import count, duration, event_line, loss, percent, rate
from lrlab.records import Record

OPEN_EPOCHS = 20  # rows of a table that is shown at once; a longer one is folded
MOST_EVENTS = 60
CAPTIONS = {
    "loss": "Faint: each update. Circles: its mean over an epoch, drawn at the epoch's middle. "
    "Squares: validation, at the end of the epoch.",
    "accuracy": "Training is measured while weights change, validation at the end of the epoch.",
    "lr": "The rate that each update used.",
    "batch_size": "Examples that each update averaged over.",
    "scheduled_effective_lr": "The rate that the update rule found by itself.",
    "speed": "Training alone, without evaluation; the first epoch is often slower.",
}


def write(folder: Path) -> Path:
    """Writes plots/ and report.html of a run folder, finished or not; returns the report's path."""
    record = records.read(folder)
    page = render(record, plots.save_all(record))
    path = Path(folder) / "report.html"
    records.write_text(path, page)
    return path


def render(record: Record, svgs: Mapping[str, str]) -> str:
    """The page: a function of the record and the figures of `plots.save_all`."""
    c = plots.curves(record)
    state = "finished" if record.final else "unfinished" if c.diverged is None else "diverged"
    captions = {name: _caption(name) for name in svgs if name != "overview"}
    sections = {
        **_ensemble(record),
        "Curves": figures(svgs, captions),
        "Schedule": _schedule(record, c),
        "Epochs": _epochs(record, c),
        "What happened": _events(record),
    }
    return page(record, state, _verdict(record, state), _cards(record, c), sections)


def page(record: Record, state: str, verdict: str, cards: str, sections: Mapping[str, str]) -> str:
    """A page of sections, by title, with what every page ends with; all but titles is HTML."""
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    shown = {**sections, "How to reproduce": _reproduce(record, state)}
    body = "".join(f"<h2>{_escape(title)}</h2>\n{part}\n" for title, part in shown.items())
    ends = {
        "Config": pairs(_flat(_config(record))),
        "Environment": pairs(_flat(record.environment)),
    }
    two = "".join(f"<section>\n<h2>{t}</h2>\n{p}\n</section>\n" for t, p in ends.items())
    return template.substitute(
        name=_escape(record.folder.resolve().name),
        state=state,
        light=_variables(plots.LIGHT),
        dark=_variables(plots.DARK),
        origin=_origin(record),
        verdict=verdict,
        cards=cards,
        body=f'{body}\n<div class="two">\n{two}</div>',
        footer=_footer(record),
    )


def figures(svgs: Mapping[str, str], captions: Mapping[str, str]) -> str:
    """Figures with captions, which are HTML."""
    parts = [
        f"<figure>{_inline(svgs[name], name)}<figcaption>{caption}</figcaption></figure>"
        for name, caption in captions.items()
        if name in svgs
    ]
    return f'<div class="plots">{"".join(parts)}</div>'


def _caption(figure: str) -> str:
    name = figure.removeprefix("scheduled_")
    return CAPTIONS.get(figure) or f"What each update used for {_escape(name)}."


def _escape(value: Any) -> str:
    """Text for HTML: nothing that a run holds can become a tag or leave an attribute."""
    return html.escape(str(value), quote=True)


def _plain(value: Any) -> str:
    """A value of a config or an environment as people write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(_plain, value))
    return json.dumps(value, ensure_ascii=False)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings, and lists that hold mappings, as one mapping with dotted keys."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = enumerate(value)
    elif key:
        return {key: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= _flat(inner, f"{key}.{name}" if key else str(name))
    return flat or ({key: value} if key else {})


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "", best: int | None = None
) -> str:
    """A table in a box that scrolls; every cell is escaped, the first of a row names it."""
    columns = "".join(f'<th scope="col">{_escape(name)}</th>' for name in head)
    lines = []
    for i, (first, *rest) in enumerate(rows):
        cells = "".join(f"<td>{_escape(cell)}</td>" for cell in rest)
        mark = ' class="best"' if i == best else ""
        lines.append(f'<tr{mark}><th scope="row">{_escape(first)}</th>{cells}</tr>')
    header = f"<thead><tr>{columns}</tr></thead>" if head else ""
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="box" tabindex="0"><table class="{kind}">{header}{body}</table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return table((), ((key, _plain(value)) for key, value in sorted(values.items())), "pairs")


def _config(record: Record) -> dict[str, Any]:
    return record.config.get("config", {})


def _variables(theme: plots.Theme) -> str:
    return " ".join(f"--{role}: {color};" for role, color in dataclasses.asdict(theme).items())


def _inline(svg: str, name: str) -> str:
    """A matplotlib SVG as a part of the page, in the page's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S
    )
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box, "matplotlib writes a viewBox"
    label = _escape(f"{name.replace('_', ' ')} over the run")
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{label}">', svg, count=1)
    svg = re.sub(r'\b(xlink:)?(id|href)="(#?)', rf'\2="\g<3>{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = svg.replace(plots.FONTS, "var(--sans)")
    for role, color in dataclasses.asdict(plots.LIGHT).items():
        svg = svg.replace(color, f"var(--{role})")
    return re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)


def _device(record: Record) -> str:
    kind = record.environment.get("device_kind")
    devices = record.environment.get("devices")
    many = len(devices) if isinstance(devices, list) and len(devices) > 1 else 0
    return f"{many} × {kind}" if many and kind else str(kind or "an unknown device")


def _origin(record: Record) -> str:
    parts = [f"lrlab {record.config.get('lrlab', '?')}"]
    if source := record.config.get("source"):
        parts.append(f"config {source}")
    if started := record.environment.get("started"):
        parts.append(f"begun {started.replace('T', ' ')}")
    return _escape(" · ".join(parts))


def _epochs_planned(record: Record) -> str:
    planned = _config(record).get("epochs")
    return count(planned) if isinstance(planned, int | float) else "?"


def _best(record: Record) -> dict[str, Any] | None:
    """The best epoch's numbers: the final row's where there is one, else the best row so far."""
    if record.final and record.final.get("best_epoch") is not None:
        keys = "epoch", "step", "val_loss", "val_accuracy"
        return {key: record.final.get(f"best_{key}") for key in keys}
    return records.best(record.rows)


def _seconds(record: Record) -> float | None:
    rows = [record.final] if record.final else record.rows
    return rows[-1].get("seconds") if rows else None


def _verdict(record: Record, state: str) -> str:
    """What came of it, in a sentence or two."""
    best, final, parts = _best(record), record.final, []
    planned = _epochs_planned(record)
    if state == "diverged":
        end = next(row for row in reversed(record.happened) if row["event"] == "diverged")
        parts.append(
            f"Diverged in epoch {end.get('epoch', '?')} of {planned}, at update "
            f"{count(end['step'])} and learning rate {rate(end.get('lr'))}: "
            "loss or gradient was not finite."
        )
    elif state == "unfinished":
        done = f"epoch {record.rows[-1]['epoch']} of" if record.rows else "no epoch of"
        parts.append(f"Unfinished: {done} {planned} is done.")
    numbers = []
    if best:
        so_far = "" if final else " so far"
        accuracy = f"<b>{percent(best['val_accuracy'])}</b>"
        numbers.append(
            f"best validation accuracy{so_far} {accuracy} at epoch {_escape(best['epoch'])}"
        )
    if final:
        numbers.append(f"final test accuracy <b>{percent(final.get('test_accuracy'))}</b>")
    if (seconds := _seconds(record)) is not None:
        numbers.append(f"trained for <b>{duration(seconds)}</b> on {_escape(_device(record))}")
    sentence = "; ".join(numbers)
    return " ".join(
        [*map(_escape, parts), f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""]
    )


def _cards(record: Record, c: plots.Curves) -> str:
    """Key numbers: (name, value, note)."""
    final, best, env = record.final or {}, _best(record), record.environment
    cards: list[tuple[str, str, str]] = []
    if final:
        note = f"loss {loss(final.get('test_loss'))}, after the last epoch"
        cards.append(("Test accuracy", percent(final.get("test_accuracy")), note))
    if best:
        note = f"loss {loss(best['val_loss'])}, epoch {best['epoch']}"
        cards.append(("Best validation", percent(best["val_accuracy"]), note))
    if (seconds := _seconds(record)) is not None:
        speeds = [r["examples_per_second"] for r in record.rows if r.get("examples_per_second")]
        note = f"{count(statistics.median(speeds))} examples a second" if speeds else ""
        cards.append(("Time", duration(seconds), note))
    if len(c.update):
        done = record.rows[-1]["epoch"] if record.rows else 0
        note = f"{done} of {_epochs_planned(record)} epochs"
        cards.append(("Updates", count(c.update[-1] + 1), note))
    if model := env.get("model"):
        cards.append(("Parameters", count(model.get("parameters")), str(model.get("name", ""))))
    if data := env.get("data"):
        sizes = data.get("sizes") or [None]
        cards.append(("Training examples", count(sizes[0]), str(data.get("name", ""))))
    return card_list(cards)


def card_list(cards: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers: (name, value, note)."""
    return "".join(
        f'<div><dt>{_escape(name)}</dt><dd class="value">{_escape(value)}</dd>'
        f'<dd class="note">{_escape(note)}</dd></div>'
        for name, value, note in cards
    )


def _schedule(record: Record, c: plots.Curves) -> str:
    config, parts = _config(record), []
    if isinstance(config.get("lr"), int | float):
        parts.append(
            f"An update's rate is {rate(config['lr'])} × batch regime × shape of its phase."
        )
    if len(c.lr) and (c.lr == c.lr[0]).all():
        parts.append(f"It was {rate(c.lr[0])} in all {count(len(c.lr))} updates.")
    elif len(c.lr):
        top = int(c.lr.argmax())
        where = f"update {count(c.update[top] + 1)} of {count(c.update[-1] + 1)}"
        parts.append(
            f"It began at {rate(c.lr[0])}, was largest, {rate(c.lr[top])}, in {where}, "
            f"and ended at {rate(c.lr[-1])}."
        )
    if config.get("lr_multipliers"):
        parts.append("Layers with a multiplier of their own used that much of it.")
    text = f"<p>{_escape(' '.join(parts))}</p>" if parts else ""
    phases = [p for p in config.get("schedule") or [] if isinstance(p, dict)]
    if not phases:
        return text + "<p class='soft'>No phases: the rate is constant.</p>"
    keys = list(dict.fromkeys(["start", "end", *(key for phase in phases for key in phase)]))
    keys = [key for key in keys if key != "name" and any(key in phase for phase in phases)]
    rows = [
        [i, phase.get("name", ""), *(_plain(phase[k]) if k in phase else "" for k in keys)]
        for i, phase in enumerate(phases, 1)
    ]
    return text + table(("phase", "shape", *keys), rows)


def _epochs(record: Record, c: plots.Curves) -> str:
    columns = {
        "epoch": ("epoch", count),
        "updates": ("step", count),
        "rate": ("lr", rate),
        "batch": ("batch_size", count),
        "train loss": ("train_loss", loss),
        "val loss": ("val_loss", loss),
        "train acc": ("train_accuracy", percent),
        "val acc": ("val_accuracy", percent),
        "time": ("seconds", duration),
        "examples/s": ("examples_per_second", count),
    }
    rows = [[write(row.get(key)) for key, write in columns.values()] for row in record.rows]
    if not rows:
        return "<p class='soft'>No epoch is done yet.</p>"
    shown = table(list(columns), rows, "numbers", c.best)
    if len(rows) <= OPEN_EPOCHS:
        return shown
    return f"<details><summary>All {count(len(rows))} epochs</summary>{shown}</details>"


def _ensemble(record: Record) -> dict[str, str]:
    """What the snapshots of a run predict together, where the job "snapshot" compared them."""
    found = records.read_json(record.folder / "ensemble.json")
    if not found:
        return {}
    figure = plots.save(plots.ensemble(found), record.folder / "plots" / "ensemble")
    last, moving = found["snapshots"][-1], found.get("moving")
    rows = [
        ("the last snapshot", last),
        *((f"the last {s['members']} together", s) for s in found["together"][1:]),
        *((f"mean weights of the last {s['members']}", s) for s in found["averaged"]),
    ]
    if moving:
        rows.append((f"moving average, decay {moving['decay']:g}", moving))
    cells = [
        (name, percent(s["accuracy"]), f"{s['nll']:.4f}", f"{s['ece']:.4f}") for name, s in rows
    ]
    pairs = [x for i, row in enumerate(found["disagreement"]) for x in row[:i]]
    text = (
        f"<p>{len(found['snapshots'])} snapshots, after epochs "
        f"{', '.join(map(str, found['epochs']))}, on {count(found['examples'])} test examples; two "
        f"of them disagree on {percent(sum(pairs) / len(pairs))}.</p>"
    )
    caption = (
        "1 is the last snapshot, 2 the last two, and so on. Rhombs: each snapshot alone, the last "
        "one at 1, the one before at 2."
    )
    head = ("predictions of", "accuracy", "NLL (nats)", "ECE")
    note = (
        '<p class="soft small">NLL: negative log likelihood. ECE: expected calibration error, '
        "of 15 bins of confidence.</p>"
    )
    both = figures({"ensemble": figure}, {"ensemble": caption})
    both += f"<div>{table(head, cells)}{note}</div>"
    return {"Snapshots together": f'{text}<div class="two">{both}</div>'}


def _events(record: Record) -> str:
    """Starts and stops with their times, and what went wrong in between, by update."""
    rows = []
    for event in record.events:
        rest = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
        when = str(event.get("time", "")).replace("T", " ")
        details = ", ".join(f"{k}: {_plain(v)}" for k, v in rest.items())
        rows.append((event.get("step", 0), event["event"], when, details))
    rows += [(row.get("step", 0), row["event"], "", event_line(row)) for row in record.happened]
    if not rows:
        return "<p class='soft'>Nothing is recorded.</p>"
    rank = {"start": 0, "stop": 2, "resume": 2, "end": 2}  # of what came at the same update
    rows.sort(key=lambda row: (row[0], rank.get(row[1], 1)))
    shown = [(count(step), *rest) for step, *rest in rows]
    if (more := len(shown) - MOST_EVENTS) > 0:
        half = MOST_EVENTS // 2
        shown[half:-half] = [("…", f"{count(more)} more", "", "in metrics.jsonl and events.jsonl")]
    return table(("update", "event", "time", "details"), shown)


def _reproduce(record: Record, state: str) -> str:
    env = record.environment
    command = str(record.config.get("command", ""))
    variables = [
        f"{key.upper()}={shlex.quote(str(env[key]))} "
        for key in ("jax_platforms", "xla_flags")
        if env.get(key)
    ]
    lines = [f"git checkout {shlex.quote(str(env['git_commit']))}"] if env.get("git_commit") else []
    lines.append("".join(variables) + command)
    packages = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections"
    pins = " ".join(shlex.quote(f"{name}=={env[name]}") for name in packages if env.get(name))
    notes = []
    if env.get("git_dirty"):
        notes.append(
            "The checkout had changes that no commit holds, so the commit alone may differ."
        )
    if state == "unfinished":
        notes.append("Where its folder is, the same command goes on from the last checkpoint.")
    text = f"<p>{_escape(' '.join(notes))}</p>" if notes else ""
    blocks = f'<pre class="box">{_escape(chr(10).join(lines))}</pre>'
    if pins:
        python = f"Python {env.get('python', '?')} with these versions gives the same numbers:"
        blocks += f'<p>{_escape(python)}</p><pre class="box">{_escape(f"pip install {pins}")}</pre>'
    return text + blocks


def _footer(record: Record) -> str:
    stored = record.config.get("hash", "unknown")
    return _escape(
        f"Made by lrlab from the records in the run's folder; config hash {stored}. "
        "Figures are in plots/ as PNG and SVG, numbers in the files beside this page."
    )
