"""Writes the page of all results: `make report` makes results/report/index.html, one file that needs no network.

Beside it are the notebooks as HTML: with their pictures they take more than the 3 MB that the page may have.
"""

import argparse
import functools
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup
from matplotlib.axes import Axes
from nbconvert import HTMLExporter

from combination.recommendation import BEST, BUDGETS, COSTS, LEAST, candidates
from cuda_kernels import records as kernels
from experiment import load_records
from experiment.records import current_commit
from experiment.store import ROOT, folder_name, results_root
from plots.explore import FACTS, IF_MEASURED, INK, chart, methods, models, published, quantities
from plots.kernels import kernel_bars, roofline, time_over_density
from plots.style import FAILED, figure_of, use_style
from recipe import CompressionError
from report.conclusions import takeaways
from storage import atomic_write

WEB = Path(__file__).with_name("web")
DATASET = "cifar10"  # whose records are committed, and which the notebooks show as committed
START = 0.02  # the budget at first: the smallest model within so much accuracy of the largest network


class PageError(CompressionError):
    """There is nothing to show."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m plots.page", description=__doc__)
    parser.add_argument(
        "--dataset", default=os.environ.get("DATASET", DATASET), help="whose records (default: $DATASET)"
    )
    dataset = parser.parse_args().dataset
    try:
        path = write_page(dataset, sorted((ROOT / "notebooks").glob("[0-9]_*.ipynb")) if dataset == DATASET else [])
    except CompressionError as error:
        parser.error(str(error))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def write_page(dataset: str, notebooks: Sequence[Path] = ()) -> Path:
    """Write the page of a data set's records, and the notebooks as HTML, to results/report; return the page's path.

    Raises:
        PageError: there are no records.
    """
    folder = results_root() / "report"
    text = page(dataset, [path.stem for path in notebooks])
    for path in notebooks:
        _write(folder / f"{path.stem}.html", as_html(path))
    return _write(folder / "index.html", text)


def page(dataset: str, notebooks: Sequence[str] = ()) -> str:
    """Return the page as HTML; `notebooks` are the names of those that are beside it."""
    records = load_records(dataset)
    if records.empty:
        raise PageError(f"no records of {dataset} to show: run `make study DATASET={dataset}` first")
    measured = kernels.load()
    data = embedded(records, dataset)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        dataset=dataset,
        folder=folder_name(dataset),
        rows=sorted(data["models"], key=lambda row: row["archive_bytes"]),
        published=data["published"],
        records=len(records),
        left_out=len(records) - sum(len(row["ids"]) for row in data["models"]),
        machines=sorted(records["hardware.cpu"].unique()),
        takeaways=takeaways(records, measured).reset_index(drop=True).to_dict("records"),
        kernels=[(words, Markup(svg)) for words, svg in kernel_pictures(measured)],
        notebooks=notebooks,
        commit=current_commit(),
        data=Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
        style=_source("page.css"),
        script=_source("page.js"),
        library=library(),
    )


def embedded(records: pd.DataFrame, dataset: str) -> dict[str, Any]:
    """Return what the page's script draws, as JSON values: models, axes, budgets, and the chart to fill in."""
    rows = models(records, dataset)
    styles = methods(records["kinds"].unique())
    table = candidates(records)
    base = table.loc[table["base_onnx_bytes"].idxmax(), "base"]
    accuracy = table.loc[table["id"] == base, "validation_accuracy"]
    columns = {key for row in rows for key, value in row.items() if value is not None}
    return {
        "folder": folder_name(dataset),
        "models": rows,
        "published": published() if dataset == DATASET else [],
        "quantities": quantities(rows),
        "methods": styles,
        "facts": FACTS | IF_MEASURED,
        "budgets": [
            {"name": name, "column": column, "unit": unit, "least": name in LEAST, "best": BEST.get(name)}
            for name, (column, unit) in BUDGETS.items()
            if column in columns
        ],
        "costs": list(COSTS),
        "start": {"accuracy": accuracy.iloc[0] - START} if len(accuracy) else {},
        "failed": FAILED,
        "ink": INK,
        "chart": chart([], [], styles),
    }


