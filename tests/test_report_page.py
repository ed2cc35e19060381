"""The page of `make report`: its data are the records', and a browser draws and does what it says."""

import functools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from combination import BudgetError, pareto_front, recommend
from combination.recommendation import BUDGETS, LEAST, candidates
from experiment import load_records
from experiment.behaviour import with_behaviour
from experiment.store import ROOT
from plots import explore, page
from plots.style import method_style
from report.published import published_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
COLUMNS = ("archive_bytes", "onnx_bytes", "latency_ms.batch1_one_thread.median", "macs")


@functools.cache
def records() -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESULTS_DIR", raising=False)
        return load_records("cifar10")


@functools.cache
def measured() -> pd.DataFrame:
    """The records with what `recommend` needs to bound the worst class and robustness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESULTS_DIR", raising=False)
        return with_behaviour(records(), "cifar10")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the page and one notebook, beside the committed records."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("cifar10", "kernels"):
        (folder / name).symlink_to(ROOT / "results" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_DIR", str(folder))
        page.write_page("cifar10", [ROOT / "notebooks" / "1_baseline.ipynb"])
    return folder / "report"


class Page(HTMLParser):
    """Links, sources and data of a page, and the accessible names of what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.data, self.reading = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a":
            self.links.append(found["href"])
        elif found.get("src") or (tag == "link" and found.get("href")):
            self.loaded.append(found.get("src") or found["href"])
        self.ids += [found["id"]] if "id" in found else []
        if tag in ("img", "svg"):
            assert "alt" in found or "aria-hidden" in found or self.named, f"<{tag}> without words"
        self.named = found.get("role") == "img" and bool(found.get("aria-label"))
        self.reading = tag == "script" and found.get("id") == "data"

    def handle_data(self, data):
        self.data += data if self.reading else ""


@pytest.fixture(scope="module")
def read(site) -> Page:
    return Page((site / "index.html").read_text())


def test_one_file_of_at_most_3_mb_that_loads_nothing(site, read):
    assert (site / "index.html").stat().st_size <= 3e6
    assert all(address.startswith("data:") for address in read.loaded)
    assert len(read.ids) == len(set(read.ids))
    notebook = (site / "1_baseline.html").read_text()
    assert not re.search(r"""(src|href)=["']http|import\(""", re.sub(r"<a [^>]*>", "", notebook))


def test_every_link_leads_to_a_file_or_a_place_in_the_page(site, read):
    assert len(read.links) > len(records())
    for link in read.links:
        place, _, part = link.partition("#")
        assert (site / place).is_file() if place else part in read.ids, link


def test_its_figures_are_those_of_the_records(read):
    data, own = json.loads(read.data), records().set_index("id")
    shown = {row["id"]: row for row in data["models"]}
    assert {name for row in data["models"] for name in row["ids"]} == set(own.index)
    assert not set(shown) - set(own.index)
    for key, row in shown.items():
        seeds = own.loc[row["ids"]]
        assert own.loc[key, "validation_accuracy"] == seeds["validation_accuracy"].max()
        for column in ("accuracy", "validation_accuracy", *COLUMNS):
            assert row[column] == pytest.approx(np.mean(seeds[column]), rel=1e-12)
        assert row["accuracy_text"].startswith(f"{100 * np.mean(seeds['accuracy']):.2f} % (")
        assert row["words"] == own.loc[key, "words"]
        assert row["method"] == method_style(own.loc[key, "kinds"])[0]
        assert row["archive"] == (ROOT / "results" / "cifar10" / "models" / f"{key}.nna").exists()
    study = published_study().dropna(subset="size_mb")
    assert [row["archive_bytes"] for row in data["published"]] == pytest.approx(list(1e6 * study["size_mb"]))
    assert [100 * row["accuracy"] for row in data["published"]] == pytest.approx(list(study["accuracy"]))


def test_no_two_methods_have_one_shape(read):
    shapes = [own["shape"] for own in json.loads(read.data)["methods"]]
    assert len(shapes) == len(set(shapes)) == len({method_style(kinds)[0] for kinds in records()["kinds"]})


