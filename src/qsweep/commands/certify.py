"""``qsweep certify TRIAL --margin "ppl 1 %, kld 0.02, mmlu 1 point"``: is it no worse than that?

TRIAL, a trial's key, its name or ``best``, is tested against the unquantized model, or against
another trial with --against. By each measure its loss has to stay within the margin:

  ppl    perplexity, in % (of another text: ppl:CORPUS, ppl:CORPUS:PRESET, and so with the others)
  kld    KL divergence from the unquantized model, in nats
  top1   how often both prefer the same token, in points
  a task or a capability that was run, by its name, in points

and by runs as it is served: ppl_activations, kld_kv, ... What is not significantly worse is not
thereby shown to be no worse; where too little was measured, the certificate says how much would do.

Exit code 0: accepted by all measures; 1: rejected by one; 3: not decided; 2: nothing is said, as
there is no such trial or measure, or it was not measured, or an error came between.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.shared import add_remote, shared_store
from qsweep.commands.trials import all_records, one_of

if TYPE_CHECKING:
    from qsweep.base.store import Store
    from qsweep.results.arrays import FindArrays
    from qsweep.results.certificate.certificate import Certificate
    from qsweep.results.certificate.sides import Sides
    from qsweep.results.record import Measurement, Record

_CODES = {"accept": 0, "reject": 1, "inconclusive": 3}


# An exit code of 1 would say that the trial is rejected, which no error does.
@command(invalid=QsweepError, otherwise=2)
def main(arguments: Sequence[str] | None = None) -> int:
    """Certify one trial; the exit code is the answer."""
    from qsweep.results.certificate.certificate import certify
    from qsweep.results.certificate.margins import parse_margins
    from qsweep.results.certificate.pages import markdown

    typed = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(typed)
    margins = parse_margins(", ".join(options.margin))
    pages = [(path, _page_of(path)) for path in options.out]
    records = all_records(options.outputs, options.sweep)
    sides = _sides(options, records)
    found = certify(sides, margins, records, shlex.join(["qsweep", "certify", *typed]))
    for path, page in pages:
        _write(path, page(found))
    if options.json:
        print(_as_json(found), end="")
    elif pages:
        print("\n".join([found.sentence, *(str(path) for path, _ in pages)]))
    else:
        print(markdown(found), end="")
    return _CODES[found.outcome]


def _sides(options: argparse.Namespace, records: Sequence["Record"]) -> "Sides":
    from qsweep.results.certificate.sides import Sides

    trial = one_of(records, options.trial, options.outputs)
    against = None
    if options.against is not None:
        against = one_of(records, options.against, options.outputs)
        if (trial.model, trial.model_hash) != (against.model, against.model_hash):
            raise ConfigError(
                f"--against {options.against}: is of {against.model}, and {trial.name} of another "
                "model; give a trial of the same"
            )
    references = [
        r for r in records if r.finished and r.reference and r.model_hash == trial.model_hash
    ]
    store = shared_store(options.outputs, options.remote)
    return Sides(trial, against, references, store, _arrays_in(store))


def _arrays_in(store: "Store") -> "FindArrays":
    """Tells where arrays are, which may be in the store's remote copy only."""
    from qsweep.results.arrays import stored_arrays

    def find(record: "Record", measurement: "Measurement") -> Path | None:
        entry = store.find("measurements", measurement.key, full=True) if measurement.key else None
        file = measurement.file if entry is None else str(entry.path)
        return stored_arrays(record, replace(measurement, file=file))

    return find


def _page_of(path: Path) -> "Callable[[Certificate], str]":
    """What writes a certificate in the form that a file's name asks for."""
    from qsweep.results.certificate.pages import html, markdown

    forms = {".md": markdown, ".html": html, ".htm": html, ".json": _as_json}
    if path.suffix.lower() not in forms:
        raise ConfigError(f"--out {path}: its name has to end in .md, .html or .json")
    return forms[path.suffix.lower()]


def _as_json(found: "Certificate") -> str:
    from qsweep.results.certificate.pages import json_of

    return json.dumps(json_of(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    from qsweep.base.files import write_bytes

    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise QsweepError(f"{path}: {error.strerror}; give --out another FILE") from error


def parser() -> Parser:
    """Its options."""
    parser = command_parser("certify", __doc__)
    parser.add_argument("trial", metavar="TRIAL", help="a key, a name, or best")
    parser.add_argument(
        "--margin",
        action="append",  # else the last one would replace those before, and accept without them
        required=True,
        metavar="MARGINS",
        help="by which measures, and how much worse at most, as above; may be given again",
    )
    parser.add_argument(
        "--against", metavar="TRIAL", help="another trial; default: the unquantized model"
    )
    parser.add_argument("--sweep", help="look only in this sweep")
    parser.add_argument(
        "--out",
        type=absolute,
        action="append",
        default=[],
        metavar="FILE",
        help="the certificate as FILE.md, FILE.html or FILE.json; several may be given",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_remote(parser, "where what is not here lies; default: that of the last sweep with one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
