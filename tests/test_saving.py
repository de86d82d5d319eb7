"""Saving: transformers opens what we write, and no interruption loses the model that was there."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import change_json, make_ours, same, tiny_config
from safetensors import SafetensorError
from torch import nn

from minipali import saving, weights
from minipali.config import preset
from minipali.paligemma import PaliGemma
from minipali.saving import recover, save
from minipali.tokens import Processor
from minipali.weights import WeightsError, load, read_header

# --- what is written -----------------------------------------------------------------------------


def test_the_shipped_files_are_what_save_writes(small_folder, tmp_path):
    """assets/small holds them ready-made; they must not fall behind the code."""
    config = preset("small")
    alone = Path(shutil.copy(small_folder / "tokenizer.model", tmp_path))
    save(PaliGemma(config), Processor(alone, config), tmp_path / "model")
    for name in (
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shipped = json.loads((small_folder / name).read_text(encoding="utf-8"))
        assert shipped == json.loads((tmp_path / "model" / name).read_text(encoding="utf-8")), name


def test_saved_in_bfloat16(saved, tmp_path):
    model, processor = load(saved, dtype="bfloat16")
    save(model, processor, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    header = read_header(tmp_path / "half" / "model.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert same(load(tmp_path / "half")[0], model)


def test_a_model_is_replaced_and_other_files_stay(sharded, saved):
    (sharded / "README.md").write_text("mine")
    (sharded / "notes").mkdir()
    (sharded / "notes" / "a").write_text("b")
    save(*load(saved), sharded)  # in one shard each is larger than SHARD_BYTES
    assert (sharded / "README.md").read_text() == "mine"
    assert (sharded / "notes" / "a").read_text() == "b"
    assert same(load(sharded)[0], load(saved)[0])


def test_no_old_shards_are_left(sharded, saved, monkeypatch):
    monkeypatch.setattr(saving, "SHARD_BYTES", 10**9)
    save(*load(saved), sharded)
    assert [path.name for path in sharded.glob("model*")] == ["model.safetensors"]
    assert [path.name for path in sharded.parent.iterdir()] == ["sharded"]
    assert same(load(sharded)[0], load(saved)[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there, files in use cannot be replaced")
def test_a_model_may_replace_the_files_it_is_mapped_from(folder, model):
    loaded, processor = load(folder)
    with torch.no_grad():
        loaded.language_model.norm.weight.add_(1)
    save(loaded, processor, folder)
    again = load(folder)[0]
    assert same(again, loaded) and not same(again, model)


@pytest.mark.parametrize("found", [{"notes.txt": "x"}, {"config.json": '{"model_type": "llava"}'}])
def test_a_folder_of_something_else_is_refused(found, saved, tmp_path):
    for name, content in found.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match="must be new, empty, or the folder of a PaliGemma"):
        save(*load(saved), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == found


def test_what_is_no_folder_is_not_replaced(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WeightsError, match="must be a folder that can be written: .*directory"):
        save(*load(saved), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"
    if hasattr(os, "mkfifo"):  # opening a pipe would wait for ever
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(WeightsError, match="must be a folder that can be written: .*directory"):
            save(*load(saved), tmp_path / "pipe")


def test_new_and_empty_folders(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b", str(tmp_path / "text")):
        save(*load(saved), place)
        assert same(load(place)[0], load(saved)[0])
    mode = (tmp_path / "text" / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "text" / "config.json").stat().st_mode


def test_only_a_plain_model_is_saved(saved, tmp_path):
    model, processor = load(saved)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(
        WeightsError, match="difference in 'extra.bias', 'extra.weight': merge LoRA"
    ):
        save(model, processor, tmp_path / "model")
    model, processor = load(saved)
    model.language_model.norm.bfloat16()
    with pytest.raises(WeightsError, match="must have one dtype"):
        save(model, processor, tmp_path / "model")
    with pytest.raises(WeightsError, match="must have one dtype of float32, bfloat16, float16"):
        save(model.double(), processor, tmp_path / "model")
    model, processor = load(saved)
    model.language_model.norm.weight = nn.Parameter(torch.zeros(25))
    with pytest.raises(
        WeightsError, match=r"language_model.norm.weight must have the shape \(24,\)"
    ):
        save(model, processor, tmp_path / "model")
    with torch.device("meta"):
        empty = PaliGemma(tiny_config())
    with pytest.raises(WeightsError, match="hold numbers, found .* on meta"):
        save(empty, processor, tmp_path / "model")
    other = Processor(saved / "tokenizer.model", tiny_config(kv_heads=4))
    with pytest.raises(WeightsError, match="model and processor must have the same config"):
        save(load(saved)[0], other, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_given_tokenizer_json_is_kept(folder, tmp_path):
    """Published folders have one with more settings than ours."""
    change_json(folder / "tokenizer_config.json", lambda found: found.update(mine=1))
    (folder / "added_tokens.json").write_text('{"<image>": 1792}')
    save(*load(folder), tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())["mine"] == 1
    assert (tmp_path / "copy" / "added_tokens.json").exists()


def test_saving_needs_nothing_of_the_folder_that_was_loaded(folder, saved, tmp_path, monkeypatch):
    """After hours of training that folder may be gone, or be another by its relative path."""
    change_json(folder / "tokenizer_config.json", lambda found: found.update(mine=1))
    monkeypatch.chdir(folder.parent)
    model, processor = load("model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    save(model, processor, "copy")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "elsewhere" / "copy" / name).read_bytes() == kept[name]
    assert same(load("copy")[0], load(saved)[0])


def test_no_file_of_the_old_models_tokenizer_is_left(folder, saved):
    """transformers would read it."""
    (folder / "added_tokens.json").write_text('{"<other>": 1}')
    save(*load(saved), folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in saved.iterdir()}


def test_a_model_is_saved_where_the_program_stands(folder, saved, monkeypatch):
    """The folder itself stays: it may be a program's current one, or a mounted volume."""
    monkeypatch.chdir(folder)
    before = os.stat(".").st_ino
    save(*load(saved), ".")
    assert os.path.samefile(".", folder) and os.stat(".").st_ino == before
    assert same(load(".")[0], load(saved)[0])