def test_robustness_and_the_worst_class_are_axes_and_budgets_if_they_were_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    data = page.embedded(records(), "cifar10")
    assert "robustness" not in [axis["column"] for axis in data["quantities"]]
    assert [own["name"] for own in data["budgets"]] == ["accuracy", "size_kb", "latency_ms", "macs"]
    key = records()["id"].iloc[0]
    figures = {"robustness": 0.45, "worst_class_accuracy": 0.7} | dict.fromkeys(
        ("validation_robustness", "validation_worst_class_accuracy"), 0.5
    )
    found = records().assign(**{name: [value] + [None] * (len(records()) - 1) for name, value in figures.items()})
    found[list(figures)] = found[list(figures)].astype(float)
    monkeypatch.setattr(explore, "with_behaviour", lambda table, dataset: found)
    data = page.embedded(records(), "cifar10")
    row = next(row for row in data["models"] if key in row["ids"])
    assert {name: row[name] for name in figures} == figures
    assert row["robustness_text"] == "45.00 %" and row["worst_class_accuracy_text"] == "70.00 %"
    assert {"robustness", "worst_class_accuracy"} <= {axis["column"] for axis in data["quantities"]}
    assert {"robustness", "worst_class"} <= {own["name"] for own in data["budgets"]}
    assert json.dumps(data, allow_nan=False)


def test_without_records_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    with pytest.raises(page.PageError, match="make study DATASET=digits"):
        page.write_page("digits")
    assert not (tmp_path / "report").exists()


