"""The catalogue: every entry is well formed and points at things that exist, both ways."""

import json
import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
from latex2mathml.converter import convert

import gonio
from gonio.errors import TheoremError
from gonio.theorems import get_entry, load_catalogue, load_families, select_entries
from gonio.theorems.catalogue import Entry, _read_family
from gonio.theorems.checks import CHECKS
from gonio.theorems.tables import locked_proofs, theorem_card, theorem_table

ENTRIES = load_catalogue()
ENTRY_PARAMS = [pytest.param(entry, id=entry.name) for entry in ENTRIES]
USES = sorted({use for entry in ENTRIES for use in entry.uses})

SHIPPED = {
    "stableRank_smul_invariant",
    "stableRank_le_rank",
    "stableRank_mul_le_min",
    "random_subspace_expected_overlap",
    "column_gain_residual",
    "cos_sign_quant_formula",
    "cos_eq_one_iff_sign_lattice",
    "residual_energy_formula",
    "gaussian_moment_ratio_floor_eq",
    "srht_achieves_isotropic_floor",
    "srht_floor_d_independent",
    "attention_score_gauge_invariance",
    "softmax_shift_invariance",
    "softmax_linf_l1_lipschitz",
    "residual_topk_eckart_young",
    "lora_gradients",
    "zero_init",
}


def _resolve(dotted: str) -> object:
    """What a dotted name stands for: the longest importable module, then attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(dotted)


def _unread_commands(latex: str) -> list[str]:
    """Commands that the converter copied instead of reading them."""
    return re.findall(r">\\\w+<", convert(latex))


def test_catalogue_holds_the_statements_gonio_ships():
    assert {entry.name for entry in ENTRIES} >= SHIPPED


def test_checks_and_entries_name_each_other():
    named = [entry.check for entry in ENTRIES if entry.check is not None]
    assert sorted(named) == sorted(CHECKS)


def test_proofs_and_entries_name_each_other():
    named = [entry.rocq for entry in ENTRIES if entry.rocq is not None]
    assert sorted(named) == sorted(locked_proofs())


@pytest.mark.parametrize("use", USES)
def test_uses_resolve_by_import(use):
    if not use.startswith("gonio."):
        pytest.skip("figures and columns are checked where they are made")
    assert _resolve(use) is not None


def _cited_theorems() -> set[str]:
    """Names after ``Theorem:`` in the docstrings of the package."""
    package = Path(gonio.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    lists = re.findall(r"Theorem:((?:\s*``\w+``,?)+)", "\n".join(texts))
    return {name for found in lists for name in re.findall(r"``(\w+)``", found)}


def test_theorems_cited_in_docstrings_are_in_the_catalogue():
    cited = _cited_theorems()
    assert "stableRank_le_rank" in cited
    assert cited <= {entry.name for entry in ENTRIES}


def test_a_use_that_does_not_exist_does_not_resolve():
    with pytest.raises(AttributeError):
        _resolve("gonio.linalg.spectrum.stable_rnak")


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_formula_converts(entry):
    assert convert(entry.latex).startswith("<math")
    assert _unread_commands(entry.latex) == []


def test_an_unknown_command_would_be_noticed():
    assert _unread_commands(r"\srank(M)") == [r">\srank<"]


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_refuted_and_weakened_entries_say_why(entry):
    assert entry.kind != "refuted" or entry.erratum is not None
    assert entry.rocq_gap is None or entry.rocq is not None


def _family_text(**changes: object) -> str:
    data = json.loads((files("gonio.theorems") / "catalogue" / "B.json").read_text("utf-8"))
    data["entries"][0].update(changes)
    return json.dumps(data)


def test_family_files_read_back():
    assert _read_family("B.json", _family_text()).letter == "B"
    assert [family.letter for family in load_families()] == sorted(
        {entry.family for entry in ENTRIES}
    )


@pytest.mark.parametrize(
    ("file_name", "changes", "message"),
    [
        ("B.json", {"status": "proved"}, "entries.0.status: Extra inputs"),
        ("B.json", {"source": "somewhere"}, "entries.0.source"),
        ("B.json", {"uses": ["numpy.linalg"]}, "entries.0.uses.0"),
        ("B.json", {"family": "C"}, "says another family"),
        ("C.json", {}, "holds family B"),
    ],
)
def test_bad_data_is_refused(file_name, changes, message):
    with pytest.raises(TheoremError, match=message):
        _read_family(file_name, _family_text(**changes))


def test_unknown_name_lists_close_matches():
    with pytest.raises(TheoremError, match="stableRank_le_rank"):
        get_entry("stable_rank_le_rank")
    with pytest.raises(TheoremError, match="gonio theorem list"):
        get_entry("xyzzy")


def test_selection_by_name_and_family():
    assert select_entries() == ENTRIES
    assert {entry.family for entry in select_entries(family="b")} == {"B"}
    assert [e.name for e in select_entries(("zero_init", "lora_gradients"))] == [
        "zero_init",
        "lora_gradients",
    ]
    with pytest.raises(TheoremError, match="none of zero_init"):
        select_entries(("zero_init",), "A")
    with pytest.raises(TheoremError, match="Stable rank"):
        select_entries(family="Z")


def test_table_and_card_show_the_same_status():
    table = theorem_table().set_index("name")
    assert list(table.index) == [entry.name for entry in ENTRIES]
    for name in ("stableRank_le_rank", "stableRank_mul_le_min", "zero_init"):
        card = theorem_card(name).set_index("field")["value"]
        assert card["status"].startswith(str(table.loc[name, "status"]) + " (")


def test_entries_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ENTRIES[0].check = None
    assert isinstance(ENTRIES[0], Entry)