def test_places_where_no_folder_can_be(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "model", tmp_path / ("x" * 300)):
        with pytest.raises(WeightsError, match="must be a folder that can be written"):
            save(*load(saved), place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", [None, 3, b"model", "", "a\0b"])
def test_a_folder_that_is_no_path(place, saved):
    with pytest.raises(WeightsError, match="the folder to save into must be a path, found "):
        save(*load(saved), place)


def test_models_and_processors_of_another_kind(saved, tmp_path):
    model, processor = load(saved)
    with pytest.raises(WeightsError, match="must be a minipali.paligemma.PaliGemma, found Seq"):
        save(nn.Sequential(model), processor, tmp_path / "model")
    with pytest.raises(WeightsError, match="its processor and a folder, found PaliGemma as the"):
        save(processor, model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


# --- errors --------------------------------------------------------------------------------------


def unharmed(folder, saved):
    """The folder holds what it held, and nothing hidden."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in saved.iterdir()}
    return same(load(folder)[0], load(saved)[0])


@pytest.fixture
def other():
    """Another model than the one that is saved already."""
    model = PaliGemma(tiny_config()).eval()
    model.load_state_dict({name: x + 1 for name, x in make_ours().state_dict().items()})
    return model


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), SafetensorError("os 28")])
@pytest.mark.parametrize("new", [False, True])
def test_what_system_and_library_say_is_told_as_one_error(
    error, new, folder, saved, tmp_path, other, monkeypatch
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(saving, "save_file", fail)
    place = tmp_path / "new" if new else folder
    with pytest.raises(WeightsError, match="must be a folder that can be written: .*as they were"):
        save(other, load(saved)[1], place)
    assert not place.exists() if new else unharmed(folder, saved)


def test_too_little_room_is_told_in_numbers_that_one_can_read(saved, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(WeightsError, match=r"must have \d\d\dkB free .*, found 1.00kB: choose"):
        save(*load(saved), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone can mount")
def test_a_disk_that_is_full_before_the_end(saved, tmp_path, other):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in saved.iterdir())
    # The new weights alone would fit beside the old model; with what goes with them they do not.
    size += sum(x.nbytes for x in other.parameters()) + 60_000
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not let its root mount")
    try:
        processor = load(saved)[1]
        save(make_ours(), processor, disk / "model")
        with pytest.raises(WeightsError, match="No space left on device"):
            save(other, processor, disk / "model")
        assert unharmed(disk / "model", saved)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits like this on Windows")
def test_a_file_that_may_not_grow(folder, saved):
    code = (
        "import resource, sys, minipali;"
        "model, processor = minipali.load(sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "minipali.save(model, processor, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert "WeightsError" in done.stderr.splitlines()[-1], done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert unharmed(folder, saved)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_without_permission(folder, saved, tmp_path):
    tmp_path.chmod(0o500)
    folder.chmod(0o500)
    try:
        for place in (folder, tmp_path / "new"):
            with pytest.raises(WeightsError, match="can be written: .*Permission denied"):
                save(*load(saved), place)
    finally:
        tmp_path.chmod(0o700)
        folder.chmod(0o700)
    assert unharmed(folder, saved)


# --- interruptions -------------------------------------------------------------------------------


class Refused:
    """Path.rename that fails at some calls. The numbers count from 0."""

    def __init__(self, monkeypatch, numbers, error):
        self.calls, self.numbers, self.error = 0, numbers, error
        self.own = Path.rename
        monkeypatch.setattr(Path, "rename", lambda *places: self.rename(*places))
        monkeypatch.setattr(saving, "PAUSES", (0.0, 0.0))

    def rename(self, *places):
        self.calls += 1
        if self.calls - 1 in self.numbers:
            raise self.error
        return self.own(*places)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EBUSY, "busy")])
@pytest.mark.parametrize("number", range(16))
def test_an_error_at_any_renaming_leaves_the_old_model(
    number, error, folder, saved, other, monkeypatch
):
    """Eight files go, eight come."""
    (folder / "README.md").write_text("mine")
    processor = load(saved)[1]
    Refused(monkeypatch, [number], error)
    with pytest.raises((KeyboardInterrupt, WeightsError)) as caught:
        save(other, processor, folder)
    assert isinstance(caught.value, KeyboardInterrupt) or "as they were" in str(caught.value)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").unlink()
    assert unharmed(folder, saved)


def test_a_scanner_that_holds_a_new_file_for_a_moment(folder, saved, other, monkeypatch):
    """Windows refuses to rename a file while another program reads it."""
    refused = Refused(monkeypatch, [0, 5, 6, 12], PermissionError(13, "in use", "x"))
    save(other, load(saved)[1], folder)
    assert refused.calls == 20
    assert same(load(folder)[0], other)


def test_renamings_refused_for_good(folder, saved, other, monkeypatch):
    """The worst case: not even the way back is open. Nothing is lost, and the error says so."""
    processor = load(saved)[1]
    Refused(monkeypatch, range(12, 99), PermissionError(13, "in use", "x"))
    with pytest.raises(WeightsError, match="waits in a hidden folder, call minipali.saving.rec"):
        save(other, processor, folder)
    with pytest.raises(WeightsError, match="must hold config.json, but a save .*saving.recover"):
        load(folder)
    monkeypatch.undo()
    recover(folder)
    assert unharmed(folder, saved)


def test_files_that_cannot_be_removed_yet(folder, saved, other, monkeypatch):
    """On Windows a loaded model's files can be renamed, but not removed."""
    processor, remove = load(saved)[1], os.unlink

    def refuse(path, *args, **kwargs):
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, "in use", str(path))
        remove(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", refuse)
    save(other, processor, folder)
    assert same(load(folder)[0], other)
    assert len(list(folder.glob(".saving-*"))) == 1
    monkeypatch.setattr(os, "unlink", remove)
    save(make_ours(), processor, folder)
    assert unharmed(folder, saved)


# One program that forks, because starting each with torch would take seconds.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import minipali
from minipali import saving

a, b = (minipali.load(folder) for folder in sys.argv[1:3])

def in_a_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(1)
    return child

def killed_at(number, folder):
    "Saves b into the folder and dies instead of the renaming of that number."
    own, calls = Path.rename, 0
    def rename(*places):
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return own(*places)
    Path.rename = rename
    minipali.save(*b, folder)

def for_ever(folder):
    while True:
        minipali.save(*a, folder)
        minipali.save(*b, folder)
"""


def run_killed(saved, other, tmp_path, code):
    save(other, load(saved)[1], tmp_path / "b")
    command = [sys.executable, "-c", KILLED + code, saved, tmp_path / "b"]
    subprocess.run(command, cwd=tmp_path, check=True)


NO_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@NO_FORK
def test_killed_while_the_files_change_places(saved, other, tmp_path, monkeypatch):
    numbers = (0, 1, 8, 12, 15)
    for number in numbers:
        shutil.copytree(saved, tmp_path / str(number))
    code = f"for number in {numbers}:\n"
    code += "    child = in_a_child(lambda: killed_at(number, str(number)))\n"
    code += "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL\n"
    run_killed(saved, other, tmp_path, code)
    for number in numbers:
        folder = tmp_path / str(number)
        if number == 0:
            assert same(load(folder)[0], load(saved)[0])
        else:
            with pytest.raises(WeightsError, match="a save into it is still running or was kill"):
                load(folder)
        # A recovery that is interrupted in its turn, at any step, loses nothing either.
        for step in range(16) if number == 12 else ():
            worse = Path(shutil.copytree(folder, tmp_path / f"{number} {step}"))
            with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
                Refused(patched, [step], KeyboardInterrupt())
                recover(worse)
            recover(worse)
            assert unharmed(worse, saved)
        save(other, load(saved)[1], folder)  # the next save recovers, too
        assert {path.name for path in folder.iterdir()} == {path.name for path in saved.iterdir()}
        assert same(load(folder)[0], other)


@NO_FORK
def test_killed_anywhere(saved, other, tmp_path):
    """Whenever a program is killed, one of the two models can be had."""
    for number in range(8):
        shutil.copytree(saved, tmp_path / str(number))
    code = "for number in range(8):\n"
    code += "    child = in_a_child(lambda: for_ever(str(number)))\n"
    code += "    time.sleep(random.uniform(0.02, 0.3))\n"
    code += "    os.kill(child, signal.SIGKILL)\n"
    code += "    os.waitpid(child, 0)\n"
    run_killed(saved, other, tmp_path, code)
    for number in range(8):
        folder = tmp_path / str(number)
        recover(folder)
        assert {path.name for path in folder.iterdir()} == {path.name for path in saved.iterdir()}
        found = load(folder)[0]
        assert same(found, make_ours()) or same(found, other)


@NO_FORK
def test_a_first_save_that_was_killed_is_done_again(saved, other, tmp_path):
    code = "def die(*places, **more): os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "saving.save_file = die\n"
    code += "os.waitpid(in_a_child(lambda: minipali.save(*a, 'new')), 0)\n"
    run_killed(saved, other, tmp_path, code)
    with pytest.raises(WeightsError, match="a save into it is still running or was killed"):
        load(tmp_path / "new")
    save(*load(saved), tmp_path / "new")
    assert unharmed(tmp_path / "new", saved)


def test_threads_that_save_into_one_folder(saved, other, tmp_path):
    place, processor = tmp_path / "model", load(saved)[1]
    errors, models = [], [make_ours(), other, make_ours()]

    def work(model):
        try:
            for _ in range(8):
                save(model, processor, place)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = load(place)[0]
    assert same(found, make_ours()) or same(found, other)
    assert {path.name for path in place.iterdir()} == {path.name for path in saved.iterdir()}


def test_the_rest_of_a_running_save_is_left_alone(saved, other, tmp_path):
    """A second save waits; it must not take the first one's hidden folder for a killed one's."""
    processor, place = load(saved)[1], tmp_path / "model"
    save(make_ours(), processor, place)
    with saving.finished(place, 0) as part:
        second = threading.Thread(target=save, args=(other, processor, place))
        second.start()
        time.sleep(0.2)
        assert second.is_alive() and part.is_dir()
        for path in saved.iterdir():
            shutil.copy(path, part)
    second.join()
    assert same(load(place)[0], other)


def test_one_waits_for_another_program_only_so_long(saved, other, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "WAIT", 0)
    with saving.finished(tmp_path / "model", 0) as part:
        with pytest.raises(WeightsError, match="must not be saved into by another program"):
            save(other, load(saved)[1], tmp_path / "model")
        for path in saved.iterdir():
            shutil.copy(path, part)
    assert unharmed(tmp_path / "model", saved)


def test_a_file_system_without_locks(folder, saved, other, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    running = folder / ".saving-of-another"
    running.mkdir()
    save(other, load(saved)[1], folder)
    assert same(load(folder)[0], other) and running.is_dir()


def test_a_model_that_is_replaced_while_it_is_read_is_no_mixture(folder, saved, other, monkeypatch):
    """The old config and tokenizer with the new weights, for instance."""
    processor = load(saved)[1]
    own = weights._check_tied

    def meanwhile(*args):
        save(other, processor, folder)
        own(*args)

    monkeypatch.setattr(weights, "_check_tied", meanwhile)
    with pytest.raises(WeightsError, match="must not change while it is read: load it again"):
        load(folder)
    monkeypatch.undo()
    assert same(load(folder)[0], other)
