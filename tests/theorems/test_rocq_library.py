"""What ``coqchk`` prints is read right, and a library with an axiom of its own is told."""

import shutil

import pytest

from gonio.errors import MissingDependencyError, TheoremError
from gonio.theorems.rocq import has_prover
from gonio.theorems.rocq_library import check_library, parse_context

needs_coqchk = pytest.mark.skipif(
    not (has_prover() and shutil.which("coqchk")), reason="coqchk is not installed"
)
# As coqchk 8.16 prints them.
CLEAN = """
CONTEXT SUMMARY
===============

* Theory: Set is predicative

* Axioms:
    mathcomp.classical.boolp.propositional_extensionality
    Coq.Logic.Classical_Prop.classic

* Constants/Inductives relying on type-in-type: <none>

* Constants/Inductives relying on unsafe (co)fixpoints: <none>

* Inductives whose positivity is assumed: <none>

"""
UNSAFE = """
CONTEXT SUMMARY
===============

* Theory: Set is predicative

* Axioms: <none>

* Constants/Inductives relying on type-in-type:
    Tiny.A.low

* Constants/Inductives relying on unsafe (co)fixpoints:
    Tiny.A.loop
    Tiny.A.round

* Inductives whose positivity is assumed: <none>
"""


def test_a_summary_is_read():
    assert parse_context(CLEAN) == (
        (
            "Coq.Logic.Classical_Prop.classic",
            "mathcomp.classical.boolp.propositional_extensionality",
        ),
        (),
    )
    assert parse_context(UNSAFE) == (
        (),
        (
            "Constants/Inductives relying on type-in-type: Tiny.A.low",
            "Constants/Inductives relying on unsafe (co)fixpoints: Tiny.A.loop",
            "Constants/Inductives relying on unsafe (co)fixpoints: Tiny.A.round",
        ),
    )
    with pytest.raises(TheoremError, match=r"printed no list of axioms[\s\S]*nothing"):
        parse_context("it said nothing of the sort")


@needs_coqchk
def test_axioms_and_switched_off_checks_of_a_project_are_its_own(tmp_path):
    (tmp_path / "theories").mkdir()
    (tmp_path / "_CoqProject").write_text("-R theories Tiny\ntheories/A.v\n")
    (tmp_path / "theories/A.v").write_text(
        "Require Import Classical_Prop.\n"
        "Axiom cheat : False.\n"
        "#[bypass_check(guard)] Fixpoint loop (n : nat) : False := loop n.\n"
    )
    found = check_library(tmp_path)
    assert found.modules == 1
    assert "Coq.Logic.Classical_Prop.classic" in found.axioms
    assert [name.rpartition(": ")[2] for name in found.own] == ["Tiny.A.cheat", "Tiny.A.loop"]
    assert found.unsafe == found.own[1:]


def test_without_coqchk_the_cure_is_named(tmp_path, monkeypatch):
    (tmp_path / "_CoqProject").write_text("-R . Tiny\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install"):
        check_library(tmp_path)
