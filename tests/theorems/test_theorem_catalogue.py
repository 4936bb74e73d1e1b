"""The catalogue: every entry is well formed and points at things that exist, both ways."""

import ast
import json
import re
from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
from latex2mathml.converter import convert

import gonio
from gonio.errors import TheoremError
from gonio.theorems import get_entry, load_catalogue, load_families, select_entries
from gonio.theorems.catalogue import Entry, _check_references, _read_family
from gonio.theorems.checks import CHECKS
from gonio.theorems.tables import locked_proofs, summarize, theorem_card, theorem_table

ENTRIES = load_catalogue()
ENTRY_PARAMS = [pytest.param(entry, id=entry.name) for entry in ENTRIES]
USES = sorted({use for entry in ENTRIES for use in entry.uses})

# The specification, name by name: a name that disappears from the catalogue is an error.
SPECIFIED = {
    "A": """
        frobeniusSq_nonneg frobeniusSq_eq_zero_iff frobeniusSq_smul spectralSq_smul
        ratio_smul_invariant_of_quadratic stableRank_smul_invariant outerProduct_eq_col_mul_row
        rank_outer_product_le_one rank_add_le rank_sum_outer_products_le loraUpdate_frob_decays
        rsLoraUpdate_frob_bounded stableRank_le_rank stableRank_mul_le_min
        random_subspace_expected_overlap stable_rank_acoustic_scaling subspace_dilution
        stable_rank_disentanglement subspace_project_complement_le_norm
        global_plus_delta_error_bound stableRank_implies_low_dim_approximation
        gradient_row_space_le_input_span gamma_right_alignment column_gain_residual
        bias_autopsy_separation lower_bound_of_intent
    """,
    "B": "cos_sign_quant_formula cos_eq_one_iff_sign_lattice residual_energy_formula",
    "C": """
        moment_ratio_le_one gaussian_moment_ratio_floor_eq uniform_moment_ratio_floor_eq
        laplace_moment_ratio_floor_eq iid_coord_moment_ratio_floor isotropic_floor_pos
        srht_achieves_isotropic_floor srht_floor_d_independent narrowDim_rank_k_ceiling_formula
    """,
    "D": """
        attention_score_gauge_invariance rope_commutant softmax_shift_invariance top_k_optimal
        l2Norm_uncentered_gt dc_centering_lifts_rotational_ceiling
    """,
    "E": """
        beta_local_quadratic_expansion beta_hessian_nonneg beta_last_mile_quadratic_hardness
    """,
    "F": "beta_eff_formula svd_topk_maximizes_gammaR residual_topk_eckart_young",
    "G": "avg_amplification_eq_frob_div_sqrt",
    "H": "softmax_linf_l1_lipschitz attention_output_distortion",
    "I": """
        ffn_weight_beta_lift_under_learned_R expert_heterogeneity_batch_full_gap
        per_matrix_R_decomposition
    """,
    "J": """
        rank_product_le lora_parameter_gain lora_gradients zero_init rademacher_bounds
        composition_rank
    """,
}
# Words with which the sources themselves grade their statements.
SOURCE_WORDS = {
    "lazy-rudder": {"proven", "deferred", "partial", "stub", "aspirational", "text"},
    "moe-gauge": {
        "proved",
        "text",
        "deferred",
        "axiom",
        "axiom-based",
        "removed",
        "listed",
        "open",
    },
    "lora-essay": {"text"},
    "gonio": {"new"},
}
PACKAGE = Path(gonio.__file__).parent


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
    return re.findall(r"\\(?:\w+|\W)", convert(latex, display="block"))


@pytest.mark.parametrize("letter", sorted(SPECIFIED))
def test_every_specified_name_is_in_its_family(letter):
    names = {entry.name for entry in select_entries(family=letter)}
    assert set(SPECIFIED[letter].split()) <= names


def test_checks_and_entries_name_each_other():
    named = [entry.check for entry in ENTRIES if entry.check is not None]
    assert sorted(named) == sorted(CHECKS)


