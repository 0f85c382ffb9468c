"""A file is complete, or what it was before."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from mlopt.whole_files import whole_file, write_whole_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "new"
    write_whole_text(path, "ü\n\r\n")
    assert path.read_bytes() == "ü\n\r\n".encode()
    assert names(tmp_path) == ["new"]


def test_an_error_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("earlier")

    def write_half():
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["kept"]


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with whole_file(path) as file:
        file.write(b"later")
        file.flush()
        assert path.read_text() == "earlier"
    assert path.read_text() == "later"


def test_access_rights_stay_and_links_are_followed(tmp_path):
    path, link = tmp_path / "private", tmp_path / "link"
    path.write_text("earlier")
    path.chmod(0o600)
    link.symlink_to(path)
    write_whole_text(link, "later")
    assert link.is_symlink()
    assert path.read_text() == "later"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pipe_is_written_to(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_whole_text(path, "through")
    reader.join(timeout=60)
    assert read == ["through"]
    assert names(tmp_path) == ["pipe"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole_text(tmp_path / "absent" / "file", "text")
    assert caught.value.filename == str(tmp_path / "absent" / "file")
    with pytest.raises(IsADirectoryError):
        write_whole_text(tmp_path, "text")
    assert names(tmp_path) == []


WRITE = (
    "from mlopt.whole_files import write_whole_text as w; w('/dev/stdout', 'in'); print(' order')"
)


@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_by_its_name(tmp_path, to):
    out = tmp_path / "out"
    with out.open("ab") as file:
        target = subprocess.PIPE if to == "pipe" else file
        done = subprocess.run([sys.executable, "-c", WRITE], stdout=target, check=True)
    text = done.stdout if to == "pipe" else out.read_bytes()
    assert text == b"in order\n"
    assert names(tmp_path) == ["out"]


def test_a_private_file_is_private_from_the_start(tmp_path):
    path = tmp_path / "private"
    path.write_text("earlier")
    path.chmod(0o600)
    with whole_file(path):
        (scratch,) = (other for other in tmp_path.iterdir() if other != path)
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o600


def test_the_longest_names(tmp_path):
    path = tmp_path / ("\u6f22" * 85)  # 255 bytes
    write_whole_text(path, "text")
    assert path.read_text() == "text"


def not_writable(monkeypatch, refused):
    """As for a user without rights, which root never is."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != refused and access(path, mode))


def test_in_a_folder_that_takes_no_file_the_earlier_one_is_written_to(tmp_path, monkeypatch):
    path = tmp_path / "mounted"
    path.write_text("earlier, and longer")
    before = path.stat().st_ino
    not_writable(monkeypatch, str(tmp_path))
    write_whole_text(path, "later")
    assert path.read_text() == "later"
    assert path.stat().st_ino == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    path = tmp_path / "protected"
    path.write_text("earlier")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        write_whole_text(path, "later")
    assert path.read_text() == "earlier"
