"""Statuses of proofs: each way to cheat is tried on a tiny project and must be seen."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gonio.errors import MissingDependencyError, TheoremError
from gonio.theorems.rocq import (
    ALLOWED_AXIOMS,
    ProofStatus,
    check_lock,
    has_prover,
    locked_statuses,
    proof_status,
    read_lock,
    sources_digest,
    write_lock,
)
from gonio.theorems.rocq_prover import is_compiled, read_project
from gonio.theorems.rocq_source import scan_source, strip_comments

ROCQ_FOLDER = Path(__file__).resolve().parents[2] / "rocq"

needs_prover = pytest.mark.skipif(
    not has_prover(), reason="the Rocq prover (coqc, coq_makefile, make) is not installed"
)

HONEST = """\
(* Axiom nothing : False. "*)" Admitted. *)
Definition twice (n : nat) := n + n.

(* Doubling nothing gives nothing. *)
Theorem twice_zero : twice 0 = 0.
Proof. reflexivity. Qed.

Section Inside.
Variable n : nat.
Hypothesis positive : 0 < n.
Theorem positive_again : 0 < n.
Proof. exact positive. Qed.
End Inside.
"""


def make_project(folder: Path, **files: str) -> Path:
    """A Rocq project called Tiny whose modules are the keyword arguments."""
    (folder / "theories").mkdir(parents=True)
    names = [f"theories/{name}.v" for name in files]
    (folder / "_CoqProject").write_text("\n".join(["-R theories Tiny", *names]) + "\n")
    for name, text in zip(names, files.values(), strict=True):
        (folder / name).write_text(text)
    return folder


def statuses(folder: Path) -> dict[str, ProofStatus]:
    return {status.name: status for status in proof_status(folder)}


@needs_prover
def test_honest_theorems_are_proved_and_located(tmp_path):
    found = statuses(make_project(tmp_path / "tiny", Honest=HONEST))
    assert list(found) == ["twice_zero", "positive_again"]
    zero, again = found.values()
    assert (zero.statement, zero.axioms, zero.status) == ("twice 0 = 0", (), "proved")
    assert (zero.file, zero.line, zero.reasons) == ("theories/Honest.v", 5, ())
    # a section's hypothesis is no axiom: it shows as a premise of the statement
    assert (again.statement, again.status) == ("forall n : nat, 0 < n -> 0 < n", "proved")


@needs_prover
def test_classical_logic_is_allowed_and_listed(tmp_path):
    source = """\
Require Import Classical.
Theorem lem : forall P, P \\/ ~ P. Proof. exact classic. Qed.
"""
    found = statuses(make_project(tmp_path / "tiny", Classical_use=source))
    assert found["lem"].status == "proved"
    assert found["lem"].axioms == ("Classical_Prop.classic",)
    assert set(found["lem"].axioms) <= set(ALLOWED_AXIOMS)


@needs_prover
def test_admitted_opens_what_rests_on_it_and_nothing_else(tmp_path):
    source = """\