def test_only_withdrawn_names_have_no_check():
    assert {entry.kind for entry in ENTRIES if entry.check is None} == {"deprecated"}


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_source_status_is_a_word_of_the_source(entry):
    assert entry.source_status in SOURCE_WORDS[entry.source]
    assert (entry.source == "gonio") == (entry.source_status == "new")
    assert entry.source in ("lazy-rudder", "moe-gauge") or entry.lean is None


def test_proofs_and_entries_name_each_other():
    named = [name for entry in ENTRIES for name in entry.declarations]
    assert sorted(named) == sorted(locked_proofs())


def _strings(paths: Iterable[Path]) -> tuple[set[str], list[str]]:
    """Literal strings of some modules, and patterns of their f-strings."""
    literals, patterns = set(), []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else None for p in node.values]
                patterns.append("".join("\\w+" if p is None else re.escape(p) for p in parts))
    return literals, patterns


PIPELINE_STRINGS, PIPELINE_PATTERNS = _strings((PACKAGE / "pipelines").glob("*.py"))
ALL_STRINGS, _ = _strings(PACKAGE.rglob("*.py"))


def _figures() -> dict[str, set[str]]:
    """Statements each figure of the site rests on, by its name, where both are literals."""
    found: dict[str, set[str]] = {}
    for path in (PACKAGE / "site").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            keywords = {k.arg: k.value for k in node.keywords} if isinstance(node, ast.Call) else {}
            name, theorems = keywords.get("name"), keywords.get("theorems")
            if isinstance(theorems, ast.Name):
                theorems = constants.get(theorems.id)
            if isinstance(name, ast.Constant):
                names = ast.literal_eval(theorems) if isinstance(theorems, ast.Tuple) else ()
                found.setdefault(str(name.value), set()).update(names)
    return found


FIGURES = _figures()


@pytest.mark.parametrize("use", USES)
def test_uses_exist(use):
    kind, _, rest = use.partition(":")
    if kind == "figure":
        assert rest in FIGURES
    elif kind == "column":
        table, column = rest.split(".")
        assert table in PIPELINE_STRINGS
        assert column in ALL_STRINGS
    else:
        assert _resolve(use) is not None


def test_figures_and_entries_name_each_other():
    cited = {(figure, name) for figure, names in FIGURES.items() for name in names}
    assert ("stable-rank", "stableRank_le_rank") in cited
    uses = {(use, entry.name) for entry in ENTRIES for use in entry.uses}
    assert {(f"figure:{figure}", name) for figure, name in cited} <= uses


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_measures_are_values_of_records(entry):
    for measure in entry.measured_by:
        assert measure.record in PIPELINE_STRINGS
        assert measure.value in PIPELINE_STRINGS or any(
            re.fullmatch(pattern, measure.value) for pattern in PIPELINE_PATTERNS
        )


