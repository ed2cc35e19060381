"""The chart to explore: every model with what it is and costs, as Vega-Lite for the page and for notebook 7.

Vega-Lite, as a plain dictionary that the page's script changes. vl-convert gives all of its JavaScript, 0.9 MB, as one
string; Plotly's is 4.8 MB, and not a text that one can change field by field. Altair would only build the dictionary.
"""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes

from combination.recommendation import candidates, pareto_front
from experiment.behaviour import with_behaviour
from experiment.store import Store
from plots.style import FAILED, figure_of, method_names, method_style
from report.published import published_study
from report.tables import percent

VERSION = "5"  # of Vega-Lite: the newest that JupyterLab draws
DRAG = "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!"
INK = "#777777"  # of what belongs to no method; the page's script replaces it and black by a theme's colours
Spec = dict[str, Any]


@dataclass(frozen=True)
class Quantity:
    """Something to draw along an axis: a column, in `unit`, of which more or less is better.

    `by`: the column that decides what is better, on validation images if `column` is on test images.
    """

    column: str
    title: str
    unit: float
    more: bool = False
    by: str = ""

    @property
    def decided_by(self) -> str:
        return self.by or self.column


QUANTITIES = (
    Quantity("accuracy", "test accuracy (%)", 0.01, True, "validation_accuracy"),
    Quantity("validation_accuracy", "validation accuracy (%)", 0.01, True),
    Quantity("robustness", "accuracy on corrupted test images (%)", 0.01, True, "validation_robustness"),
    Quantity(
        "worst_class_accuracy", "test accuracy of the worst class (%)", 0.01, True, "validation_worst_class_accuracy"
    ),
    Quantity("archive_bytes", "archive (KB)", 1e3),
    Quantity("onnx_bytes", "ONNX file (KB)", 1e3),
    Quantity("latency_ms.batch1_one_thread.median", "latency at batch 1 on one thread (ms)", 1.0),
    Quantity("macs", "multiply-accumulates per image (millions)", 1e6),
    Quantity("nonzero_parameters", "weights that are not zero (thousands)", 1e3),
)
# What is said of a model when it is pointed at: words, and the field of `models`.
FACTS = {
    "model": "words",
    "test accuracy": "accuracy_text",
    "seeds": "seeds_text",
    "archive": "archive_text",
    "ONNX file": "file_text",
    "latency": "latency_text",
}
IF_MEASURED = {
    "accuracy on corrupted images": "robustness_text",
    "accuracy of the worst class": "worst_class_accuracy_text",
}
# Shapes of Vega for the markers of matplotlib in `plots.style`.
SHAPES = {
    "o": "circle", "s": "square", "D": "diamond", "P": "cross",
    "^": "triangle-up", "v": "triangle-down", "<": "triangle-left", ">": "triangle-right",
    "X": "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.25,-.3L1,-.3L.4,.15L.6,.9L0,.45L-.6,.9L-.4,.15L-1,-.3L-.25,-.3Z",
}  # fmt: skip


def models(records: pd.DataFrame, dataset: str) -> list[dict]:
    """Return one row per recipe, as JSON values: the figures of `candidates`, words for readers, and names of files.

    `ids` are the records of its seeds, the one that is best on validation first; `archive` says whether the first
    one's archive is among the results, so that a reader can take it.
    """
    table = candidates(with_behaviour(records, dataset))
    seeds = records.sort_values("seed").groupby("label")
    spread = 100 * seeds["accuracy"].std()
    kept = [own.column for own in QUANTITIES] + [own.decided_by for own in QUANTITIES]
    columns = [column for column in dict.fromkeys(kept) if column in table]
    rows = []
    for row in table.to_dict("records"):
        ids = sorted(seeds["id"].get_group(row["label"]), key=lambda own: own != row["id"])
        figures = {column: None if pd.isna(row[column]) else row[column] for column in columns}
        rows.append(figures | _words(row, ids, spread[row["label"]]) | {
            "id": row["id"],
            "ids": ids,
            "recipe": row["label"],
            "method": method_style(row["kinds"])[0],
            "archive": Store(dataset, row["id"]).committed_archive.exists(),
            "low": 100 * row["accuracy_low"],
            "high": 100 * row["accuracy_high"],
        })  # fmt: skip
    return rows


def _words(row: Mapping, ids: Sequence[str], spread: float) -> dict[str, str]:
    latency = row["latency_ms.batch1_one_thread.median"]
    size, file, whole = row["archive_bytes"], row["onnx_bytes"], row["base_onnx_bytes"]
    return {
        "words": row["words"],
        "accuracy_text": percent(row),
        "seeds_text": "one" if len(ids) == 1 else f"mean of {len(ids)}, standard deviation {spread:.2f} points",
        "archive_text": f"{size / 1e3:,.1f} KB, {whole / size:,.0f}x smaller than its FP32 base",
        "file_text": f"{file / 1e3:,.1f} KB",
        "latency_text": f"{latency:.3f} ms, {row['latency_ms.batch1_one_thread.speedup']:.2f}x as fast as its base",
        **{
            f"{name}_text": f"{100 * row[name]:.2f} %"
            for name in ("robustness", "worst_class_accuracy")
            if not pd.isna(row.get(name))
        },
    }


