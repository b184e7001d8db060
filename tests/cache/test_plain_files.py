"""Small files that others can write: whole, or an error, and nothing that is waited for."""

from pathlib import Path

import odd_files
import pytest
from worlds import watched

from llm_mlx_promptcache.cache.plain_files import open_plain, read_plain


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"12345")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_plain(path, 5) == read_plain(link, 6) == b"12345"
    with pytest.raises(ValueError, match=r"^small has 5 bytes, more than 4$"):
        read_plain(path, 4)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, kind):
    odd_files.MAKERS[kind](tmp_path / "odd")
    before = len(list(Path("/dev/fd").iterdir()))
    for read in (open_plain, lambda path: read_plain(path, 5)):
        with watched(), pytest.raises(ValueError, match=r"^odd is no regular file$"):
            read(tmp_path / "odd")
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_of_a_huge_file_little_is_read(tmp_path):
    odd_files.MAKERS["huge"](tmp_path / "odd")
    with pytest.raises(ValueError, match=rf"^odd has {odd_files.GIGABYTE} bytes, more than 10$"):
        read_plain(tmp_path / "odd", 10)


def test_what_can_not_be_opened_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "gone", 5)
