"""A damaged file with the dead member's id costs the group a session timeout, never the worker its start."""

from pathlib import Path
from typing import Any

import pytest

from streams.engine.member import Member


class Nobody:
    """A client that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for a member that is not known")


@pytest.mark.parametrize("damaged", [None, b"", b"headrace-x-\xfa\x00", b"\xff" * 70])
async def test_without_a_member_id_that_can_be_read_nobody_is_asked_and_the_start_goes_on(damaged: bytes | None, tmp_path: Path) -> None:
    if damaged is not None:
        (tmp_path / "member").write_bytes(damaged)
    await Member(tmp_path, "group").leave_for_predecessor(Nobody())
