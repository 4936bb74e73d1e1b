"""The commands that make each kind of record, as the pages name them where one is missing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMMANDS", "PURPOSES", "WAYS", "Way"]

# The command of each kind of record, in the order of the pages.
COMMANDS = {
    "training": "gonio train dpo",
    "adapter-spectrum": "gonio adapter inspect",
    "adapter-base-overlap": "gonio adapter compare",
    "adapter-pair": "gonio adapter compare",
    "adapter-fleet": "gonio adapter inspect",
    "adapter-sweep": "gonio adapter sweep",
    "study": "gonio study run",
    "key-geometry": "gonio cache observe",
    "cache-calibration": "gonio cache calibrate",
    "cache-evaluation": "gonio cache evaluate",
    "cache-certificate": "gonio cache certify",
    "cache-allocation": "gonio cache allocate",
    "cache-comparison": "gonio cache compare",
    "weight-signs": "gonio weights measure",
    "theorem-check": "gonio theorem check",
}
# What each kind holds, a few words.
PURPOSES = {
    "training": "training curves",
    "adapter-spectrum": "spectra of adapters",
    "adapter-base-overlap": "overlap with the base model",
    "adapter-pair": "overlap between adapters",
    "adapter-fleet": "many adapters at once",
    "adapter-sweep": "performance by rank",
    "study": "models, recipes and seeds compared",
    "key-geometry": "geometry of the keys",
    "cache-calibration": "codecs beside the limits",
    "cache-evaluation": "predictions through a compressed cache",
    "cache-certificate": "bounds on attention outputs",
    "cache-allocation": "bits shared over layers",
    "cache-comparison": "other packages on the same windows",
    "weight-signs": "weights under one bit",
    "theorem-check": "checks of the theorems",
}
# The rest of a whole command line on the bundled model; the record goes where the last word says.
_ARGUMENTS = {
    "training": "smollm2-135m --data bundled --out runs/dpo --json --output training.json",
    "adapter-spectrum": "runs/dpo --json --output spectrum.json",
    "adapter-base-overlap": "runs/dpo --base smollm2-135m --json --output base.json",
    "adapter-pair": "runs/dpo runs/clm --json --output pair.json",
    "adapter-fleet": "runs --fleet --json --output fleet.json",
    "adapter-sweep": (
        "smollm2-135m --truncate runs/dpo --rank 1 --rank 4 --rank 16 --json --output ranks.json"
    ),
    "study": "small --out studies/small",
    "key-geometry": "smollm2-135m --json --output keys.json",
    "cache-calibration": (
        "smollm2-135m --method entropy --bits 2 --out codec.safetensors --json --output codec.json"
    ),
    "cache-evaluation": ("smollm2-135m --codec codec.safetensors --json --output predictions.json"),
    "cache-certificate": "smollm2-135m --codec codec.safetensors --json --output bounds.json",
    "cache-allocation": "smollm2-135m --bits 2.25 --compare --json --output budget.json",
    "cache-comparison": "smollm2-135m --install --json --output packages.json",
    "weight-signs": "smollm2-135m --layers 0,15,29 --json --output weights.json",
    "theorem-check": "--json --output checks.json",
}
# Kinds that `gonio demo` measures with all that their sections draw.
_DEMO_KINDS = frozenset(
    {
        *("training", "adapter-spectrum", "adapter-base-overlap", "adapter-pair"),
        *("key-geometry", "cache-evaluation", "theorem-check"),
    }
)


@dataclass(frozen=True)
class Way:
    """How a kind of record comes to a site.

    Attributes:
        purpose: What the kind holds, a few words.
        command: The command.
        line: A whole command line that can be run as it stands, once what it reads is there.
        target: The file or folder with the record: what ``gonio site build --from`` is given.
        is_in_demo: Whether ``gonio demo`` measures it too.
    """

    purpose: str
    command: str
    line: str
    target: str
    is_in_demo: bool


WAYS = {
    kind: Way(
        purpose=PURPOSES[kind],
        command=command,
        line=f"{command} {_ARGUMENTS[kind]}",
        target=_ARGUMENTS[kind].rpartition(" ")[2],
        is_in_demo=kind in _DEMO_KINDS,
    )
    for kind, command in COMMANDS.items()
}