def test_words_of_records_are_text_and_no_markup(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    strange = "</script><b onclick='x'>&"
    named = records().assign(words=strange, label=records()["label"] + strange)
    monkeypatch.setattr(page, "load_records", lambda name: named)
    monkeypatch.setattr(page.kernels, "load", pd.DataFrame)
    monkeypatch.setattr(page, "takeaways", lambda *tables: pd.DataFrame())  # they take a second
    text = page.page("cifar10")
    assert strange not in text and "<b onclick" not in text
    assert {row["words"] for row in json.loads(Page(text).data)["models"]} == {strange}


# In a browser.


@pytest.fixture(scope="module")
def browser(site):
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or any package of Chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page(viewport={"width": 1400, "height": 1000})
        said: list[str] = []
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        tab.on("request", lambda request: request.url.startswith("file:") or said.append(f"loads {request.url}"))
        tab.goto((site / "index.html").as_uri())
        if not said:
            tab.wait_for_function("document.querySelector('#chart[data-drawn]')", timeout=60_000)
        assert not said, said
        yield tab
        chromium.close()
        assert not said, said  # neither errors nor warnings, in all of the tests


@pytest.fixture
def tab(browser):
    """The page as it is at first."""
    browser.set_viewport_size({"width": 1400, "height": 1000})
    browser.emulate_media(color_scheme="light")
    browser.evaluate("report.defaults()")
    settle(browser)
    return browser


def settle(tab) -> None:
    tab.evaluate("report.redraw()")


def marks(tab, layer: str = "marks"):
    return tab.locator(f"#chart g.{layer}_marks path")


def choose(tab, **axes: str) -> None:
    for axis, column in axes.items():
        tab.select_option(f"#{axis}", column)
    settle(tab)


def slide(tab, name: str, position: int) -> None:
    script = "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input', {bubbles: true})); }"
    tab.locator(f"#budgets input[name={name}]").evaluate(script, position)
    settle(tab)


def ringed(tab) -> tuple[str, dict]:
    found = tab.locator("#reason")
    return found.get_attribute("data-id"), json.loads(found.get_attribute("data-budget"))


def places(tab, layer: str = "marks") -> pd.DataFrame:
    """Where the marks are in the window (x to the right, y up, in pixels), the model of each, and if it can be hit."""
    script = """paths => paths.map(path => {
        const box = path.getBoundingClientRect();
        const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
        return {id: path.__data__.datum.id, x, y: -y, free: document.elementFromPoint(x, y) === path};
    })"""
    return pd.DataFrame(marks(tab, layer).evaluate_all(script)).set_index("id", drop=False)


def assert_in_order(places: pd.Series, figures: pd.Series) -> None:
    """Marks with larger figures are further along; equal ones are at one place, to half a pixel."""
    ordered = places[figures.sort_values().index]
    assert (np.diff(ordered) > -0.5).all() and np.ptp(ordered) > 100


def test_the_marks_are_every_model_where_its_figures_are(tab):
    table = candidates(records()).set_index("id")
    drawn = places(tab)
    assert set(drawn["id"]) == set(table.index)
    assert marks(tab, "reported").count() == published_study()["size_mb"].notna().sum()
    for column in COLUMNS:
        choose(tab, x=column)
        drawn = places(tab)
        assert_in_order(drawn["x"], table.loc[drawn["id"], column])
        near = table["accuracy"] > table["accuracy"].max() - 0.25
        assert_in_order(drawn.loc[near[near].index, "y"], table.loc[near, "accuracy"])
    choose(tab, x="accuracy", y="macs")
    assert "multiply-accumulates per image" in tab.locator("#chart").get_attribute("aria-label")
    tab.check("#whole")
    settle(tab)
    drawn = places(tab)
    assert_in_order(drawn["x"], table.loc[drawn["id"], "accuracy"])
    assert_in_order(drawn["y"], table.loc[drawn["id"], "macs"])


def test_pointing_at_a_mark_shows_its_record(tab):
    free = places(tab)
    free = free[free["free"]].sort_values("x")
    for place in free.iloc[:: len(free) // 6].itertuples():
        tab.mouse.move(place.x, -place.y)
        details = tab.locator("#details")
        record = records().set_index("id").loc[place.id]
        assert details.get_attribute("data-id") == place.id
        assert record["words"] in details.inner_text()
        assert f"{record['archive_bytes'] / 1e3:,.1f} KB" in details.inner_text()
        assert f"{100 * record['accuracy_low']:.2f} - " in details.inner_text()
        links = details.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        assert links[0] == f"../cifar10/{place.id}.json"
        assert links[1:] in ([], [f"../cifar10/models/{place.id}.nna"])
        assert record["words"] in tab.locator("#vg-tooltip-element").inner_text()


def test_fronts_are_those_of_pareto_front(tab):
    table = candidates(records())
    for column in COLUMNS:
        wanted = [["validation_accuracy", True], [column, False]]
        found = tab.evaluate("wanted => report.front(report.page.models, wanted)", wanted)
        expected = pareto_front(table, (column,))
        assert {row for row, best in zip(table["id"], found, strict=True) if best} == set(table.loc[expected, "id"])
        choose(tab, x=column)
        line = marks(tab, "front").get_attribute("d")
        assert len(re.findall("[ML]", line)) == expected.sum()


def same(models: pd.DataFrame, budget: dict, found: str | None) -> bool:
    """Whether `recommend` chooses the recipe of the record `found`; of seeds as good as each other, either."""
    try:
        chosen = recommend(models, **budget).model["label"]
    except BudgetError:
        return found is None
    return bool(chosen == records().set_index("id")["label"].get(found))


def test_recommendations_are_those_of_recommend(tab, rng):
    own, table = measured(), candidates(measured())
    budgets: list[dict] = []
    for count in [1, 2, 3, 4, 5, 6] * 6:
        budget = {}
        for name in rng.permutation([name for name, (column, _) in BUDGETS.items() if column in table])[:count]:
            column, unit = BUDGETS[name]
            value = rng.choice(table[column].dropna()) / unit * rng.choice([1, 1, 0.9, 1.1])  # some that no model keeps
            budget[str(name)] = min(float(value), 0.999) if name in LEAST else float(value)
        budgets.append(budget)
    script = "budgets => budgets.map(budget => report.recommend(report.page.models, budget)?.row.id)"
    for budget, found in zip(budgets, tab.evaluate(script, budgets), strict=True):
        assert same(own, budget, found), budget


def test_sliders_ring_what_recommend_recommends(tab):
    first, budget = ringed(tab)
    assert list(budget) == ["accuracy"] and same(records(), budget, first)
    found = {first}
    for name, share in (("size_kb", 0.8), ("accuracy", 0), ("latency_ms", 0.3), ("macs", 0.1), ("size_kb", 0.1)):
        slide(tab, name, round(share * int(tab.locator(f"#budgets input[name={name}]").get_attribute("max"))))
        chosen, budget = ringed(tab)
        assert same(records(), budget, chosen), budget
        assert list(places(tab, "ring")["id"]) == [chosen]
        found.add(chosen)
    assert len(found) > 2
    for name in budget:
        tab.locator(f"#budgets input[name={name}]").press("End")
    settle(tab)
    assert ringed(tab) == ("", {}) and marks(tab, "ring").count() == 0


def test_methods_that_are_off_are_neither_drawn_nor_recommended(tab):
    own = records()
    everything = marks(tab).count()
    tab.uncheck("#methods input[name='chain of methods']")
    tab.uncheck("#methods input[name='published study']")
    settle(tab)
    left = own[[method_style(kinds)[0] != "chain of methods" for kinds in own["kinds"]]]
    assert marks(tab).count() == left["label"].nunique() < everything
    assert marks(tab, "reported").count() == 0
    chosen, budget = ringed(tab)
    assert same(left, budget, chosen)
    for box in tab.locator("#methods input").all():
        box.uncheck()
    settle(tab)
    assert marks(tab).count() == 0 and ringed(tab)[0] == ""
    tab.click("#again")
    settle(tab)
    assert marks(tab).count() == everything


def test_it_works_by_keyboard(tab):
    tab.focus("#chart")
    order = places(tab).sort_values("x")["id"]
    tab.keyboard.press("Home")
    assert tab.locator("#details").get_attribute("data-id") == order.iloc[0]
    seen = []
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
        seen.append(tab.locator("#details").get_attribute("data-id"))
    assert len(set(seen)) == 5
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.getAttribute('href')") == f"../cifar10/{seen[-1]}.json"
    tab.focus("#budgets input[name=size_kb]")
    tab.keyboard.press("ArrowLeft")
    settle(tab)
    assert "size_kb" in ringed(tab)[1]


def test_ctrl_and_the_wheel_zoom_and_the_wheel_alone_scrolls(tab):
    box = tab.locator("#chart").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    before = places(tab)
    tab.mouse.wheel(0, 100)
    tab.wait_for_function("scrollY > 0")
    assert np.ptp(places(tab)["x"]) == pytest.approx(np.ptp(before["x"]))
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -300)
    tab.keyboard.up("Control")
    tab.wait_for_function("() => document.querySelectorAll('#chart .role-axis-label text')[0].textContent !== '10'")
    near = before[(before["x"] - box["x"] - 300).abs() < 50].index
    assert np.ptp(places(tab)["x"][near]) > 1.2 * np.ptp(before["x"][near])
    tab.evaluate("scrollTo(0, 0)")


def test_the_table_is_searched_and_sorted(tab):
    table = candidates(records())
    tab.fill("#search", "ternary resnet20")
    shown = tab.locator("#models tbody tr:not([hidden])")
    text = (table["words"] + table["label"]).str.lower()
    assert shown.count() == (text.str.contains("ternary") & text.str.contains("resnet20")).sum() > 0
    tab.fill("#search", "")
    assert shown.count() == len(table)
    for column, name in enumerate(("model", "accuracy", "95")):
        for direction in ("ascending", "descending"):
            tab.locator("#models thead button").nth(column).click()
            values = shown.evaluate_all(f"rows => rows.map(row => row.cells[{column}].dataset.value)")
            values = values if name == "model" else [float(value) for value in values]
            key = str.casefold if name == "model" else None
            if name != "model":
                assert values == sorted(values, key=key, reverse=direction == "descending")
            assert tab.locator("#models thead th").nth(column).get_attribute("aria-sort") == direction


def test_it_fits_a_phone_and_follows_the_theme(tab):
    def colours() -> list[str]:
        return tab.evaluate("""[getComputedStyle(document.body).backgroundColor,
            document.querySelector('#chart .role-axis-title text').getAttribute('fill')]""")

    light = colours()
    tab.emulate_media(color_scheme="dark")
    settle(tab)
    assert all(one != other for one, other in zip(light, colours(), strict=True))
    tab.set_viewport_size({"width": 400, "height": 800})
    settle(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert tab.locator("#chart svg").bounding_box()["width"] <= 400
    assert marks(tab).count() == len(candidates(records()))
