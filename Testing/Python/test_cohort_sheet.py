"""The contact sheet: what names and prompts can hold stays data, and its program sorts and rejects."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MedCLIPSAMLib.cohort_measures import Notes, write_thumbnail
from MedCLIPSAMLib.cohort_rows import CohortRow, read_table, write_table
from MedCLIPSAMLib.cohort_sheet import SHEET_FILE, write_sheet

NASTY = "</script><script>alert(1)</script>"
ROWS = [
    CohortRow("a-1", f"{NASTY}.png", None, "image", "x", "done", None, 0.5, False, 0.9, 0.1, 0.2, 1.5, "0f"),
    CohortRow("b-2", "b\udcff <b>&amp;.png", "p,1", "image", "x", "done", None, None, True, None, 0.0, 0.0, 0.1, "1e"),
    CohortRow("c-3", "c.png", None, "image", "x", "done", None, 0.7, False, 0.4, 0.6, 0.05, 0.1, "2d"),
    CohortRow("d-4", "d.png", None, None, "x", "failed", 'damaged, "here"\n<img src=x>'),
    CohortRow("e-5", "e.png", None, None, "x"),
]


class Page(HTMLParser):
    """Collects the elements and the text of the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data


def sheet(folder: Path, rows=ROWS, **settings) -> Page:
    write_sheet(folder, {"prompts": ["x"], "engine": f"finetuned:/{NASTY}", **settings}, rows)
    return Page((folder / SHEET_FILE).read_text("utf-8"))


def test_names_stay_data(tmp_path):
    (tmp_path / "rejected.txt").write_text("c-3\n")
    page = sheet(tmp_path)
    assert len(page.scripts) == 2 and not [tag for tag, _ in page.elements if tag in ("img", "b", "iframe", "link")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    data = json.loads(page.scripts[0])
    assert data["rows"][0]["file"] == ROWS[0].file and data["rows"][3]["reason"] == ROWS[3].reason
    assert data["rejected"] == ["c-3"] and data["names"] == [row.case for row in ROWS]
    assert [row["thumbnail"] for row in data["rows"]] == [f"thumbnails/{n}.jpg" for n in ("a-1", "b-2", "c-3")] + [
        None
    ] * 2
    assert NASTY in data["title"]
    text = (tmp_path / SHEET_FILE).read_text("utf-8")
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert "default-src 'none'" in text


def test_table_round_trip(tmp_path):
    write_table(tmp_path, ROWS)
    assert read_table(tmp_path) == ROWS
    assert (tmp_path / "cohort.csv").read_bytes().startswith(b"case,file,patient,kind,prompt,status,reason,presence")


def test_thumbnail_shows_outline_and_entropy(tmp_path):
    mask = np.zeros((60, 30), bool)
    mask[20:40, 10:20] = True
    entropy = np.where(mask, np.log(2), 0).astype(np.float32)
    notes = Notes(shown=(np.full((60, 30), 100, np.uint8), mask, entropy))
    write_thumbnail(tmp_path / "t.jpg", notes)
    picture = np.array(Image.open(tmp_path / "t.jpg")).astype(int)
    assert picture.shape == (224, 224, 3)  # two panels of 112 x 224
    left, right = picture[:, :112], picture[:, 112:]
    green = left[..., 1] - left[..., 0]
    assert green[75, 40:70].mean() > 50 and abs(green[110, 50:60]).mean() < 15 and abs(green[20]).mean() < 15
    assert right[110, 50:60].min() > 200 and right[20].max() < 40
    write_thumbnail(tmp_path / "nothing.jpg", Notes())
    assert np.array(Image.open(tmp_path / "nothing.jpg")).max() < 10


# A page that stands still: enough of a browser for the program of the sheet.
BROWSER = """
const listeners = {}, kept = KEPT;
class Element {
  constructor(tag) { Object.assign(this, { tagName: tag.toUpperCase(), children: [], attributes: {}, handlers: {},
    value: "", className: "", textContent: "" });
    const words = new Set(); this.classList = { toggle: (w, on) => on ? words.add(w) : words.delete(w), words }; }
  append(...all) { this.children.push(...all); }
  replaceChildren(...all) { this.children = all; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, handler) { this.handlers[name] = handler; }
  closest(selector) { return selector === "." + this.className ? this : null; }
  focus() { focused = this; }
  scrollIntoView() {}
  click() { saved = this; }
}
let focused = null, saved = null;
const byName = { data: Object.assign(new Element("script"), { textContent: DATA }) };
globalThis.document = { getElementById: (id) => byName[id] ??= new Element("div"), createElement: (t) => new Element(t),
  addEventListener: (name, handler) => { listeners[name] = handler; } };
globalThis.location = { pathname: "/x" };
globalThis.localStorage = { getItem: () => kept, setItem: (_, value) => { stored = value; } };
let stored = null;
globalThis.getComputedStyle = () => ({ gridTemplateColumns: "1px 1px" });
globalThis.URL.createObjectURL = (blob) => { text = blob; return "blob:"; };
let text = null;
byName.sort = Object.assign(new Element("select"), { value: "entropy" });
byName.show = Object.assign(new Element("select"), { value: "all" });
"""
PLAY = """
const names = () => document.getElementById("cards").children.map((card) => card.title);
const found = { entropy: names(), count: byName.count.textContent };
byName.sort.value = "confidence"; byName.sort.handlers.change(); found.confidence = names();
byName.sort.value = "name"; byName.sort.handlers.change(); found.name = names();
byName.show.value = "failed"; byName.show.handlers.change(); found.failed = names();
byName.show.value = "all"; byName.sort.value = "entropy"; byName.sort.handlers.change();
const key = (name, target) => listeners.keydown({ key: name, target, preventDefault() {} });
key("ArrowRight", byName.count); found.first = focused.title;
key("ArrowDown", focused); found.below = focused.title;
key("r", focused);
document.getElementById("cards").children[0].handlers.click();
found.after = byName.count.textContent;
byName.show.value = "kept"; byName.show.handlers.change(); found.kept = names();
found.stored = JSON.parse(stored).rejected;
byName.save.handlers.click();
found.download = saved.download;
text.text().then((content) => { found.saved = content; console.log(JSON.stringify(found)); });
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("remembered", [None, '{"base":"[]","rejected":["d-4","gone"]}', "damaged"])
def test_program_of_the_page(tmp_path, remembered):
    page = sheet(tmp_path)
    browser = BROWSER.replace("KEPT", json.dumps(remembered)).replace("DATA", json.dumps(page.scripts[0]))
    (tmp_path / "page.js").write_text(browser + page.scripts[1] + PLAY, "utf-8")
    done = subprocess.run(["node", str(tmp_path / "page.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["entropy"] == ["c-3", "a-1", "b-2", "d-4", "e-5"]
    assert found["confidence"] == ["c-3", "a-1", "b-2", "d-4", "e-5"] and found["failed"] == ["d-4", "e-5"]
    assert found["name"] == ["a-1", "b-2", "c-3", "d-4", "e-5"]
    before = ["d-4"] if remembered and remembered != "damaged" else []
    assert found["count"] == f"5 cases, {len(before)} rejected"
    assert (found["first"], found["below"]) == ("c-3", "b-2")
    assert sorted(found["stored"]) == sorted([*before, "b-2", "c-3"])
    assert found["kept"] == [name for name in found["entropy"] if name not in found["stored"]]
    assert found["download"] == "rejected.txt" and found["saved"].split() == sorted([*before, "b-2", "c-3"])