Lemma gap : 1 = 2. Admitted.
Theorem itself : 2 = 3. Admitted.
Theorem rests : 2 = 1. Proof. symmetry; exact gap. Qed.
Theorem apart : 1 = 1. Proof. reflexivity. Qed.
"""
    user = "From Tiny Require Import Gaps.\nTheorem elsewhere : 1 = 2. Proof. exact gap. Qed.\n"
    found = statuses(make_project(tmp_path / "tiny", Gaps=source, User=user))
    assert {name: status.status for name, status in found.items()} == {
        "itself": "open",
        "rests": "open",
        "apart": "proved",
        "elsewhere": "open",
    }
    assert found["elsewhere"].reasons == ("Gaps.gap is Admitted",)


CHEATS = {
    "axiom": "Axiom cheat : False.",
    "local attribute": "#[local] Axiom cheat : False.",
    "parameter": "Parameter cheat : False.",
    "conjecture": "Local Conjecture cheat : False.",
    "axiom inside a section": "Section S. Axiom cheat : False. End S.",
    "hypothesis outside sections": "Hypothesis cheat : False.",
    "variable outside sections": "Variables (a : nat) (cheat : False).",
    "hypothesis in a module": (
        "Module M. Hypothesis no : False. Definition cheat := no. End M.\nImport M."
    ),
    "context outside sections": "Context (cheat : False).",
    "declared module": (
        "Module Type T. Parameter cheat : False. End T. Declare Module D : T. Import D."
    ),
    "guard off": (
        "Unset Guard Checking.\nFixpoint loop (n : nat) : False := loop n.\n"
        "Definition cheat := loop 0."
    ),
    "guard bypassed": (
        "#[bypass_check(guard)] Fixpoint loop (n : nat) : False := loop n.\n"
        "Definition cheat := loop 0."
    ),
    "guard off for a while": (
        "Unset Guard Checking.\nFixpoint loop (n : nat) : False := loop n.\n"
        "Set Guard Checking.\nDefinition cheat := loop 0."
    ),
    "positivity bypassed": (
        "#[bypass_check(positivity)] Inductive bad := mk (f : bad -> False).\n"
        "Definition no (b : bad) : False := match b with mk f => f b end.\n"
        "Definition cheat := no (mk no)."
    ),
    "positivity off": (
        "Unset Positivity Checking.\nInductive bad := mk (f : bad -> False).\n"
        "Definition no (b : bad) : False := match b with mk f => f b end.\n"
        "Definition cheat := no (mk no)."
    ),
}


@pytest.fixture(scope="module")
def cheating(tmp_path_factory):
    """One project with every cheat in a file of its own, and a file that uses each."""
    files = {"Clean": "Theorem near : 1 = 1. Proof. reflexivity. Qed.\n"}
    for number, cheat in enumerate(CHEATS.values()):
        proof = "1 = 2. Proof. destruct cheat. Qed."
        files[f"Cheat{number}"] = f"{cheat}\nTheorem absurd{number} : {proof}\n"
        files[f"User{number}"] = (
            f"From Tiny Require Import Cheat{number}.\n"
            f"Theorem far{number} : 1 = 2. Proof. exact absurd{number}. Qed.\n"
        )
    folder = make_project(tmp_path_factory.mktemp("cheating") / "tiny", **files)
    return folder, statuses(folder)


@needs_prover
@pytest.mark.parametrize("number", range(len(CHEATS)), ids=list(CHEATS))
def test_each_cheat_is_unsound_in_its_file_and_wherever_it_is_used(number, cheating):
    found = cheating[1]
    assert found[f"absurd{number}"].status == "unsound"
    # in the file of the cheat the text gives it away, elsewhere only the prover can
    assert "line 1: " in found[f"absurd{number}"].reasons[0]
    assert found[f"far{number}"].status == "unsound"
    assert not any("line" in reason for reason in found[f"far{number}"].reasons)


@needs_prover
def test_cheats_elsewhere_do_not_stain_a_theorem_and_cannot_be_locked(cheating, tmp_path):
    folder, found = cheating
    assert found["near"].status == "proved"
    with pytest.raises(TheoremError, match=r"unsound proofs[\s\S]*absurd0"):
        write_lock(folder, tmp_path / "lock.json")
    assert not (tmp_path / "lock.json").exists()


@needs_prover
@pytest.mark.parametrize(
    "source",
    [
        "Unset Universe Checking.\nTheorem collapsed : (Type : Type) = Type.",
        "Universe u. #[bypass_check(universes)] Definition low : Type@{u} := Type@{u}.\n"
        "Theorem collapsed : low = low.",
    ],
    ids=["off", "bypassed"],
)
def test_universe_checks_switched_off_are_seen(source, tmp_path):
    found = statuses(make_project(tmp_path / "tiny", Universe=f"{source} Proof. reflexivity. Qed."))
    assert found["collapsed"].status == "unsound"


@needs_prover
def test_obligations_that_are_waved_through_are_no_proof(tmp_path):
    source = """\