def kernel_charts(measured: pd.DataFrame) -> Iterator[tuple[str, Axes]]:
    """Yield what notebook 5 draws of our kernels on the GPU that was measured last, each with its title."""
    on_gpu = measured[measured["kind"] == "gpu"].sort_values("time") if len(measured) else measured
    if on_gpu.empty:
        return
    on_gpu = on_gpu[on_gpu["device"] == on_gpu["device"].iloc[-1]]
    peak, device = on_gpu.iloc[0], on_gpu["device"].iloc[0]
    ours = on_gpu[(on_gpu["maker"] == "ours") & on_gpu["case"].str.startswith(("square", "fully"))]
    if len(ours):
        rates = {"FP32": peak["fp32_gops_per_s"], "INT8": peak["int8_gops_per_s"]}
        yield (
            f"Roofline of {device}: rates of our kernels below what it can do",
            roofline(ours, peak["copy_gbytes_per_s"], rates),
        )
    full = on_gpu[on_gpu["case"] == "fully connected"].sort_values(["family", "time_ms"], ascending=[True, False])
    if len(full):
        yield (
            "Times of a product of 4096 x 25088 weights with 16 images",
            kernel_bars(full.assign(label=full["kernel"])),
        )
    for family, case, dense, title in (
        ("spmv_csr", "square 25088", "gemv_vector4", "Times of a sparse 25088 x 25088 matrix times a vector"),
        ("spmm_csr", "square 1000", "torch.mm", "Times of a sparse 1000 x 1000 matrix times a dense one"),
    ):
        rows = on_gpu[(on_gpu["family"] == family) & (on_gpu["case"] == case)]
        whole = on_gpu.loc[(on_gpu["kernel"] == dense) & (on_gpu["case"] == case), "time_ms"].min()
        if len(rows) and np.isfinite(whole):
            meets = {kernel: kernels.crossover(own, whole) for kernel, own in rows.groupby("kernel")}
            yield f"{title}, by density, beside the dense product's", time_over_density(rows, whole, meets)
    layers = on_gpu[
        on_gpu["case"].str.startswith("ResNet-18") & on_gpu["kernel"].isin(["gemm_blocked", "gemm_int8_mma"])
    ]
    for batch, rows in layers.groupby(layers["case"].str.split("batch ").str[1].astype(int)):
        rows = rows.sort_values(["case", "kernel"])
        names = rows["case"].str.removeprefix("ResNet-18 ") + ", " + rows["kernel"]
        yield f"Times of ResNet-18's convolutions as products, batch {batch}", kernel_bars(rows.assign(label=names))


def kernel_pictures(measured: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the titles of `kernel_charts`, and the charts as SVG in the colour of the page's text."""
    ink = "#010203"  # no colour of a chart, to be found in the SVG
    parts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    shades: Any = dict.fromkeys(parts, ink) | {"svg.fonttype": "none", "savefig.transparent": True}
    with plt.rc_context():
        use_style()
        plt.rcParams.update(shades)
        for index, (title, ax) in enumerate(kernel_charts(measured)):
            file = io.StringIO()
            figure_of(ax).savefig(file, format="svg", metadata={"Date": None})
            plt.close(figure_of(ax))
            svg = file.getvalue()[file.getvalue().index("<svg") :]
            svg = re.sub(f"{ink}|#000000|#444444", "currentColor", svg)
            yield title, re.sub(r'((?:id="|url\(#|href="#))', rf"\g<1>k{index}-", svg)  # unique in the page


def as_html(notebook: Path) -> str:
    """Return a notebook with its outputs as HTML that loads nothing from the network."""
    scripts = ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs")
    empty = "".join(f"{{%- block {name} -%}}{{%- endblock -%}}" for name in scripts)
    exporter = HTMLExporter(raw_template="{%- extends 'lab/index.html.j2' -%}" + empty, embed_images=True)
    return exporter.from_filename(str(notebook))[0]


@functools.cache
def library() -> Markup:
    """Return the JavaScript of Vega-Lite and what it needs, with the function `vegaEmbed`."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed").replace("</script", "<\\/script"))


def _source(name: str) -> Markup:
    return Markup((WEB / name).read_text())


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
