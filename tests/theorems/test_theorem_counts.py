"""The counts on a page are those of the lock, and are written between two marks only."""

from pathlib import Path

import pytest

from gonio.errors import OutputError
from gonio.theorems.counts import BEGIN, END, counts_block, update_counts
from gonio.theorems.tables import theorem_table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_has_the_counts_of_the_lock():
    """After a change of the lock or the catalogue: gonio theorem counts --into README.md."""
    if not README.is_file():
        pytest.skip("the README is not beside these tests (an installed package)")
    assert counts_block() in README.read_text(encoding="utf-8")


def test_the_table_counts_the_list():
    cells = [line.split("|")[1:-1] for line in counts_block().splitlines() if line[:1] == "|"]
    numbers = [[int(cell.strip() or 0) for cell in row[1:]] for row in cells[2:]]
    assert [sum(column) for column in zip(*numbers[:-1], strict=True)] == numbers[-1]
    total, proved, weaker, refuted, check_only, measured = numbers[-1]
    words = theorem_table()["status"].value_counts()
    assert (total, proved) == (words.sum(), words["proved"])
    assert (weaker, refuted) == (words.get("proved-weaker", 0), words.get("refuted", 0))
    withdrawn = words["deprecated"]
    assert check_only + measured == words.get("open", 0)
    assert f"in no column: {withdrawn}." in counts_block()
    assert proved + weaker + refuted + check_only + measured + withdrawn == total


def test_only_what_is_between_the_marks_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold counts\n{END}\nafter\n")
    assert update_counts(page)
    assert page.read_text() == f"before\n{counts_block()}\nafter\n"
    assert not update_counts(page)


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_both_marks_is_refused(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(OutputError, match="expected these two lines"):
        update_counts(page)
    assert page.read_text() == text
    with pytest.raises(OutputError, match="cannot read"):
        update_counts(tmp_path / "absent.md")