Require Import Program.
Program Definition waved : {n : nat | n < 0} := 1.
Admit Obligations.
Theorem negative : exists n, n < 0. Proof. exists (proj1_sig waved). apply proj2_sig. Qed.
"""
    found = statuses(make_project(tmp_path / "tiny", Waved=source))
    assert found["negative"].status == "unsound"
    assert "waved_obligation_1" in found["negative"].reasons[0]


@needs_prover
def test_an_axiom_cannot_borrow_an_allowed_name(tmp_path):
    fake = "Axiom propositional_extensionality : False.\n"
    user = (
        "From Tiny Require Import boolp.\n"
        "Theorem absurd : 1 = 2. Proof. destruct propositional_extensionality. Qed.\n"
    )
    found = statuses(make_project(tmp_path / "tiny", boolp=fake, User=user))
    assert found["absurd"].axioms == ("boolp.propositional_extensionality",)
    assert found["absurd"].status == "unsound"


@needs_prover
def test_a_notation_cannot_print_one_statement_as_another(tmp_path):
    lie = 'Notation "a < b" := (a = a) : nat_scope.\n'
    user = "From Tiny Require Import Lie.\nTheorem wrong : 1 < 0. Proof. reflexivity. Qed.\n"
    found = statuses(make_project(tmp_path / "tiny", Lie=lie, User=user))
    assert found["wrong"].statement == "1 = 1"


@needs_prover
@pytest.mark.parametrize("option", ["-type-in-type", "-impredicative-set", "-noinit"])
def test_options_of_the_prover_are_refused(option, tmp_path):
    folder = make_project(tmp_path / "tiny", Honest=HONEST)
    project = folder / "_CoqProject"
    project.write_text(f"-arg -w -arg none\n{project.read_text()}")
    assert statuses(folder)["twice_zero"].status == "proved"
    project.write_text(f"-arg {option}\n{project.read_text()}")
    with pytest.raises(TheoremError, match=r"only -w WARNINGS is accepted"):
        proof_status(folder)


@needs_prover
def test_the_environment_does_not_steer_the_prover(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "tiny", Honest=HONEST)
    monkeypatch.setenv("COQEXTRAFLAGS", "-no-such-option")
    monkeypatch.setenv("MAKEFLAGS", "--no-such-option")
    assert statuses(folder)["twice_zero"].status == "proved"


@needs_prover
def test_a_file_that_is_not_listed_is_an_error(tmp_path):
    folder = make_project(tmp_path / "tiny", Honest=HONEST)
    (folder / "theories/Forgotten.v").write_text("Theorem t : 1 = 1. Proof. reflexivity. Qed.\n")
    with pytest.raises(TheoremError, match=r"Forgotten\.v"):
        proof_status(folder)


@needs_prover
def test_two_theorems_of_one_name_are_an_error(tmp_path):
    source = "Theorem same : 1 = 1. Proof. reflexivity. Qed.\n"
    with pytest.raises(TheoremError, match=r"two theorems named same"):
        proof_status(make_project(tmp_path / "tiny", First=source, Second=source))


@needs_prover
def test_a_proof_that_fails_is_an_error_with_its_place(tmp_path):
    source = "Theorem wrong : 1 = 2.\nProof. reflexivity. Qed.\n"
    with pytest.raises(TheoremError, match=r"Wrong\.v.*line 2"):
        proof_status(make_project(tmp_path / "tiny", Wrong=source))


@needs_prover
def test_old_compiled_files_do_not_answer_for_new_text(tmp_path):
    folder = make_project(tmp_path / "tiny", Honest=HONEST)
    proof_status(folder)
    source = folder / "theories/Honest.v"
    before = source.stat()
    source.write_text(HONEST.replace("0 < n -> 0", "1 < n -> 0").replace("twice 0 = 0", "0 = 1"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TheoremError, match="compiled from another text"):
        proof_status(folder)


@pytest.fixture(scope="module")
def locked_once(tmp_path_factory):
    """A compiled project, and a lock of it."""
    place = tmp_path_factory.mktemp("locked")
    folder, lock = make_project(place / "tiny", Honest=HONEST), place / "lock.json"
    write_lock(folder, lock)
    return folder, lock


@pytest.fixture
def locked(locked_once, tmp_path):
    """The same, to change."""
    return shutil.copytree(locked_once[0], tmp_path / "tiny"), locked_once[1]


@needs_prover
def test_lock_round_trip(locked):
    folder, path = locked
    assert check_lock(folder, path) == read_lock(path)
    assert locked_statuses(folder, path) == proof_status(folder)
    assert locked_statuses(None, path) == proof_status(folder)


CHANGES = {
    "deleted theorem": (
        ("Theorem twice_zero", "Lemma twice_zero"),
        "twice_zero: in the lock, not in the sources",
    ),
    "new theorem": (
        ("Definition twice", "Theorem new : 1 = 1. Proof. reflexivity. Qed. Definition twice"),
        "new: in the sources, not in the lock",
    ),
    "changed statement": (
        ("twice 0 = 0.", "twice 0 = 0 * 1."),
        "twice_zero: statement was 'twice 0 = 0', is 'twice 0 = 0 [*] 1'",
    ),
    "new premise in the section": (
        ("positive : 0 < n.\nTheorem", "never : n < n -> 0 < n. Hypothesis h : n < n.\nTheorem"),
        "positive_again: statement was .* -> 0 < n', is .* [(]n < n -> 0 < n[)] -> n < n -> 0 < n'",
    ),
    "proof given up": (
        ("Proof. reflexivity. Qed.", "Admitted."),
        "twice_zero: status was 'proved', is 'open'",
    ),
    "changed definition": (("n + n", "n + n + 0"), "the sources"),
    "changed comment": (("gives nothing", "gives naught"), "the sources"),
}


@needs_prover
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_sources_is_not_covered_by_the_lock(change, message, locked):
    folder, path = locked
    source = folder / "theories/Honest.v"
    assert change[0] in HONEST
    source.write_text(HONEST.replace(*change).replace("exact positive", "now auto"))
    assert {status.status for status in locked_statuses(folder, path)} == {"stale"}
    with pytest.raises(TheoremError, match=message):
        check_lock(folder, path)


def test_stale_says_why(tmp_path):
    """Without a prover: the lock of the package does not answer for other sources."""
    folder = make_project(tmp_path / "tiny", Honest=HONEST)
    entries = locked_statuses(folder)
    assert {entry.status for entry in entries} == {"stale"}
    assert all("changed after this was computed" in entry.reasons[0] for entry in entries)


def test_without_a_prover_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install"):
        proof_status(make_project(tmp_path / "tiny", Honest=HONEST))


def test_a_lock_with_unknown_fields_is_an_error(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text('{"schema_version": 1, "trust": "me"}')
    with pytest.raises(TheoremError, match="not a lock of the proofs"):
        read_lock(path)
    with pytest.raises(TheoremError, match="no lock of the proofs"):
        read_lock(tmp_path / "absent.json")


def test_digest_sees_every_source_and_no_line_end(tmp_path):
    folder = make_project(tmp_path / "tiny", Honest=HONEST, Other="Definition a := 1.\n")
    digest = sources_digest(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in [*copy.rglob("*.v"), copy / "_CoqProject"]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert sources_digest(copy) == digest
    for name in ["_CoqProject", "theories/Honest.v", "theories/Other.v"]:
        path = copy / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert sources_digest(copy) != digest
        path.write_bytes(before)
    (copy / "theories/Other.v").rename(copy / "theories/Another.v")
    assert sources_digest(copy) != digest
    with pytest.raises(TheoremError, match="not a Rocq project"):
        sources_digest(tmp_path)


def test_comments_nest_and_hide_what_they_hold():
    text = 'a (* b (* c *) "*)" Admitted. *) d "x (* y" e\n(* Axiom\nz *) f'
    plain = strip_comments(text)
    assert plain.split() == ["a", "d", '"', '"', "e", "f"]
    assert plain.count("\n") == text.count("\n")
    assert len(plain) == len(text)


def test_scan_reports_places():
    scan = scan_source(
        "Module M.\nSection S.\nVariable x : nat.\n#[local]\nTheorem t : True.\nProof. Admitted.\n"
        "End S.\nVariable y : nat.\nEnd M.\nAxioms (a b : nat) (c : bool).\n"
    )
    assert [(t.name, t.qualified, t.line) for t in scan.theorems] == [("t", "M.t", 4)]
    assert scan.admitted == {"t"}
    assert scan.assumed == {"y", "a", "b", "c"}
    assert scan.findings == ("line 8: Variable y", "line 10: Axioms a b c")


def test_the_lock_of_the_package_belongs_to_these_sources():
    """Runs without a prover: whoever edits a proof must write the lock again."""
    if not ROCQ_FOLDER.is_dir():
        pytest.skip("the Rocq sources are not beside these tests (an installed package)")
    lock = read_lock()
    assert lock.digest == sources_digest(ROCQ_FOLDER)
    assert {status.status for status in lock.theorems} == {"proved"}
    assert {axiom for status in lock.theorems for axiom in status.axioms} <= set(ALLOWED_AXIOMS)


GROUPED = """\
Require Import Classical FunctionalExtensionality.
Theorem free_one : 1 = 1. Proof. reflexivity. Qed.
Theorem classical_one : forall P, P \\/ ~ P. Proof. exact classic. Qed.
Theorem free_two : 2 = 2. Proof. reflexivity. Qed.
Theorem classical_two : forall P, ~ P \\/ P. Proof. intro P. destruct (classic P); tauto. Qed.
"""
MORE_AXIOMS = """\
Theorem free_two : 2 = 2. Proof.
pose (f := @functional_extensionality_dep nat (fun _ => nat)). reflexivity. Qed."""


@needs_prover
def test_asking_together_finds_what_asking_alone_finds(tmp_path):
    folder = make_project(tmp_path / "tiny", Grouped=GROUPED)
    alone = proof_status(folder)
    known = {status.name: status for status in alone}
    assert [len(status.axioms) for status in alone] == [0, 1, 0, 1]
    assert proof_status(folder, known) == alone
    without = {name: status for name, status in known.items() if name != "classical_two"}
    assert proof_status(folder, without) == alone


@needs_prover
def test_one_theorem_that_gains_an_axiom_is_told_from_its_group(tmp_path):
    folder = make_project(tmp_path / "tiny", Grouped=GROUPED)
    lock = tmp_path / "lock.json"
    write_lock(folder, lock)
    honest = "Theorem free_two : 2 = 2. Proof. reflexivity. Qed."
    (folder / "theories/Grouped.v").write_text(GROUPED.replace(honest, MORE_AXIOMS))
    with pytest.raises(TheoremError) as caught:
        check_lock(folder, lock)
    assert "free_two: axioms was (), is ('FunctionalExtensionality." in str(caught.value)
    assert "free_one" not in str(caught.value)


def _require_library() -> None:
    where = subprocess.run(["coqc", "-where"], capture_output=True, text=True, check=True)
    if not Path(where.stdout.strip(), "user-contrib/mathcomp/analysis").is_dir():
        pytest.skip("libcoq-mathcomp-analysis is not installed")
    if not ROCQ_FOLDER.is_dir():
        pytest.skip("the Rocq sources are not beside these tests (an installed package)")


@needs_prover
@pytest.mark.slow
def test_the_proofs_compile_and_match_their_lock():
    _require_library()
    check_lock(ROCQ_FOLDER)


@needs_prover
def test_the_compiled_proofs_match_their_lock():
    """The same where somebody has compiled; then it takes seconds."""
    _require_library()
    if not is_compiled(read_project(ROCQ_FOLDER)):
        pytest.skip("the proofs are not compiled as they stand; `make proofs` does so")
    check_lock(ROCQ_FOLDER)
