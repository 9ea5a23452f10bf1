"""Running a command as one who may not write where the mode of a folder says so."""

import os
import shutil

from tests.required import unavailable


def as_reader(*command: str) -> list[str]:
    """The command, run by somebody whom modes bind: root may write everywhere, so it has to give that up."""
    if os.geteuid() != 0:
        return list(command)
    if shutil.which("setpriv") is None:
        unavailable("setpriv", "root is not bound by modes, and setpriv (util-linux) is not installed")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]