def _docstrings() -> list[tuple[str, str]]:
    """Dotted names and docstrings of every module, class and function outside the theorems."""
    found = []

    def walk(node: ast.AST, name: str) -> None:
        found.append((name, ast.get_docstring(node) or ""))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                walk(child, f"{name}.{child.name}")

    for path in PACKAGE.rglob("*.py"):
        parts = ("gonio", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        if not name.startswith("gonio.theorems"):
            walk(ast.parse(path.read_text(encoding="utf-8")), name)
    return found


def _cited(docstring: str) -> set[str]:
    """Names after ``Theorem:`` or in ``(theorem ...)``."""
    lists = re.findall(r"[Tt]heorems?:?\s+((?:``\w+``(?:,|\s|and)*)+)", docstring)
    return {name for found in lists for name in re.findall(r"``(\w+)``", found)}


CITATIONS = [(name, theorem) for name, text in _docstrings() for theorem in sorted(_cited(text))]


def test_citations_are_found():
    assert _cited("Theorem: ``a``, ``b``. And (theorem ``c``).") == {"a", "b", "c"}
    assert ("gonio.linalg.spectrum.stable_rank", "stableRank_le_rank") in CITATIONS


@pytest.mark.parametrize(("dotted", "theorem"), CITATIONS)
def test_objects_that_cite_a_theorem_are_among_its_uses(dotted, theorem):
    found = _resolve(dotted)
    uses = [use for use in get_entry(theorem).uses if use.startswith("gonio.")]
    missing = f'add "{dotted}" to the uses of {theorem} in theorems/catalogue'
    assert any(_resolve(use) is found for use in uses), missing


def test_a_use_that_does_not_exist_does_not_resolve():
    with pytest.raises(AttributeError):
        _resolve("gonio.linalg.spectrum.stable_rnak")


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_formula_converts(entry):
    assert convert(entry.latex).startswith("<math")
    assert _unread_commands(entry.latex) == []


def test_an_unknown_command_would_be_noticed():
    assert _unread_commands(r"\srank(M)") == [r"\srank"]
    assert _unread_commands(r"\Bigl\| x \Bigr\|") == [r"\|", r"\|"]


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
        ("B.json", {"uses": ["figure:a b"]}, "entries.0.uses.0"),
        ("B.json", {"family": "C"}, "says another family"),
        ("B.json", {"kind": "refuted"}, "is refuted and has no erratum"),
        ("B.json", {"kind": "empirical"}, "names no record that measures it"),
        (
            "B.json",
            {"kind": "empirical", "measured_by": [{"record": "a", "value": "b"}]},
            "cannot have a proof",
        ),
        ("B.json", {"replaced_by": ["a"]}, "deprecated names, and no others"),
        ("B.json", {"rocq": None, "rocq_gap": "half of it"}, "a gap of a proof it does not have"),
        ("B.json", {"lean": {"file": "A.lean"}}, "entries.0.lean"),
        ("C.json", {}, "holds family B"),
    ],
)
def test_bad_data_is_refused(file_name, changes, message):
    with pytest.raises(TheoremError, match=message):
        _read_family(file_name, _family_text(**changes))


def test_references_are_checked():
    entries = {entry.name: entry for entry in ENTRIES}
    first, second = ENTRIES[:2]
    dangling = first.model_copy(update={"prerequisites": ("no_such_name",)})
    with pytest.raises(TheoremError, match=f"{first.name} refers to no_such_name"):
        _check_references(entries | {first.name: dangling})
    circle = {
        first.name: first.model_copy(update={"prerequisites": (second.name,)}),
        second.name: second.model_copy(update={"prerequisites": (first.name,)}),
    }
    with pytest.raises(TheoremError, match="run in a circle"):
        _check_references(entries | circle)


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
    essay = select_entries(family="J", source="lora-essay")
    assert {entry.source for entry in essay} == {"lora-essay"}
    with pytest.raises(TheoremError, match="in family B and from lora-essay"):
        select_entries(family="B", source="lora-essay")


def test_table_and_card_show_the_same_status():
    table = theorem_table().set_index("name")
    assert list(table.index) == [entry.name for entry in ENTRIES]
    for name in ("stableRank_le_rank", "stableRank_mul_le_min", "zero_init"):
        card = theorem_card(name).set_index("field")["value"]
        assert card["status"].startswith(str(table.loc[name, "status"]) + " (")


def test_tables_are_filtered_and_counted():
    whole, refuted = theorem_table(), theorem_table(status="refuted")
    assert set(refuted["status"]) == {"refuted"}
    assert set(theorem_table(source="lora-essay")["family"]) == {"J"}
    text = summarize(whole)
    assert text.startswith(f"{len(whole)} statements: ")
    counts = [int(number) for number in re.findall(r"(\d+) [a-z-]+(?:,|$)", text.splitlines()[0])]
    assert sum(counts) == len(whole)
    assert "  G  Amplification of inputs: 1" in text.splitlines()
    assert summarize(theorem_table(status="failed")) == "0 statements"
    with pytest.raises(TheoremError, match="no status is called 'proven'; there are proved"):
        theorem_table(status="proven")
    with pytest.raises(TheoremError, match="no source is called 'arxiv'"):
        theorem_table(source="arxiv")


def test_card_shows_where_the_source_declares_it():
    card = theorem_card("stableRank_le_rank").set_index("field")["value"]
    assert "SubspaceOverlap.lean, line 137" in card["declared there"]
    withdrawn = theorem_card("narrowDim_rank_k_ceiling_formula").set_index("field")["value"]
    assert "beta_eff_formula" in withdrawn["replaced by"]


def test_entries_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ENTRIES[0].check = None
    assert isinstance(ENTRIES[0], Entry)
