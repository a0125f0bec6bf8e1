"""A disk that fills up is told as one, whatever the library says that met it first."""

import errno
import shutil
import tempfile

import pytest

from helpers.machine import tmpfs
from helpers.synthetic import synthetic
from helpers.typed import typed
from qsweep.base.disk import check_writable, disk_full, has_no_room, is_disk_full
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import write_bytes
from qsweep.base.scratch import on_disk
from qsweep.base.store import Store
from qsweep.launch.reasons import explain

FULL = "no space left on"


def fill(folder):
    """Leave no room at all."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.fixture
def disk(tmp_path):
    with tmpfs(tmp_path / "disk", "8m") as folder:
        yield folder


def test_a_write_says_which_file_did_not_fit(disk):
    fill(disk)
    with pytest.raises(OSError) as caught:
        write_bytes(disk / "some.json", b"x" * 10_000)
    assert is_disk_full(caught.value) and caught.value.filename == str(disk / "some.json")
    assert explain(caught.value) == disk_full(disk)
    assert [p.name for p in disk.iterdir()] == ["filler"]


def with_safetensors(out):
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(16 << 20, dtype=torch.uint8)}, out / "model.safetensors")


def with_words_of_its_own(out):
    fill(out)
    raise RuntimeError("basic_ios::clear: iostream error")


def with_torch(out):
    import torch

    torch.save(torch.zeros(16 << 20, dtype=torch.uint8), out / "model.bin")


def with_numpy(out):
    import numpy

    numpy.save(out / "array.npy", numpy.zeros(16 << 20, dtype=numpy.uint8))


def behind_another_error(out):
    try:
        fill(out)
        (out / "more").write_bytes(bytes(10_000))
    except OSError:
        (out / "filler").unlink()
        raise ValueError("cannot save") from None


@pytest.mark.parametrize(
    "make",
    [with_safetensors, with_torch, with_numpy, with_words_of_its_own, behind_another_error],
    ids=lambda make: make.__name__,
)
def test_whoever_makes_an_entry(make, disk):
    store = Store(disk / "store")
    with pytest.raises(QsweepError, match=FULL):
        store.build("artifacts", {"what": "test"}, make)
    assert not has_no_room(disk)
    assert list((disk / "store/artifacts").iterdir()) == []


def test_another_failure_is_told_as_what_it_is(disk):
    with pytest.raises(RuntimeError, match="basic_ios"):
        Store(disk / "store").build("artifacts", {"what": "test"}, fail)


def test_a_folder_for_temporary_files_that_is_full_is_named(disk, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(tempfile, "tempdir", str(disk))

    def make(out):
        on_disk(torch.zeros(16 << 20, dtype=torch.uint8))
        return {}

    with pytest.raises(QsweepError) as caught:
        Store(tmp_path / "store").build("artifacts", {"what": "test"}, make)
    said = str(caught.value)
    assert said.startswith(f"{FULL} the disk of {disk}, ") and said.endswith("with TMPDIR=DIR")
    assert explain(caught.value) == said and "outputs_dir" not in said
    assert list(disk.iterdir()) == [] and list((tmp_path / "store/artifacts").iterdir()) == []


def fail(out):
    raise RuntimeError("basic_ios::clear: iostream error")


def test_a_report_that_does_not_fit_is_one_line(disk):
    from qsweep.results.html import report_sweep

    fill(disk)
    said = []
    report_sweep(disk, typed(synthetic(3)), "", said.append)
    assert len(said) == 1 and disk_full(disk) in said[0]


@pytest.fixture(scope="module")
def base(tiny_model, conversions):
    """An unquantized GGUF file."""
    pytest.importorskip("llama_cpp")
    from qsweep.base.errors import BackendUnavailable
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.conversion.base import unquantized

    (out := conversions / "full-disk").mkdir()
    try:
        with unquantized(SourceModel(read_facts(tiny_model("llama"), "llama"), "cpu"), out) as made:
            return made.path
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_llama_cpps_quantizing(disk, base):
    from qsweep.formats.gguf.native import quantize_file
    from qsweep.formats.gguf.types import file_type

    (disk / "filler").write_bytes(bytes(7 << 20))

    def make(out):
        quantize_file(base, out / "model.gguf", file_type("Q8_0"), None)
        return {}

    with pytest.raises(QsweepError, match=FULL):
        Store(disk / "store").build("artifacts", {"what": "test"}, make)


@pytest.mark.slow  # the next has it in a trial's place, and what is left of it
def test_llama_cpps_converter(disk, base, tiny_model):
    from qsweep.formats.gguf.converter import convert

    (disk / "filler").write_bytes(bytes(7 << 20))
    with pytest.raises(OSError) as caught:
        convert(tiny_model("llama"), disk / "base.gguf", "bf16")
    assert is_disk_full(caught.value)


def test_a_conversion_that_did_not_fit_leaves_the_room_to_the_results(disk, base, tiny_model):
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.conversion.base import unquantized

    (disk / "filler").write_bytes(bytes(6 << 20))

    def make(out):
        with unquantized(SourceModel(read_facts(tiny_model("llama"), "tiny"), "cpu"), out):
            return {}

    with pytest.raises(QsweepError, match=FULL):
        Store(disk / "store").build("artifacts", {"what": "test"}, make)
    assert not has_no_room(disk)
    assert not list(disk.rglob("*.tmp"))


@pytest.mark.slow
def test_a_damaged_conversion_is_made_again(base, tiny_model, tmp_path):
    from helpers.damage import flip
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.conversion.base import unquantized

    model = SourceModel(read_facts(tiny_model("llama"), "tiny"), "cpu")
    out = tmp_path / "artifacts" / ".one.tmp"
    out.mkdir(parents=True)
    with unquantized(model, out) as first:
        right, path = first.path.read_bytes(), first.path
    for damage in (flip, lambda file: file.with_name("layout.json").write_text("[]")):
        damage(path)
        with unquantized(model, out) as again:
            assert again.path.read_bytes() == right
    shutil.rmtree(path.parent)


def test_a_folder_that_is_a_link_to_nothing_is_told_as_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"link: cannot be written \(is a link to .*/nowhere, wh"):
        check_writable(tmp_path / "link")
