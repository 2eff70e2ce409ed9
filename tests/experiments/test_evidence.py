"""What is kept of a grid, and the page that shows it."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from varcon_plugin.commands.evidence import main
from varcon_plugin.experiments.evidence import compared, insert, keep, read, table

OURS, THEIRS = (70.0, 72.5, 71.0), (69.0, 72.0, 69.5)


def cell(method, seed, knn, setting=None):
    return {
        "method": method, "setting": setting, "seed": seed, "knn": knn,
        "linear": knn + seed, "learning_rate": 1.0, "seconds": 3.0,
        "curve": [[2, knn]], "config": {"long": "x" * 1000},
    }  # fmt: skip


RESULTS = [
    cell(method, seed, knn)
    for method, values in (("SupCon", THEIRS), ("VarCon", OURS))
    for seed, knn in enumerate(values)
]


def test_differences_are_paired_by_seed():
    pairs = np.subtract(OURS, THEIRS)
    low, high = stats.t.interval(0.95, 2, loc=pairs.mean(), scale=stats.sem(pairs))
    (found,) = compared(RESULTS[::-1][:3] + RESULTS[:3], "knn").values()
    assert found.mean == pytest.approx(-pairs.mean())
    (found,) = compared(RESULTS, "knn").values()
    assert found.mean - found.interval == pytest.approx(low)
    assert found.mean + found.interval == pytest.approx(high)
    missing = compared(RESULTS[:2] + RESULTS[4:], "knn")["VarCon", None]
    assert (missing.mean, missing.interval) == (0.5, None)  # of seed 1, which both have


def test_one_method_is_compared_with_its_first_setting():
    rows = [cell("VarCon", s, 50.0 + 3 * e, e) for e in (0.0, 0.5) for s in (0, 1)]
    assert compared(rows, "knn")["VarCon", 0.5].mean == 1.5
    text = table({"axis": "epsilon", "results": rows})
    assert "| VarCon | 0.5 | 51.50 ± 0.00 | **+1.50 ± 0.00** |" in text


@pytest.fixture
def docs(tmp_path):
    keep(tmp_path / "evidence" / "losses.json", "On noise.", "recipe", RESULTS)
    page = "# Evidence\n\n<!-- losses -->\nold\n<!-- end of losses -->\n\nThe end.\n"
    (tmp_path / "evidence.md").write_text(page)
    return tmp_path


def test_the_command_writes_what_the_files_say(docs):
    kept = docs / "evidence" / "losses.json"
    assert kept.stat().st_size < 200 * len(RESULTS)
    assert json.loads(kept.read_text())["results"][0]["curve"] == [[2, 69.0]]
    main(["--docs", str(docs)])
    page = (docs / "evidence.md").read_text()
    assert "On noise." in page
    assert "| VarCon | 71.17" in page
    assert "old" not in page
    assert page.endswith("<!-- end of losses -->\n\nThe end.\n")
    with Image.open(docs / "images" / "evidence_losses.png") as image:
        assert min(image.size) > 300
    main(["--docs", str(docs)])
    assert (docs / "evidence.md").read_text() == page


def test_mistakes_are_told(docs, tmp_path):
    with pytest.raises(ValueError, match="no lines <!-- other -->"):
        insert("# Evidence", "other", "x")
    (docs / "evidence" / "other.json").write_text('{"results": [{}]}')
    with pytest.raises(ValueError, match=r"other\.json is not what an experiment kept"):
        read(docs / "evidence" / "other.json")
    with pytest.raises(SystemExit, match="other"):
        main(["--docs", str(docs)])
    with pytest.raises(SystemExit, match="no results in"):
        main(["--docs", str(tmp_path / "nowhere")])
