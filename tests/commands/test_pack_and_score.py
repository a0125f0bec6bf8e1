"""``qsweep pack`` and ``qsweep score``, as they are typed."""

import json
import shutil

import pytest

from helpers.reference_packs import text_file
from helpers.sweeps import rows
from qsweep.commands.main import main

pytestmark = pytest.mark.usefixtures("warm_jobs")
BRIEF = ["eval.context=64", "eval.max_windows=3", "device=cpu", "tracking=none"]


def test_a_model_is_packed_and_artifacts_are_scored_without_it(tmp_path, pocket_dir, capfd):
    text, pack = text_file(tmp_path), tmp_path / "a pack, with=odd name.pack"
    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    made = [*BRIEF, "corpus=file", f"corpus.path={text}", f"outputs_dir={tmp_path / 'there'}"]
    assert main(["pack", str(model), "-o", str(pack), "--tokens", "100", *made]) == 0
    out = capfd.readouterr().out
    assert "2 windows, 126 scored tokens; signature " in out and pack.is_file()
    artifact, other = tmp_path / "artifact", tmp_path / "other"
    model.rename(artifact)  # the model itself is gone
    shutil.copytree(artifact, other)
    content = json.loads((other / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    score = ["score", str(artifact), str(other), "--reference", str(pack)]
    here = ["device=cpu", "tracking=none", "sweep=t", f"outputs_dir={tmp_path / 'here'}"]
    assert main([*score, *here]) == 1
    out, err = capfd.readouterr()
    assert "rank  artifact" in out and "1.000" in out and "against model, ppl " in out
    assert "failed: other: " in out and "the same pieces, but other merges" in out
    found = {row["method"]: row for row in rows(tmp_path / "here") if row["status"] == "finished"}
    assert float(found["existing"]["kld"]) == 0
    assert found["existing"]["tokens_scored"] == "126" and found["none"]["corpus"] == "text.txt"
    # once more, it is all there; a byte that flipped since then is seen all the same
    assert main(["score", str(artifact), "--reference", str(pack), *here]) == 0
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    capfd.readouterr()
    assert main(["score", str(artifact), "--reference", str(pack), *here]) == 2
    err = capfd.readouterr().err
    assert "damaged, its content is not what was signed" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["pack", "pockt", "-o", "x"],
            "MODEL pockt: neither a directory, a GGUF file nor a model; did you mean",
        ),
        (["pack", "pocket", "-o", "."], "is a directory; give the name of a file"),
        (["pack", "pocket", "-o", "x", "quant=gptq"], "quant: a pack is of the unquantized model"),
        (["pack", "pocket", "-o", "x", "eval.divergence=false"], "eval.divergence=false: a pack"),
        (["pack", "pocket", "-o", "x", "eval=embedded"], "eval.tasks: a pack holds no task's"),
        (["pack", "pocket", "-o", "x", "seed=1,2"], "a pack is of one reference"),
        (["pack", "pocket", "-o", "x", "eval.presets=[papr]"], "no preset 'papr'"),
        (
            ["score", ".", "--reference", "nowhere"],
            "--reference nowhere: neither a directory, a GGUF",
        ),
        (["score", ".", "--reference", "no.pack"], "no.pack: not a whole safetensors file"),
        (["score", "gone.gguf", "--reference", "pocket"], "gone.gguf"),
        (["score", ".", "--reference", "pocket", "bits=3"], "bits: is what the artifact was made"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.pack").write_bytes(b"PACK" + bytes(50))
    assert main([*words, "tracking=none"]) == 2
    err = capfd.readouterr().err
    assert message in err and len(err.splitlines()) == 1, err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["no.pack"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "pocket"], "the following arguments are required: -o/--out"),
        (["pack", "pocket", "-o", "x", "--tokens", "0"], "0: a number from 1"),
        (["pack", "pocket", "-o", "x", "--head", "int3"], "invalid choice: 'int3'"),
        (["score", "--reference", "pocket", "corpus=c4"], "are required: ARTIFACT"),
    ],
)
def test_options_that_are_missing_or_wrong_are_named(words, message, capfd):
    with pytest.raises(SystemExit) as ended:
        main(words)
    err = capfd.readouterr().err
    assert ended.value.code == 2 and message in err and len(err.splitlines()) == 1
