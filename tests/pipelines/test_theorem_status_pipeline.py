"""The status of statements on tiny Rocq projects: every way to cheat turns it red, by name."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from gonio.errors import MissingDependencyError, RecordError, SettingError
from gonio.pipelines.theorem_status import theorem_status
from gonio.pipelines.theorems import CheckSettings
from gonio.site.collection import collect
from gonio.site.interchange import read_json
from gonio.site.statements import count_families, make_cards
from gonio.theorems import get_entry, load_families
from gonio.theorems.rocq import has_prover, write_lock
from gonio.theorems.status_file import TheoremStatusFile, read_status_file

needs_prover = pytest.mark.skipif(
    not has_prover(), reason="the Rocq prover (coqc, coq_makefile, make) is not installed"
)
ROCQ_FOLDER = Path(__file__).resolve().parents[2] / "rocq"


@dataclass(frozen=True)
class Cheat:
    """An edit of one honest file, and what must be said of its theorem."""

    old: str
    new: str
    says: str
    status: str = "failed"


HONEST = """\
Definition zero := 0.
Section S.
Variable n : nat.
Theorem NAME : n + zero = n.
Proof. unfold zero. induction n as [|m IH]. reflexivity. simpl. rewrite IH. reflexivity. Qed.
End S.
"""
PROOF = "unfold zero. induction n as [|m IH]. reflexivity. simpl. rewrite IH. reflexivity. Qed."
CHEATS = {
    "admitted": Cheat(PROOF, "Admitted.", "status was 'proved', is 'open'", "open"),
    "admit": Cheat(PROOF, "admit. Admitted.", "status was 'proved', is 'open'", "open"),
    "axiom": Cheat(PROOF, "exact (cheat n). Qed.", "rests on Cheats.cheat"),
    "local_axiom": Cheat(
        "Section S.",
        "#[local] Axiom shortcut : forall n, n + zero = n.\nSection S.",
        "Axiom shortcut",
    ),
    "guard_off": Cheat(
        "Section S.",
        "Unset Guard Checking.\nFixpoint loop (n : nat) : False := loop n.\nSection S.",
        "Unset Guard Checking",
    ),
    "guard_bypassed": Cheat(
        PROOF, "destruct (loop 0). Qed.", "is assumed to be guarded"
    ),
    "positivity_bypassed": Cheat(
        "Section S.",
        "#[bypass_check(positivity)] Inductive bad := mk (f : bad -> False).\nSection S.",
        "bypass_check",
    ),
    "universes_off": Cheat(
        "Section S.", "Unset Universe Checking.\nSection S.", "Unset Universe Checking"
    ),
    "hypothesis": Cheat(
        "Variable n : nat.",
        "Variable n : nat. Hypothesis given : n + zero = n.",
        "is 'forall n : nat, n + zero = n -> n + zero = n'",
        "proved",
    ),
    "weakened": Cheat(
        "n + zero = n.\n",
        "n + zero = n \\/ n = n.\n",
        "is 'forall n : nat, n + zero = n \\\\/ n = n'",
        "proved",
    ),
    "renamed": Cheat("Theorem renamed", "Lemma renamed", "in the lock, not in the sources", "open"),
    "deleted": Cheat(HONEST, "", "in the lock, not in the sources", "open"),
}  # fmt: skip
# Theorems use what a file that is not scanned with them provides: only the prover sees these two.
PROVIDED = """\
Axiom cheat : forall n, n + 0 = n.
#[bypass_check(guard)] Fixpoint loop (n : nat) : False := loop n.
"""


def _text(name: str) -> str:
    return "From Tiny Require Import Cheats.\n" + HONEST.replace("NAME", name)


def _edited(name: str) -> str:
    cheat = CHEATS[name]
    text = HONEST.replace("NAME", name)
    old = cheat.old.replace("NAME", name)
    assert old in text
    edited = text.replace(old, cheat.new)
    if name in ("hypothesis", "weakened"):
        proof = "exact given. Qed." if name == "hypothesis" else "right. reflexivity. Qed."
        edited = edited.replace(PROOF, proof)
    return "From Tiny Require Import Cheats.\n" + edited


def _project(folder: Path, names: list[str], text) -> Path:
    (folder / "theories").mkdir(parents=True)
    listed = ["Cheats", *(name.capitalize() for name in names)]
    (folder / "_CoqProject").write_text(
        "\n".join(["-R theories Tiny", *(f"theories/{name}.v" for name in listed)]) + "\n"
    )
    (folder / "theories/Cheats.v").write_text(PROVIDED)
    for name in names:
        (folder / f"theories/{name.capitalize()}.v").write_text(text(name))
    return folder


def _entries(names):
    base = get_entry("zero_init")
    update = {"rocq_also": (), "rocq_gap": None}
    return [base.model_copy(update={"name": n, "rocq": n} | update) for n in names]


NAMES = [*CHEATS, "honest"]


@pytest.fixture(scope="module")
def lock(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("honest")
    write_lock(_project(place / "tiny", NAMES, _text), place / "lock.json")
    return place / "lock.json"


@pytest.fixture(scope="module")
def cheated(lock, tmp_path_factory) -> TheoremStatusFile:
    """One project in which every theorem but one has come to cheat in its own way."""
    folder = _project(
        tmp_path_factory.mktemp("cheated") / "tiny",
        NAMES,
        lambda name: _text(name) if name == "honest" else _edited(name),
    )
    return theorem_status(folder, mode="compile", checks=None, entries=_entries(NAMES), lock=lock)


@needs_prover
@pytest.mark.parametrize("name", CHEATS)
def test_every_way_to_cheat_is_drift(name, cheated):
    cheat = CHEATS[name]
    mine = [message for message in cheated.drift if message.startswith(f"{name}: ")]
    row = next(row for row in cheated.theorems if row.name == name)
    assert any(cheat.says in message for message in mine), mine
    assert row.status == cheat.status
    assert cheated.is_red


@needs_prover
def test_a_neighbour_of_cheats_stays_proved(cheated):
    row = next(row for row in cheated.theorems if row.name == "honest")
    assert (row.status, row.axioms) == ("proved", ())
    assert not any(message.startswith("honest: ") for message in cheated.drift)
    assert {row.name for row in cheated.theorems if row.missing} == {"renamed", "deleted"}


@needs_prover
def test_a_name_the_lock_never_had_is_drift_too(lock, tmp_path):
    """Deleted from sources and lock alike: the catalogue still names it."""
    folder = _project(tmp_path / "tiny", ["honest"], _text)
    write_lock(folder, tmp_path / "lock.json")
    found = theorem_status(
        folder,
        mode="compile",
        checks=None,
        entries=_entries(["honest", "gone"]),
        lock=tmp_path / "lock.json",
    )
    assert found.drift == ("gone: gone rests on it, and no theorem of the proofs has that name",)
    assert found.counts == {"statements": 2, "proved": 1, "open": 1}
    assert found.proofs.method == "compiled"
    assert found.proofs.sources == "those of the lock"


def test_without_a_prover_the_lock_is_believed_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = theorem_status(None, checks=None)
    assert (found.proofs.method, found.proofs.sources) == ("lock", "absent")
    assert not found.is_red
    if ROCQ_FOLDER.is_dir():
        with pytest.raises(MissingDependencyError, match="apt-get install"):
            theorem_status(ROCQ_FOLDER, mode="compile", checks=None)


def test_a_lock_of_other_sources_proves_nothing(tmp_path):
    folder = _project(tmp_path / "tiny", ["honest"], _text)
    found = theorem_status(folder, mode="lock", checks=None)
    assert found.proofs.sources == "changed"
    assert found.drift == (f"the sources in {folder} changed after this was computed",)
    assert {row.status for row in found.theorems} <= {"open", "deprecated"}
    assert found.is_red


def test_what_cannot_be_is_refused():
    with pytest.raises(SettingError, match="name the Rocq project"):
        theorem_status(None, mode="compile", checks=None)
    with pytest.raises(SettingError, match="coqchk reads compiled proofs"):
        theorem_status(None, mode="lock", with_library=True, checks=None)


def test_the_site_shows_the_statuses_of_the_file(tmp_path):
    """Checks and proofs of the file, counted by the site as the file counts them."""
    found = theorem_status(None, mode="lock", checks=CheckSettings(examples=1))
    path = tmp_path / "theorem-status.json"
    path.write_text(found.model_dump_json(), "utf-8")
    assert read_status_file(path) == found
    families = load_families()
    cards = make_cards(families, collect([path]), {}, {})
    assert {card.entry.name: card.status for card in cards} == {
        row.name: row.status for row in found.theorems
    }
    for family in count_families(families, cards):
        counts = {word: number for word, number in family.counts.items() if number}
        assert counts | {"statements": family.total} == found.family_counts[family.letter]


def test_statuses_without_checks_are_statuses_but_no_record(tmp_path):
    path = tmp_path / "theorem-status.json"
    found = theorem_status(None, mode="lock", checks=None)
    path.write_text(found.model_dump_json(), "utf-8")
    collection = collect([path])
    assert collection.records == ()
    assert collection.statuses == found
    with pytest.raises(RecordError, match="again without --no-checks"):
        read_json(path)


TITLE = "Theorem lower_bound_of_intent (delta : R) : 0 < delta ->"
LIBRARY_EDITS = {
    "admitted": ([("exact: Cs.\nQed.", "Admitted.")], "status was 'proved', is 'open'"),
    "deleted": ([("Theorem", "Lemma")], "in the lock, not in the sources"),
    "weakened": (
        [(TITLE, f"{TITLE} (0 < 1 :> R) ->"), ("move=> d0; split", "move=> d0 _; split")],
        "statement was",
    ),
}


@needs_prover
@pytest.mark.slow
@pytest.mark.parametrize(("edits", "says"), LIBRARY_EDITS.values(), ids=list(LIBRARY_EDITS))
def test_an_edit_of_one_proof_of_the_library_is_red(edits, says, tmp_path):
    if not ROCQ_FOLDER.is_dir():
        pytest.skip("the Rocq sources are not beside these tests (an installed package)")
    folder = shutil.copytree(ROCQ_FOLDER, tmp_path / "rocq")
    source = folder / "theories/Intent.v"
    text = source.read_text("utf-8")
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    source.write_text(text, "utf-8")
    found = theorem_status(folder, mode="compile", checks=None)
    assert found.is_red
    assert any(
        change.startswith("lower_bound_of_intent: ") and says in change for change in found.drift
    )
