import pytest

from varcon_plugin.commands import imagenet100 as tool

WNIDS = ["n01440764", "n01443537"]


@pytest.fixture
def imagenet(tmp_path):
    for split in ("train", "val"):
        for wnid in [*WNIDS, "n01484850"]:
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            (folder / "0.JPEG").write_bytes(b"jpeg")
    return tmp_path / "imagenet"


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# two\n" + "\n".join(WNIDS) + "\n")
    return path


@pytest.mark.parametrize("options", [[], ["--copy"]])
def test_the_subset_has_its_classes_and_nothing_else(
    imagenet, classes, options, capsys
):
    out = imagenet.parent / "subset"
    command = [str(imagenet), str(out), "--classes", str(classes), *options]
    tool.main(command)
    for split in ("train", "val"):
        assert sorted(p.name for p in (out / split).iterdir()) == WNIDS
        assert (out / split / WNIDS[0] / "0.JPEG").read_bytes() == b"jpeg"
        assert (out / split / WNIDS[0]).is_symlink() == (not options)
    assert "2 classes, 4 new class folders" in capsys.readouterr().out
    tool.main(command)  # a second run finds them
    assert "2 classes, 0 new class folders" in capsys.readouterr().out


def test_mistakes_are_told_before_anything_is_made(imagenet, classes):
    out = imagenet.parent / "subset"
    with pytest.raises(SystemExit, match="lacks 98 of 100 classes, such as n02869837"):
        tool.main([str(imagenet), str(out), "--classes", str(more_classes(classes))])
    assert not out.exists()
    (out / "val" / "cats").mkdir(parents=True)
    with pytest.raises(SystemExit, match="holds other classes, such as cats"):
        tool.main([str(imagenet), str(out), "--classes", str(classes)])
    classes.write_text("tench\n")
    with pytest.raises(SystemExit, match="expected WordNet ids like"):
        tool.main([str(imagenet), str(out), "--classes", str(classes)])


def more_classes(classes):
    """The shipped list, with two of its ids replaced by those that are there."""
    path = classes.with_name("more.txt")
    wnids = tool.read_classes(tool.CLASSES)
    path.write_text("\n".join([wnids[0], *wnids[3:], *WNIDS]) + "\n")
    return path


def test_the_shipped_list_names_100_classes():
    assert len(tool.read_classes(tool.CLASSES)) == 100