def published() -> list[dict]:
    """Return the published study's models of known size, as rows like those of `models`; it counts no archives."""
    rows = published_study().dropna(subset="size_mb").to_dict("records")
    return [
        {
            "words": row["label"],
            "accuracy": row["accuracy"] / 100,
            "accuracy_text": f"{row['accuracy']:.2f} %, as reported",
            "archive_bytes": 1e6 * row["size_mb"],
            "onnx_bytes": 1e6 * row["size_mb"],
            "nonzero_parameters": None if pd.isna(row["parameters_k"]) else 1e3 * row["parameters_k"],
            "archive_text": f"{1000 * row['size_mb']:,.0f} KB, as reported",
        }
        for row in rows
    ]


def quantities(rows: Iterable[Mapping]) -> list[dict]:
    """Return those of `QUANTITIES` that any of the rows has, as JSON values."""
    have = {key for row in rows for key, value in row.items() if value is not None}
    return [asdict(own) | {"by": own.decided_by} for own in QUANTITIES if {own.column, own.decided_by} <= have]


def methods(kinds: Iterable[str]) -> list[dict]:
    """Return name, colour and shape of the methods of these letters, in the order of a legend."""
    styles = {method_style(letters) for letters in kinds}
    order = method_names()
    return [
        {"name": name, "colour": colour, "shape": SHAPES[marker]}
        for name, colour, marker in sorted(styles, key=lambda style: order.index(style[0]))
    ]


def chart(rows: Sequence[Mapping], reported: Sequence[Mapping], styles: Sequence[Mapping]) -> Spec:
    """Return the chart of rows that have `x`, `y`, whether they are on the `front`, and whether they are in the `ring`.

    `low` and `high` bound the interval of `y`, if it has one. A mark that is `below` the chart stands pale at its edge.
    `reported` are rows of the published study. The page's script fills all of these in for the axes and the budget
    that a reader chooses.
    """
    place = {name: {"field": name, "type": "quantitative", "scale": {"zero": False}} for name in ("x", "y")}
    names = [own["name"] for own in styles]
    colour, shape = (
        {"field": "method", "scale": {"domain": names, "range": [own[what] for own in styles]}, "title": None}
        for what in ("colour", "shape")
    )
    facts = [{"field": field, "title": title} for title, field in FACTS.items()]
    zoom = {"type": "interval", "zoom": "wheel![event.ctrlKey]", "translate": DRAG}
    return {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VERSION}.json",
        "width": 620,
        "height": 400,
        "data": {"name": "models", "values": list(rows)},
        "encoding": {"x": place["x"], "y": place["y"]},
        "layer": [
            {
                "name": "front",
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "color": INK, "strokeWidth": 1.2, "clip": True, "aria": False},
            },
            {
                "name": "intervals",
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "clip": True, "opacity": 0.55, "aria": False},
                "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "name": "reported",
                "data": {"name": "reported", "values": list(reported)},
                "mark": {"type": "point", "size": 60, "color": INK, "filled": False, "clip": True},
                "encoding": {"tooltip": [*facts[:2], facts[3]], "description": {"field": "words"}},
            },
            {
                "name": "marks",
                "params": [{"name": "zoom", "select": zoom, "bind": "scales"}],
                "mark": {"type": "point", "size": 65, "filled": True, "clip": True},
                "encoding": {
                    "color": colour,
                    "shape": shape,
                    "opacity": {"condition": {"test": "datum.below", "value": 0.4}, "value": 0.9},
                    "tooltip": facts,
                    "description": {"field": "words"},
                },
            },
            {
                "name": "ring",
                "transform": [{"filter": "datum.ring"}],
                "mark": {
                    "type": "point",
                    "shape": "circle",
                    "size": 420,
                    "strokeWidth": 2,
                    "color": INK,
                    "aria": False,
                },
            },
        ],
    }


def show(records: pd.DataFrame, column: str, dataset: str, picture: Axes) -> None:
    """Display, in a notebook, the chart of test accuracy against `column`; `picture` where Vega-Lite is not drawn.

    The picture is the same chart by `plots.pareto.pareto_chart`; GitHub, for one, shows that.
    """
    rows = models(records, dataset)
    across = next(own for own in QUANTITIES if own.column == column)
    front = pareto_front(pd.DataFrame(rows), (column,))
    floor = 100 * (max(row["accuracy"] for row in rows) - FAILED)
    drawn = [
        {name: row[name] for name in ("method", *FACTS.values())}
        | {"x": row[column] / across.unit, "y": max(100 * row["accuracy"], floor), "front": on_front}
        | {"below": 100 * row["accuracy"] < floor}
        | {name: max(row[name], floor) for name in ("low", "high")}
        for row, on_front in zip(rows, front.tolist(), strict=True)
    ]
    reported = published() if dataset == "cifar10" else []
    beside = [
        {name: row[name] for name in ("words", "accuracy_text", "archive_text")}
        | {"x": row[column] / across.unit, "y": 100 * row["accuracy"]}
        for row in reported
        if row.get(column)
    ]
    spec = chart(drawn, beside, methods(records["kinds"].unique()))
    spec["encoding"]["x"] |= {"title": across.title, "scale": {"type": "log", "nice": False, "padding": 14}}
    spec["encoding"]["y"] |= {"title": "test accuracy (%), 95 % interval"}
    image = io.BytesIO()
    figure_of(picture).savefig(image, format="png")
    plt.close(figure_of(picture))
    words = f"test accuracy against {across.title} of {len(rows)} models"
    drawing = {f"application/vnd.vegalite.v{VERSION}+json": spec, "image/png": b64encode(image.getvalue()).decode()}
    display(drawing | {"text/plain": words}, raw=True)
