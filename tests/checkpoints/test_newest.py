"""The checkpoint a run goes on from."""

import os
import shutil

import torch

from varcon_plugin.checkpoints.newest import newest
from varcon_plugin.checkpoints.writing import save


def write(folder, epoch, steps, **more):
    path = folder / f"epoch_{epoch}.pth"
    content = {
        "meta": {"epoch": epoch, "iter": steps},
        "state_dict": {"w": torch.full((50,), float(epoch))},
        "optimizer": {"state": {}},
    }
    save(content | more, path)
    return path


def found(folder):
    return newest(folder.glob("*.pth"))


def test_the_most_steps_win_whatever_the_dates_and_pointers_say(tmp_path):
    old, new = write(tmp_path, 2, 20), write(tmp_path, 10, 100)
    os.utime(new, (0, 0))
    (tmp_path / "last_checkpoint").write_text(str(old))
    assert found(tmp_path).path == new
    assert str(found(tmp_path)) == f"{new} (step 100), the newest whole checkpoint"


def test_damaged_files_are_passed_over_and_named(tmp_path):
    good, cut, flipped = (write(tmp_path, n, 10 * n) for n in (1, 2, 3))
    (tmp_path / "epoch_4.pth").touch()
    os.truncate(cut, cut.stat().st_size // 2)
    data = bytearray(flipped.read_bytes())
    middle = data.index(torch.full((50,), 3.0).numpy().tobytes())
    data[middle] ^= 1
    flipped.write_bytes(data)
    chosen = found(tmp_path)
    assert chosen.path == good
    assert "epoch_4.pth: it is empty" in str(chosen)
    assert "epoch_2.pth: it is cut short or damaged" in str(chosen)
    assert "epoch_3.pth: its checksum of" in str(chosen)


def test_a_moved_folder_is_as_good(tmp_path):
    (tmp_path / "a").mkdir()
    path = write(tmp_path / "a", 1, 10)
    (tmp_path / "a" / "last_checkpoint").write_text(str(path))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert found(tmp_path / "b").path == tmp_path / "b" / "epoch_1.pth"


def test_what_no_run_can_go_on_from_is_left_out(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "weights.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "dangling.pth").symlink_to(tmp_path / "gone.pth")
    assert found(tmp_path) == (None, 0, {})
    assert str(found(tmp_path)) == "no whole checkpoint"


def test_of_lightning_the_global_step_counts(tmp_path):
    for epoch, step in ((0, 5), (1, 9)):
        content = {"epoch": epoch, "global_step": step, "optimizer_states": []}
        save(content, tmp_path / f"{epoch}.ckpt")
    assert newest(tmp_path.glob("*.ckpt")).steps == 9
